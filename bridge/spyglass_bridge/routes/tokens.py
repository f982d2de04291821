"""POST /tokenize and /detokenize: the tokens of a prompt, and the text of tokens."""

from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import invalid
from spyglass_bridge.openai.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from spyglass_bridge.openai.translation import CallContext, Submission, translate_chat, translate_completions
from spyglass_bridge.openai.validation import parse
from spyglass_bridge.routes.lifecycle import read_request
from spyglass_bridge.services import CALLER_KEY, SERVICES


async def tokenize(request: web.Request) -> web.Response:
    """Returns the tokens of a prompt or a conversation; an image is one token."""
    backend = request.app[SERVICES].backend
    submission = await read_request(request, _read)
    model = await backend.get_model(submission.start.model, request[CALLER_KEY])
    counted = await backend.count_tokens(submission.start)
    return web.json_response(
        {
            "count": counted.prompt_tokens,
            "max_model_len": model.context_length,
            "tokens": list(counted.token_ids),
            "images": [_layout(image) for image in counted.images],
            "estimated_cost": counted.estimated_cost,
        }
    )


async def detokenize(request: web.Request) -> web.Response:
    """Returns the text of tokens."""
    ask = await read_request(request, lambda body, context: parse(body, DetokenizeRequest))
    return web.json_response({"prompt": await request.app[SERVICES].backend.detokenize(ask.model, ask.tokens)})


def _layout(image: pb.ImageLayout) -> dict[str, int]:
    return {
        "tile_size": image.tile_size,
        "rows": image.rows,
        "columns": image.columns,
        "picture_width": image.picture_width,
        "picture_height": image.picture_height,
    }


def _read(body: bytes, context: CallContext) -> Submission:
    ask = parse(body, TokenizeRequest).as_completion()
    submission = (
        translate_chat(ask, context) if isinstance(ask, ChatRequest) else translate_completions(ask, context)[0]
    )
    if submission.images:
        raise invalid("Images must be sizes, or data URIs of at most 1 MiB in all, to be counted.", "messages")
    return submission
