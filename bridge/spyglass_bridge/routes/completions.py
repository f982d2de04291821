"""POST /v1/completions: continues ready prompts, as one object or as a stream of chunks."""

from aiohttp import web

from spyglass_bridge.openai.choices import TextChoices
from spyglass_bridge.openai.requests import CompletionRequest
from spyglass_bridge.openai.serialization import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm
from spyglass_bridge.openai.translation import CallContext, Submission, translate_completions
from spyglass_bridge.openai.validation import parse
from spyglass_bridge.routes.lifecycle import answer_as_stream, answer_at_once, read_request


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Continues prompts. The choices of the first prompt come first."""
    ask, submissions = await read_request(request, _read)
    n = ask.n or 1
    total = n * len(submissions)
    head, choices = AnswerHead.new(ask.model, "cmpl"), TextChoices(total, begins_with_prompt=bool(ask.echo))
    if ask.stream:
        encoder = ChunkEncoder(head, total, choices, UsageForm.of(ask.include_usage))
        return await answer_as_stream(request, submissions, n, encoder)
    return await answer_at_once(request, submissions, n, CompletionBuilder(head, total, choices))


def _read(body: bytes, context: CallContext) -> tuple[CompletionRequest, list[Submission]]:
    ask = parse(body, CompletionRequest)
    return ask, translate_completions(ask, context)
