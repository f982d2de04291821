"""The options of `spyglass plan`; options shared with `spyglass serve` are taken from there."""

import argparse

from spyglass_common.settings import Setting, count, non_negative_float, positive_float
from spyglass_server.planning.hardware import GPUS
from spyglass_server.planning.published import CONFIGS
from spyglass_server.settings import SETTINGS as _SERVED

_BY_NAME = {setting.name: setting for setting in _SERVED}


def _number(text: str) -> int:
    """Parses a whole number of 0 or more."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _figure(name: str, text: str, metavar: str) -> Setting:
    return Setting(name, f"{text} (default: as the table has it)", None, parse=positive_float, metavar=metavar)


def _gpu(text: str) -> str:
    if text not in GPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(GPUS)}")
    return text


GPU_FIGURES = (
    _figure("memory-gb", "memory of a GPU, in 10^9 bytes", "GB"),
    _figure("bandwidth-gbs", "bandwidth of a GPU's memory, in 10^9 bytes a second", "GB/S"),
    _figure("fp32-tflops", "operations in float32, in 10^12 a second", "TFLOPS"),
    _figure("bf16-tflops", "dense operations in bfloat16, in 10^12 a second", "TFLOPS"),
    _figure("fp8-tflops", "dense operations in fp8, in 10^12 a second", "TFLOPS"),
    _figure("link-gbs", "bandwidth from each GPU to the others, one direction, in 10^9 bytes a second", "GB/S"),
    _figure("link-latency-us", "time of a small sum over all GPUs, in microseconds", "US"),
)
"""Each replaces the field of `Gpu` with its name."""

SETTINGS = (
    Setting("model", "a folder or file with a config.json, or a published size: " + ", ".join(CONFIGS), "11b",
            metavar="|".join((*CONFIGS, "PATH"))),
    Setting("gpu", f"the GPU: {', '.join(GPUS)} (default: h100-sxm)", None, parse=_gpu, metavar="NAME"),
    _BY_NAME["tensor-parallel-size"],
    _BY_NAME["dtype"],
    _BY_NAME["quantization"],
    count("prompt-tokens", "tokens of a prompt", 1024),
    count("answer-tokens", "tokens of an answer", 256),
    Setting("pictures", "pictures in a prompt", 0, parse=_number, metavar="N"),
    count("tiles", "tiles of each picture", 4),
    count("at-once", "requests at once (default: as many as fit)", None),
    _BY_NAME["max-batch"],
    _BY_NAME["max-step-tokens"],
    _BY_NAME["max-chunk-tokens"],
    _BY_NAME["gpu-memory-utilization"],
    *GPU_FIGURES,
    Setting("gpu-price", "price of a GPU for an hour, in US dollars (default: a typical one)", None,
            parse=non_negative_float, metavar="USD"),
    _BY_NAME["price-input"],
    _BY_NAME["price-output"],
    _BY_NAME["device"],
)  # fmt: skip
"""`price-input` and `price-output` are the list prices shown beside computed ones; `device` is for `--measure`."""
