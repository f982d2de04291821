"""GET /v1/models and /v1/models/{id}: what the server runs."""

from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.answers import model_object
from spyglass_bridge.services import SERVICES, Services

_MAX_NAME_CHARACTERS = 256


async def list_models(request: web.Request) -> web.Response:
    """All models with their metadata and prices."""
    services = request.app[SERVICES]
    answer = await services.call(services.stub.ListModels, pb.ListModelsRequest())
    return web.json_response({"object": "list", "data": [model_object(model) for model in answer.models]})


async def get_model(request: web.Request) -> web.Response:
    """One model; its name may hold slashes."""
    return web.json_response(model_object(await find_model(request.app[SERVICES], model_in_path(request))))


def model_in_path(request: web.Request) -> str:
    """The name of a model in the path. Raises ApiError 404 for one that cannot be one."""
    name = request.match_info["model"]
    if len(name) > _MAX_NAME_CHARACTERS or any("\ud800" <= character <= "\udfff" for character in name):
        raise ApiError(404, "There is no such model.", code="model_not_found", param="model")
    return name


async def find_model(services: Services, name: str) -> pb.Model:
    """What the server says of a model."""
    answer = await services.call(services.stub.GetModel, pb.GetModelRequest(model=name))
    return answer.model
