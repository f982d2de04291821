"""The settings of the server: options of `spyglass-server`. Imports nothing heavy, since the launcher reads it too."""

from spyglass_common import shared_settings as shared
from spyglass_common.settings import Setting, choice, count, fraction, non_negative_float, tcp_address

_ENGINE = (
    choice(
        "load-format",
        "auto loads the checkpoint's weights; dummy makes random ones, the same on each start, for benchmarks and "
        "planning: the folder then needs no weight files",
        "auto",
        "auto|dummy",
    ),
    choice("dtype", "precision to compute in; auto uses the checkpoint's own", "auto", "auto|bfloat16|float32"),
    choice(
        "quantization",
        "fp8 or int8 keeps the weights of the text model's linear layers in 8 bits: less memory, slightly different "
        "answers; int8 is for CPUs only; none keeps them as the checkpoint does, which may be in fp8",
        "none",
        "none|fp8|int8",
    ),
    choice(
        "device", "device to compute on; auto uses the first GPU, or the CPU if there is none", "auto", "auto|cpu|cuda"
    ),
    count(
        "max-model-len",
        "maximum length of prompt and answer together, in tokens (default: 32768, or the model's own maximum "
        "if that is less)",
        None,
    ),
    Setting(
        "gpu-memory-utilization",
        "the fraction of a GPU's memory that weights, caches and activations may take together",
        0.9,
        parse=fraction,
        metavar="FRACTION",
    ),
    count(
        "cache-bytes",
        "memory for the KV cache of text, in bytes (default: 2147483648 on a CPU, what is free on a GPU)",
        None,
        "BYTES",
    ),
    count(
        "image-cache-bytes",
        "memory for the cross-attention cache of images, in bytes (default: 1073741824 on a CPU, up to a third of what "
        "is free on a GPU)",
        None,
        "BYTES",
    ),
    count(
        "tensor-parallel-size",
        "number of devices on this machine that share the model: GPUs, or processes on a CPU",
        1,
    ),
    choice(
        "cpu-kernels",
        "auto compiles Spyglass's own kernels for this processor on the first start, if there is a C compiler; off "
        "uses PyTorch's, which are slower",
        "auto",
        "auto|off",
    ),
    choice(
        "speculation",
        "auto drafts an answer's next tokens and checks several at once, which changes no answer: on CPUs, while few "
        "answers are running; off never does",
        "auto",
        "auto|off",
    ),
    count("max-batch", "maximum number of sequences (choices) in a batch", 64),
    count(
        "max-step-tokens",
        "maximum number of tokens in one step of the engine, at least --max-batch (default: 512 on a CPU, 4096 on a "
        "GPU)",
        None,
    ),
    count(
        "max-chunk-tokens",
        "maximum number of prompt tokens in a step that also decodes: a smaller one lowers inter-token latency, "
        "a larger one time to first token (default: 64 on a CPU, 512 on a GPU)",
        None,
    ),
)
"""Each is a field of `EngineConfig`."""

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model",
        "a checkpoint folder, or demo for the checkpoint of the package spyglass-demo",
        "demo",
        metavar="PATH|demo",
    ),
    Setting(
        "served-model-name",
        "a name that clients use for the model; several may be given; requests that name no model get the first "
        "(default: the folder's name)",
        (),
        metavar="NAME",
        multiple=True,
    ),
    shared.GRPC,
    Setting(
        "grpc-tls-cert",
        "certificate with its chain for gRPC over TLS (PEM); a changed file is used for new connections without a "
        "restart",
        None,
        metavar="FILE",
    ),
    Setting("grpc-tls-key", "the key of --grpc-tls-cert (PEM)", None, metavar="FILE"),
    Setting(
        "grpc-tls-client-ca",
        "gRPC callers need a certificate from these authorities in addition to their key (mutual TLS; PEM)",
        None,
        metavar="FILE",
    ),
    shared.SOCKET_MODE,
    Setting(
        "api-key",
        "a key that clients may use; several may be given (default: the server makes one on its first "
        "start, keeps its hash, and shows it once)",
        (),
        metavar="KEY",
        multiple=True,
        secret=True,
    ),
    shared.BRIDGE_KEY,
    Setting("data-dir", "folder for keys and the usage ledger (default: ~/.local/share/spyglass)", None, metavar="DIR"),
    Setting(
        "ledger-url",
        "database for usage records: postgresql://USER:PASSWORD@HOST/NAME (default: SQLite in the data folder)",
        None,
        metavar="URL",
        secret=True,
    ),
    *_ENGINE,
    Setting("chat-template", "a Jinja file to use instead of the checkpoint's own chat template", None, metavar="FILE"),
    count(
        "max-pending", "maximum number of generations in the server, running and queued; beyond it callers get 429", 256
    ),
    shared.MAX_PENDING_BYTES,
    count("max-pending-tokens", "maximum number of tokens in the prompts of all generations in the server", 1 << 20),
    count("max-images", "maximum number of images in a conversation", 16),
    shared.MAX_IMAGE_BYTES,
    count("max-image-pixels", "maximum size of an image, in pixels", 40_000_000),
    shared.REQUEST_TIMEOUT,
    shared.DRAIN_TIMEOUT,
    Setting("price-input", "US dollars per million prompt tokens", 0.35, parse=non_negative_float, metavar="USD"),
    Setting("price-output", "US dollars per million generated tokens", 0.40, parse=non_negative_float, metavar="USD"),
    Setting(
        "price-cached-input",
        "US dollars per million prompt tokens found in a cache (default: the input price)",
        None,
        parse=non_negative_float,
        metavar="USD",
    ),
    shared.LOG_LEVEL,
    shared.LOG_FORMAT,
    shared.OTLP_ENDPOINT,
    Setting(
        "server-metrics",
        "where the server serves Prometheus metrics (default: nowhere)",
        None,
        parse=tcp_address,
        metavar="HOST:PORT",
    ),
    choice(
        "metrics-alias",
        "vllm also exposes the server's metrics under vLLM's names, for routers and autoscalers that expect them",
        "none",
        "none|vllm",
    ),
)
