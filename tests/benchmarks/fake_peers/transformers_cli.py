"""Stands in for `transformers serve MODEL --host … --port …`: answers are as many words as may be."""

import json
import sys
from collections.abc import Sequence

from aiohttp import web


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def complete(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    answer = web.StreamResponse()
    await answer.prepare(request)
    usage = {"prompt_tokens": 200, "completion_tokens": asked["max_tokens"]}
    events: list[object] = [{"choices": [{"delta": {"content": "word "}}]}] * asked["max_tokens"]
    for event in (*events, {"choices": [], "usage": usage}):
        await answer.write(f"data: {json.dumps(event)}\n\n".encode())
    return answer


def main(arguments: Sequence[str]) -> None:
    command, _, *options = arguments
    assert command == "serve"
    app = web.Application()
    app.add_routes([web.get("/health", health), web.post("/v1/chat/completions", complete)])
    host, port = (options[options.index(name) + 1] for name in ("--host", "--port"))
    web.run_app(app, host=host, port=int(port))


if __name__ == "__main__":
    main(sys.argv[1:])
