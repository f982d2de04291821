"""POST /v1/inference/{model}: DeepInfra's own form of a completion."""

from aiohttp import web

from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.native import NativeAnswer
from spyglass_bridge.openai.requests import NativeRequest
from spyglass_bridge.openai.translation import CallContext, Submission, translate_completions
from spyglass_bridge.openai.validation import parse
from spyglass_bridge.routes.lifecycle import Read, answer_as_stream, answer_at_once, read_request
from spyglass_bridge.routes.models import model_in_path
from spyglass_bridge.services import REQUEST_ID

_NAMES = {"prompt": "input", "max_tokens": "max_new_tokens", "n": "num_responses"}
"""The names that OpenAI's parameters have here."""


async def infer(request: web.Request) -> web.StreamResponse:
    """Continues a ready prompt."""
    model = model_in_path(request)

    def read(body: bytes, context: CallContext) -> tuple[NativeRequest, list[Submission]]:
        ask = parse(body, NativeRequest)
        return ask, translate_completions(ask.as_completion(model), context)

    try:
        return await _infer(request, read)
    except ApiError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise


async def _infer(request: web.Request, read: Read[tuple[NativeRequest, list[Submission]]]) -> web.StreamResponse:
    ask, submissions = await read_request(request, read)
    n = ask.num_responses or 1
    answer = NativeAnswer(request[REQUEST_ID], n)
    if ask.stream:
        return await answer_as_stream(request, submissions, n, answer)
    return await answer_at_once(request, submissions, n, answer)
