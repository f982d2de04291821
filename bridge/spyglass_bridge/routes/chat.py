"""POST /v1/chat/completions: answers a conversation, as one object or as a stream of chunks."""

from aiohttp import web

from spyglass_bridge.openai.choices import ChatChoices
from spyglass_bridge.openai.requests import ChatRequest
from spyglass_bridge.openai.serialization import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm
from spyglass_bridge.openai.translation import CallContext, Submission, translate_chat
from spyglass_bridge.openai.validation import parse
from spyglass_bridge.routes.lifecycle import answer_as_stream, answer_at_once, read_request


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answers a conversation."""
    ask, submission = await read_request(request, _read)
    n = ask.n or 1
    head, choices = AnswerHead.new(ask.model, "chatcmpl"), ChatChoices(n)
    if ask.stream:
        encoder = ChunkEncoder(head, n, choices, UsageForm.of(ask.include_usage))
        return await answer_as_stream(request, [submission], n, encoder)
    return await answer_at_once(request, [submission], n, CompletionBuilder(head, n, choices))


def _read(body: bytes, context: CallContext) -> tuple[ChatRequest, Submission]:
    ask = parse(body, ChatRequest)
    return ask, translate_chat(ask, context)
