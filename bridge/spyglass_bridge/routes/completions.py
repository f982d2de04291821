"""POST /v1/completions: ready prompts are continued, as one object or as a stream of chunks."""

from aiohttp import web

from spyglass_bridge.openai.answers import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm
from spyglass_bridge.openai.forms import TextForm
from spyglass_bridge.openai.reading import parse
from spyglass_bridge.openai.requests import CompletionRequest
from spyglass_bridge.openai.start import CallContext, Draft, draft_completions
from spyglass_bridge.routes.answer import answer_as_stream, answer_at_once, read_request


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Continues prompts. The choices of the first come first."""
    ask, drafts = await read_request(request, _read)
    n = ask.n or 1
    total = n * len(drafts)
    head, form = AnswerHead.new(ask.model, "cmpl"), TextForm(total, begins_with_prompt=bool(ask.echo))
    if ask.stream:
        encoder = ChunkEncoder(head, total, form, UsageForm.of(ask.include_usage))
        return await answer_as_stream(request, drafts, n, encoder)
    return await answer_at_once(request, drafts, n, CompletionBuilder(head, total, form))


def _read(body: bytes, context: CallContext) -> tuple[CompletionRequest, list[Draft]]:
    ask = parse(body, CompletionRequest)
    return ask, draft_completions(ask, context)
