"""The server as a whole: builds its parts, starts them in order, and shuts them down in reverse."""

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from spyglass.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from spyglass.v1 import inference_pb2 as pb
from spyglass_common.fair_slots import FairSlots
from spyglass_common.limits import MAX_MESSAGE_BYTES
from spyglass_common.metrics_page import serve_metrics
from spyglass_common.telemetry import open_telemetry
from spyglass_server.admin import AdminServicer
from spyglass_server.admission import Admission
from spyglass_server.auth import Keys
from spyglass_server.boundary import Boundary
from spyglass_server.codec.chat import ImageLimits
from spyglass_server.config import ServerConfig
from spyglass_server.engine.handle.async_engine import AsyncEngine
from spyglass_server.image_decoder import ImageDecoder
from spyglass_server.ledger import Ledger, lock_data_dir, read_server_id
from spyglass_server.listening import Listener, connection_limits
from spyglass_server.metrics import Load, Metrics
from spyglass_server.metrics_aliases import with_vllm_names
from spyglass_server.prompt import PromptMaker
from spyglass_server.quotas import Quotas
from spyglass_server.replays import Replays
from spyglass_server.report import Observer
from spyglass_server.request_log import log_generation
from spyglass_server.resources import Resources
from spyglass_server.servicer import InferenceServicer
from spyglass_server.tracing import Tracing

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
_ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_NUM_WORKERS = 4
_ABANDON_TIMEOUT_S = 0.3
"""How long generations that are ended at shutdown may take to report their end."""
_LAST_WORDS_S = 5.0
"""Extra time for calls beyond the drain timeout; `stop` ends them earlier."""
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Server:
    """A Spyglass server for one checkpoint."""

    def __init__(self, config: ServerConfig, folder: Path, engine: AsyncEngine) -> None:
        """Reads tokenizer, template and keys. The engine may be loading already; the server owns it from now on.

        Raises:
            ValueError, OSError: a file or a setting is wrong; the text is for the operator.
        """
        self._config = config
        self._prompts = PromptMaker(folder, config.max_image_pixels, config.chat_template)
        self._lock = lock_data_dir(config.data_dir)
        self._workers = ThreadPoolExecutor(_NUM_WORKERS, "prompt")
        self._decoder = ImageDecoder(config.max_image_pixels)
        self._ledger = Ledger(config.data_dir, read_server_id(config.data_dir), config.ledger_url)
        self._keys, self.new_key = Keys.open(
            config.data_dir, api_keys=config.api_keys, bridge_key=config.bridge_key, url=config.ledger_url
        )
        self._quotas = Quotas(self._ledger.spent)
        self._health = health.HealthServicer()
        self._admission = Admission(config.max_pending, config.max_pending_bytes, config.max_pending_tokens)
        self._metrics = Metrics(config.served_names[0], self._load)
        self._watched = contextlib.ExitStack()
        """The metrics endpoint and the telemetry exporters."""
        self.engine = engine
        engine.on_ready, engine.on_step = self._on_engine_ready, self._metrics.step
        self._servicer = InferenceServicer(self._resources())
        self._health_report: asyncio.Future[None] | None = None
        self._server: aio.Server | None = None
        self._listener = Listener(config.address, config.tls, config.socket_mode)
        self._closing: asyncio.Task[None] | None = None
        self._stopping = self._stopped = False
        self.metrics_address: str | None = None
        """The address of the Prometheus endpoint, after `start`."""
        self.address = config.address
        """The listening address; after `start`, with the port that was chosen for port 0."""

    @property
    def num_admitted(self) -> int:
        """How many generations are in the server."""
        return self._admission.num_held

    async def start(self) -> None:
        """Listens and loads the model; until it is loaded, the server reports that it is not ready.

        Raises:
            EngineLoadError: the model cannot be loaded.
            RuntimeError, OSError: the address is unavailable, or the certificate cannot be used.
        """
        self._keys.start()
        self.metrics_address = self._watched.enter_context(serve_metrics(self._config.metrics, self._exposed()))
        self._server = aio.server(
            interceptors=[Boundary(self._keys)], options=(*_OPTIONS, *connection_limits(self._config.max_pending))
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._servicer, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(self._keys, self._ledger), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server)
        await self._report_health()
        self.address = self._listener.listen(self._server)
        await self._server.start()
        log.info("%s answers, and is not ready yet", self.address)
        await self.engine.start()

    async def drain(self) -> None:
        """Refuses new generations and waits, up to the drain timeout, for running ones.

        The server stops listening, and its connections notify their clients that they take no more calls, so that
        these connect to the server that replaces this one.
        """
        self._stopping = True
        await self._report_health()
        self._servicer.drain()
        if self._server:
            grace_s = self._config.drain_timeout_s + _LAST_WORDS_S
            self._closing = asyncio.create_task(self._server.stop(grace_s))
            self._listener.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._servicer.wait_idle(), self._config.drain_timeout_s)

    async def stop(self) -> None:
        """Ends running generations with an error and releases everything. Idempotent; works after a failed `start`."""
        if self._stopped:
            return
        self._stopped = True
        self._stopping = True
        self._servicer.drain()
        self._servicer.abandon()
        self._listener.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._servicer.wait_idle(), _ABANDON_TIMEOUT_S)
        self._workers.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(
            *([self._server.stop(_ABANDON_TIMEOUT_S)] if self._server else []),
            self.engine.stop(),
            asyncio.to_thread(self._decoder.close),
        )
        if self._closing:
            await self._closing
        if self._health_report:
            await self._health_report
        await asyncio.to_thread(self._watched.close)
        await self._keys.aclose()
        await self._ledger.aclose()
        self._lock.close()

    def _resources(self) -> Resources:
        config = self._config
        return Resources(
            engine=self.engine,
            prompts=self._prompts,
            ledger=self._ledger,
            keys=self._keys,
            admission=self._admission,
            quotas=self._quotas,
            replays=Replays(),
            metrics=self._metrics,
            observers=(self._metrics.ended, log_generation, *self._tracing()),
            workers=self._workers,
            slots=FairSlots(_NUM_WORKERS, share=_NUM_WORKERS // 2),
            decoder=self._decoder,
            served_names=config.served_names,
            image_limits=ImageLimits(config.max_images, config.max_image_bytes),
            prices=config.prices,
            request_timeout_s=config.request_timeout_s,
        )

    def _load(self) -> Load:
        engine = self.engine
        labels = {}
        if engine.has_info:
            info = engine.info
            labels = {"device": info.device, "dtype": info.dtype, "quantization": info.quantization}
        return Load(
            running=engine.num_scheduled,
            waiting=max(0, self.num_admitted - engine.num_scheduled),
            last_step_age_s=engine.activity.last_step_age_s,
            num_restarts=engine.num_restarts,
            labels=labels,
        )

    def _tracing(self) -> list[Observer]:
        if self._config.otlp_endpoint is None:
            return []
        tracer, meter = self._watched.enter_context(open_telemetry("spyglass-server", self._config.otlp_endpoint))
        return [Tracing(tracer, meter).ended]

    def _exposed(self) -> CollectorRegistry:
        """The metrics that Prometheus scrapes."""
        registry = self._metrics.registry
        return with_vllm_names(registry) if self._config.metrics_alias == "vllm" else registry

    def _on_engine_ready(self, ready: bool) -> None:
        log.info("the engine is %s", "ready" if ready else "not ready")
        self._health_report = asyncio.ensure_future(self._report_health())

    async def _report_health(self) -> None:
        serving = self.engine.is_ready and not self._stopping
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _add_reflection(server: aio.Server) -> None:
    """Registers reflection under both of its names: newer tools try v1 first, the package has v1alpha."""
    names = (
        SERVICE,
        _ADMIN_SERVICE,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection((*names, _REFLECTION_V1), server)
    handlers = _reflection_handlers((*names, _REFLECTION_V1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_REFLECTION_V1, handlers),))


def _reflection_handlers(names: tuple[str, ...]) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    # The package offers its asyncio servicer only under this private name.
    from grpc_reflection.v1alpha import _async as reflection_async
    from grpc_reflection.v1alpha import reflection_pb2

    servicer = reflection_async.ReflectionServicer(service_names=names)
    return {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
