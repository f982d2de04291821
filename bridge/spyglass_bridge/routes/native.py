"""POST /v1/inference/{model}: DeepInfra's own form of a completion."""

from aiohttp import web

from spyglass_bridge.errors import invalid
from spyglass_bridge.openai.native import NativeAnswer
from spyglass_bridge.openai.requests import NativeRequest, parse
from spyglass_bridge.openai.start import CallContext, Draft, draft_completions
from spyglass_bridge.routes.answer import answer_as_stream, answer_at_once, read_request
from spyglass_bridge.services import REQUEST_ID


async def infer(request: web.Request) -> web.StreamResponse:
    """Continues a ready prompt."""
    model = request.match_info["model"]

    def read(body: bytes, context: CallContext) -> tuple[NativeRequest, list[Draft]]:
        ask = parse(body, NativeRequest)
        if ask.stream and (ask.num_responses or 1) > 1:
            raise invalid("A stream has one response.", "num_responses")
        return ask, draft_completions(ask.as_completion(model), context)

    ask, drafts = await read_request(request, read)
    n = ask.num_responses or 1
    answer = NativeAnswer(request[REQUEST_ID], n)
    if ask.stream:
        return await answer_as_stream(request, drafts, n, answer)
    return await answer_at_once(request, drafts, n, answer)
