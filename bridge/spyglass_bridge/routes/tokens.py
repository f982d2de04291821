"""POST /tokenize and /detokenize: what tokens a prompt has, and what tokens say."""

from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import invalid
from spyglass_bridge.openai.reading import parse
from spyglass_bridge.openai.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from spyglass_bridge.openai.start import CallContext, Draft, draft_chat, draft_completions
from spyglass_bridge.routes.answer import read_request
from spyglass_bridge.routes.models import find_model
from spyglass_bridge.services import SERVICES

_RPC_TIMEOUT_S = 30.0


async def tokenize(request: web.Request) -> web.Response:
    """The tokens of a prompt or a conversation; an image is one of them."""
    services = request.app[SERVICES]
    draft = await read_request(request, _read)
    described = await find_model(services, draft.start.model)
    count = pb.CountTokensRequest(start=draft.start, with_tokens=True)
    found = await services.call(services.stub.CountTokens, count, _RPC_TIMEOUT_S)
    return web.json_response(
        {
            "count": found.prompt_tokens,
            "max_model_len": described.context_length,
            "tokens": list(found.token_ids),
        }
    )


async def detokenize(request: web.Request) -> web.Response:
    """What tokens say."""
    services = request.app[SERVICES]
    ask = await read_request(request, lambda body, context: parse(body, DetokenizeRequest))
    tokens = pb.DetokenizeRequest(model=ask.model, token_ids=ask.tokens)
    found = await services.call(services.stub.Detokenize, tokens, _RPC_TIMEOUT_S)
    return web.json_response({"prompt": found.text})


def _read(body: bytes, context: CallContext) -> Draft:
    ask = parse(body, TokenizeRequest).as_completion()
    draft = draft_chat(ask, context) if isinstance(ask, ChatRequest) else draft_completions(ask, context)[0]
    if draft.images:
        raise invalid("Images must be data URIs of at most 1 MiB in all to be counted.", "messages")
    return draft
