"""GET /v1/models and /v1/models/{id}: the models that the server runs."""

from aiohttp import web

from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.serialization import model_object
from spyglass_bridge.services import CALLER_KEY, SERVICES

_MAX_NAME_CHARACTERS = 256


async def list_models(request: web.Request) -> web.Response:
    """Returns all models with their metadata and prices."""
    models = await request.app[SERVICES].backend.list_models(request[CALLER_KEY])
    return web.json_response({"object": "list", "data": [model_object(model) for model in models]})


async def get_model(request: web.Request) -> web.Response:
    """Returns one model; its name may contain slashes."""
    model = await request.app[SERVICES].backend.get_model(model_in_path(request), request[CALLER_KEY])
    return web.json_response(model_object(model))


def model_in_path(request: web.Request) -> str:
    """Returns the model name in the path. Raises ApiError 404 for a name that no model can have."""
    name = request.match_info["model"]
    if len(name) > _MAX_NAME_CHARACTERS or any("\ud800" <= character <= "\udfff" for character in name):
        raise ApiError(404, "There is no such model.", code="model_not_found", param="model")
    return name
