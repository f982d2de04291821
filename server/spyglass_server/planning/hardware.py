"""Figures of GPUs, from their vendors' data sheets, and how much of them is reached."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as in its data sheet: operations are dense, with sums in float32; links count one direction.

    `fp8_tflops` is None without fp8 units. `price` is a typical on-demand price per hour, in US dollars: of all figures
    it changes most.
    """

    name: str
    memory_gb: float
    bandwidth_gbs: float
    fp32_tflops: float
    bf16_tflops: float
    fp8_tflops: float | None
    link_gbs: float
    link_latency_us: float
    price: float


_NVLINK_US, _PCIE_US = 12.0, 25.0
"""Time of a small sum over ranks."""

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name.lower().replace(" ", "-"): gpu
        for gpu in (
            Gpu(
                name="H100 SXM", memory_gb=80, bandwidth_gbs=3350, fp32_tflops=67, bf16_tflops=989, fp8_tflops=1979,
                link_gbs=450, link_latency_us=_NVLINK_US, price=2.99,
            ),
            Gpu(
                name="H100 PCIe", memory_gb=80, bandwidth_gbs=2000, fp32_tflops=51, bf16_tflops=756, fp8_tflops=1513,
                link_gbs=64, link_latency_us=_PCIE_US, price=2.39,
            ),
            Gpu(
                name="H200", memory_gb=141, bandwidth_gbs=4800, fp32_tflops=67, bf16_tflops=989, fp8_tflops=1979,
                link_gbs=450, link_latency_us=_NVLINK_US, price=3.79,
            ),
            Gpu(
                name="B200", memory_gb=180, bandwidth_gbs=7700, fp32_tflops=75, bf16_tflops=2250, fp8_tflops=4500,
                link_gbs=900, link_latency_us=_NVLINK_US, price=5.99,
            ),
            Gpu(
                name="A100 80GB", memory_gb=80, bandwidth_gbs=2039, fp32_tflops=19.5, bf16_tflops=312, fp8_tflops=None,
                link_gbs=300, link_latency_us=_NVLINK_US, price=1.79,
            ),
            Gpu(
                name="A100 40GB", memory_gb=40, bandwidth_gbs=1555, fp32_tflops=19.5, bf16_tflops=312, fp8_tflops=None,
                link_gbs=300, link_latency_us=_NVLINK_US, price=1.29,
            ),
            Gpu(
                name="L40S", memory_gb=48, bandwidth_gbs=864, fp32_tflops=91.6, bf16_tflops=362, fp8_tflops=733,
                link_gbs=32, link_latency_us=_PCIE_US, price=0.99,
            ),
            Gpu(
                name="RTX 4090", memory_gb=24, bandwidth_gbs=1008, fp32_tflops=82.6, bf16_tflops=165, fp8_tflops=330,
                link_gbs=32, link_latency_us=_PCIE_US, price=0.59,
            ),
            Gpu(
                name="RTX 5090", memory_gb=32, bandwidth_gbs=1792, fp32_tflops=105, bf16_tflops=210, fp8_tflops=419,
                link_gbs=64, link_latency_us=_PCIE_US, price=0.89,
            ),
            Gpu(
                name="A10G", memory_gb=24, bandwidth_gbs=600, fp32_tflops=31.2, bf16_tflops=70, fp8_tflops=None,
                link_gbs=32, link_latency_us=_PCIE_US, price=1.01,
            ),
            Gpu(
                name="L4", memory_gb=24, bandwidth_gbs=300, fp32_tflops=30.3, bf16_tflops=121, fp8_tflops=242,
                link_gbs=32, link_latency_us=_PCIE_US, price=0.71,
            ),
        )
    }
)  # fmt: skip
"""By the name that `--gpu` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What steps reach: bytes per second; operations per second for the text model's linear layers and for everything
    else; bytes per second between ranks; the time of a small sum over ranks, and of each kernel."""

    bytes_per_s: float
    linear_operations_per_s: float
    operations_per_s: float
    link_bytes_per_s: float
    sum_s: float
    kernel_s: float


_BANDWIDTH_SHARE = 0.83
"""Copies reach 0.9 of the data sheet's bandwidth, and products that read weights 8 % less than that."""
_OPERATIONS_SHARE = 0.6
_LINK_SHARE = 0.7
_KERNEL_S = 1.2e-6
"""Time per kernel of a recorded step."""


def rates_of(gpu: Gpu, dtype: str, quantization: str) -> Rates:
    """Returns what a GPU reaches of its data sheet with numbers in one precision and weights in another."""
    plain = gpu.fp32_tflops if dtype == "float32" else gpu.bf16_tflops
    linear = (gpu.fp8_tflops or plain) if quantization == "fp8" else plain
    return Rates(
        bytes_per_s=gpu.bandwidth_gbs * 1e9 * _BANDWIDTH_SHARE,
        linear_operations_per_s=linear * 1e12 * _OPERATIONS_SHARE,
        operations_per_s=plain * 1e12 * _OPERATIONS_SHARE,
        link_bytes_per_s=gpu.link_gbs * 1e9 * _LINK_SHARE,
        sum_s=gpu.link_latency_us * 1e-6,
        kernel_s=_KERNEL_S,
    )
