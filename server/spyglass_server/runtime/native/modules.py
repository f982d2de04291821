"""Layers that compute with our own kernels. Each replaces one whose weights it frees."""

import torch
from torch import Tensor, nn

from spyglass_server.runtime.linear import Int8Linear, pack_linears
from spyglass_server.runtime.model.layers import RMSNorm, SwiGLU
from spyglass_server.runtime.model.vision import VisionAttention, VisionEncoder, VisionLayer
from spyglass_server.runtime.native.kernels import Kernels, Panels, load_kernels
from spyglass_server.runtime.native.reads import Reads, TokenReads


class NativeLinear(nn.Module):
    """A linear layer without bias, or two, for gates and for the gated values: silu(gates) * values."""

    def __init__(self, panels: Panels, kernels: Kernels) -> None:
        super().__init__()
        self._panels, self._kernels = panels, kernels

    def forward(self, x: Tensor) -> Tensor:
        """Takes x [rows, in] and returns [rows, out]."""
        return self._kernels.linear(x, self._panels)


class NativeRMSNorm(RMSNorm):
    """A root-mean-square norm, in float32 for weights in any dtype."""

    def __init__(self, norm: RMSNorm, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.eps, self._kernels = norm.eps, kernels
        self._exact = norm.weight.detach().float()

    def add(self, x: Tensor, added: Tensor | None = None, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._kernels.add_rms_norm(x, added, gate, self._exact, self.eps)


class NativeVisionAttention(VisionAttention):
    """Attention inside the vision encoder. The projections are unchanged."""

    def __init__(self, attention: VisionAttention, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.mesh, self._kernels = attention.num_heads, attention.mesh, kernels
        self.qkv, self.o = attention.qkv, attention.o

    def find(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (_, heads, count, head_dim), seen = q.shape, k.shape[2]
        length = self._kernels.run_lengths(heads, heads, head_dim).of(count)
        reads = Reads().set(
            TokenReads(
                slots=torch.arange(seen),
                begins=torch.zeros(count, dtype=torch.int64),
                counts=torch.full((count,), seen),
                runs=torch.tensor([*range(0, count, length), count]),
                num_exact=0,
            )
        )
        each = zip(*(one.transpose(1, 2) for one in (q, k, v)), strict=True)
        return torch.stack([self._kernels.attention(near, (keys, values), reads) for near, keys, values in each]).to(q)


def adapt(module: nn.Module, device: torch.device, *, has_kernels: bool = True) -> Kernels | None:
    """Makes a module on a device compute as fast as possible: on CPUs with our own kernels, which are returned, or
    without them with weights packed for oneDNN."""
    kernels = load_kernels() if has_kernels and device.type == "cpu" else None
    if kernels:
        install(module, kernels)
    pack_linears(module)
    return kernels


def install(module: nn.Module, kernels: Kernels) -> None:
    """Replaces all replaceable layers in a module, freeing them one by one."""
    for name, child in list(module.named_children()):
        if isinstance(child, NativeRMSNorm):
            continue  # an earlier runner has used the model
        if isinstance(child, RMSNorm):
            setattr(module, name, NativeRMSNorm(child, kernels))
        elif isinstance(child, SwiGLU) and (gate_up := _weight(child.gate_up)) and (down := _weight(child.down)):
            gated = zip(*(one.chunk(2) for one in gate_up), strict=True)
            setattr(module, name, nn.Sequential(_native(kernels, *gated), _native(kernels, down)))
        elif weight := _weight(child):
            setattr(module, name, _native(kernels, weight))
        else:
            install(child, kernels)


def install_in_encoder(encoder: VisionEncoder, kernels: Kernels) -> None:
    """Replaces the attention of a vision encoder: torch's products of many rows are as fast as ours."""
    for layer in (*encoder.layers, *encoder.global_layers):
        assert isinstance(layer, VisionLayer)
        layer.attention = NativeVisionAttention(layer.attention, kernels)


def _native(kernels: Kernels, *weights: tuple[Tensor, ...]) -> NativeLinear:
    """Returns a layer with the weights, and any scales, of one or two layers."""
    return NativeLinear(kernels.pack(*zip(*weights, strict=True)), kernels)


def _weight(module: nn.Module) -> tuple[Tensor, ...] | None:
    """Returns the weight of a replaceable layer, with its scales if it is in 8 bits."""
    if isinstance(module, Int8Linear):
        found: tuple[Tensor, ...] = module.get_buffer("_weight"), module.get_buffer("_scale")
    elif type(module) is nn.Linear and "bias" not in dict(module.named_parameters()):
        found = (module.weight.detach(),)
    else:
        return None
    return found if found[0].shape[1] % 2 == 0 else None
