"""The server's configuration: its settings as typed values, with the defaults that depend on other settings."""

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path

from spyglass_common.data_dir import data_dir_of
from spyglass_common.telemetry import check_telemetry
from spyglass_server.torchrun import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """What a generation costs, in US dollars."""
        full = (prompt_tokens - cached_tokens) * self.input
        total = full + cached_tokens * self.cached_input + completion_tokens * self.output
        return round(total / 1e6, 12)  # equal sums look equal, however they were computed

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most that a generation of these sizes costs, however many of its prompt tokens are cached."""
        return max(self.cost(prompt_tokens, cached, completion_tokens) for cached in (0, prompt_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine's settings, passed as a whole to the loader in the engine process.

    Each field has a row of the same name in `settings.py`.
    """

    load_format: str
    dtype: str
    quantization: str
    device: str
    max_model_len: int | None
    gpu_memory_utilization: float
    cache_bytes: int | None
    image_cache_bytes: int | None
    tensor_parallel_size: int
    speculation: str = "auto"
    cpu_kernels: str = "auto"
    max_batch: int
    max_step_tokens: int | None
    max_chunk_tokens: int | None

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "EngineConfig":
        """Takes the fields from the options of the same names.

        Raises:
            ValueError: two settings contradict each other.
        """
        config = cls(**{field.name: getattr(options, field.name) for field in fields(cls)})
        if config.max_step_tokens is not None and config.max_step_tokens < config.max_batch:
            raise ValueError(
                "--max-step-tokens must be at least --max-batch: each choice in the batch takes a token a step"
            )
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The server's certificate and key. With `client_ca_file`, callers need a certificate signed by it."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.cert_file, self.key_file, self.client_ca_file) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of the server process. `folder` None means the demo model.

    With `launch`, torchrun has started this process and others; only the first of them serves.
    """

    folder: Path | None
    served_names: tuple[str, ...]
    address: str
    tls: ServerTls | None
    socket_mode: int
    api_keys: tuple[str, ...]
    bridge_key: str | None
    data_dir: Path
    ledger_url: str | None
    engine: EngineConfig
    chat_template: Path | None
    max_pending: int
    max_pending_bytes: int
    max_pending_tokens: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    request_timeout_s: float
    drain_timeout_s: float
    prices: Prices
    metrics: str | None
    metrics_alias: str
    otlp_endpoint: str | None
    launch: Launch | None


def resolve(options: argparse.Namespace) -> ServerConfig:
    """Turns parsed options into the configuration.

    Raises:
        ValueError: two settings contradict each other.
    """
    launch = Launch.of(os.environ)
    if launch and launch.size != (size := options.tensor_parallel_size):
        raise ValueError(f"torchrun has started {launch.size} processes, but --tensor-parallel-size is {size}")
    if options.otlp_endpoint is not None:
        check_telemetry()
    folder = None if options.model == "demo" else Path(options.model).expanduser()
    default_name = folder.resolve().name if folder else "spyglass-demo"
    cached = options.price_input if options.price_cached_input is None else options.price_cached_input
    return ServerConfig(
        folder=folder,
        served_names=tuple(dict.fromkeys(options.served_model_name)) or (default_name,),
        address=options.grpc,
        tls=_tls(options),
        socket_mode=int(options.socket_mode, 8),
        api_keys=tuple(options.api_key),
        bridge_key=options.bridge_key,
        data_dir=data_dir_of(options.data_dir),
        ledger_url=options.ledger_url,
        engine=EngineConfig.from_options(options),
        chat_template=Path(options.chat_template).expanduser() if options.chat_template else None,
        max_pending=options.max_pending,
        max_pending_bytes=options.max_pending_bytes,
        max_pending_tokens=options.max_pending_tokens,
        max_images=options.max_images,
        max_image_bytes=options.max_image_bytes,
        max_image_pixels=options.max_image_pixels,
        request_timeout_s=options.request_timeout,
        drain_timeout_s=options.drain_timeout,
        prices=Prices(input=options.price_input, output=options.price_output, cached_input=cached),
        metrics=options.server_metrics,
        metrics_alias=options.metrics_alias,
        otlp_endpoint=options.otlp_endpoint,
        launch=launch,
    )


def _tls(options: argparse.Namespace) -> ServerTls | None:
    cert, key, client_ca = options.grpc_tls_cert, options.grpc_tls_key, options.grpc_tls_client_ca
    if bool(cert) != bool(key):
        raise ValueError("--grpc-tls-cert and --grpc-tls-key belong together")
    if not cert:
        if client_ca:
            raise ValueError("--grpc-tls-client-ca needs --grpc-tls-cert and --grpc-tls-key")
        return None
    if options.grpc.startswith("unix:"):
        raise ValueError("--grpc-tls-cert is for TCP: who may connect to a Unix socket is up to --socket-mode")
    return ServerTls(
        cert_file=Path(cert).expanduser(),
        key_file=Path(key).expanduser(),
        client_ca_file=Path(client_ca).expanduser() if client_ca else None,
    )
