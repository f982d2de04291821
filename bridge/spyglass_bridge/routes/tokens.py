"""POST /tokenize and /detokenize: what tokens a prompt has, and what tokens say."""

from aiohttp import web

from spyglass_bridge.errors import invalid
from spyglass_bridge.openai.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from spyglass_bridge.openai.translation import CallContext, Submission, translate_chat, translate_completions
from spyglass_bridge.openai.validation import parse
from spyglass_bridge.routes.lifecycle import read_request
from spyglass_bridge.services import SERVICES


async def tokenize(request: web.Request) -> web.Response:
    """The tokens of a prompt or a conversation; an image is one of them."""
    backend = request.app[SERVICES].backend
    submission = await read_request(request, _read)
    model = await backend.get_model(submission.start.model)
    counted = await backend.count_tokens(submission.start)
    return web.json_response(
        {"count": counted.prompt_tokens, "max_model_len": model.context_length, "tokens": list(counted.token_ids)}
    )


async def detokenize(request: web.Request) -> web.Response:
    """What tokens say."""
    ask = await read_request(request, lambda body, context: parse(body, DetokenizeRequest))
    return web.json_response({"prompt": await request.app[SERVICES].backend.detokenize(ask.model, ask.tokens)})


def _read(body: bytes, context: CallContext) -> Submission:
    ask = parse(body, TokenizeRequest).as_completion()
    submission = (
        translate_chat(ask, context) if isinstance(ask, ChatRequest) else translate_completions(ask, context)[0]
    )
    if submission.images:
        raise invalid("Images must be data URIs of at most 1 MiB in all to be counted.", "messages")
    return submission
