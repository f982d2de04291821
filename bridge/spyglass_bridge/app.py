"""The web application: routes and what surrounds them."""

from aiohttp import web

from spyglass_bridge.body import hold_continue
from spyglass_bridge.middleware import admit_caller, answer_errors, finish_headers, name_request
from spyglass_bridge.routes import chat, completions, health, models, native, reference, tokens
from spyglass_bridge.services import SERVICES, Services

# DeepInfra's prefix and OpenAI's.
_PREFIXES = ("/v1/openai", "/v1")


def make_app(services: Services) -> web.Application:
    """Puts the routes together. The services must stay open as long as the application runs."""
    app = web.Application(middlewares=[name_request, answer_errors, admit_caller])
    app[SERVICES] = services
    app.on_response_prepare.append(finish_headers)
    app.router.add_get("/health", health.health)
    app.router.add_get("/ready", health.ready)
    app.router.add_get("/openapi.json", reference.get_openapi)
    app.router.add_get("/docs", reference.get_reference)
    app.router.add_get("/models/{model:.+}/schema/{variant}", reference.get_schema)
    app.router.add_post("/tokenize", tokens.tokenize, expect_handler=hold_continue)
    app.router.add_post("/detokenize", tokens.detokenize, expect_handler=hold_continue)
    app.router.add_post("/v1/inference/{model:.+}", native.infer, expect_handler=hold_continue)
    for prefix in _PREFIXES:
        app.router.add_post(f"{prefix}/chat/completions", chat.create_chat_completion, expect_handler=hold_continue)
        app.router.add_post(f"{prefix}/completions", completions.create_completion, expect_handler=hold_continue)
        app.router.add_get(f"{prefix}/models", models.list_models)
        app.router.add_get(f"{prefix}/models/{{model:.+}}", models.get_model)
    return app
