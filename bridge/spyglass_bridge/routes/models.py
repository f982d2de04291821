"""GET /v1/models and /v1/models/{id}: what the server runs."""

import grpc
from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import from_rpc_error
from spyglass_bridge.openai.answers import model_object
from spyglass_bridge.services import SERVICES

_RPC_TIMEOUT_S = 10.0


async def list_models(request: web.Request) -> web.Response:
    """All models with their metadata and prices."""
    services = request.app[SERVICES]
    try:
        answer = await services.stub.ListModels(
            pb.ListModelsRequest(), metadata=services.metadata, timeout=_RPC_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return web.json_response({"object": "list", "data": [model_object(model) for model in answer.models]})


async def get_model(request: web.Request) -> web.Response:
    """One model; its name may hold slashes."""
    services = request.app[SERVICES]
    try:
        answer = await services.stub.GetModel(
            pb.GetModelRequest(model=request.match_info["model"]), metadata=services.metadata, timeout=_RPC_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return web.json_response(model_object(answer.model))
