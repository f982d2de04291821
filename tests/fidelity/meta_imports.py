"""Meta's reference, imported from the unpacked wheel llama-models 0.3.0 without what it leans on.

Owns where the wheel lies and exact stand-ins, for one process on the CPU, of the parts of fairscale and
torchvision that it uses. Neither the stand-ins nor the wheel stay importable afterwards.
"""

import enum
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

_CACHE = Path(__file__).parents[2] / ".cache" / "llama-models"


@dataclass(frozen=True)
class Meta:
    """The reference's modules."""

    args: Any
    model: Any
    image_transform: Any
    chat_format: Any
    tokenizer: Any
    datatypes: Any
    tokenizer_path: Path


def import_meta() -> Meta:
    """Imports the reference from $SPYGLASS_LLAMA_MODELS or the repository's cache."""
    root = Path(os.environ.get("SPYGLASS_LLAMA_MODELS") or _CACHE)
    if not (root / "llama_models").is_dir():
        pytest.fail(
            f"Meta's reference is not in {root}: run `make test`, or "
            f"`pip install --no-deps --target {_CACHE} llama-models==0.3.0`"
        )
    with _importable(root):
        llama3 = "llama_models.llama3."
        model = importlib.import_module(llama3 + "multimodal.model")
        # One process: nothing is split, so nothing is to be summed or gathered.
        for collective in ("reduce_from_tensor_model_parallel_region", "gather_from_tensor_model_parallel_region"):
            setattr(model, collective, lambda tensor: tensor)
        return Meta(
            args=importlib.import_module(llama3 + "args"),
            model=model,
            image_transform=importlib.import_module(llama3 + "multimodal.image_transform"),
            chat_format=importlib.import_module(llama3 + "chat_format"),
            tokenizer=importlib.import_module(llama3 + "tokenizer"),
            datatypes=importlib.import_module("llama_models.datatypes"),
            tokenizer_path=root / "llama_models" / "llama3" / "tokenizer.model",
        )


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    before = dict(sys.modules)
    sys.modules.update(_stand_ins())
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("llama_models", "fairscale", "torchvision"):
                del sys.modules[name]


def _stand_ins() -> dict[str, ModuleType]:
    parallel = "fairscale.nn.model_parallel"
    initialize = _module(
        f"{parallel}.initialize",
        get_model_parallel_world_size=lambda: 1,
        get_model_parallel_rank=lambda: 0,
        get_model_parallel_group=lambda: None,
    )
    layers = _module(
        f"{parallel}.layers",
        ColumnParallelLinear=_Linear,
        RowParallelLinear=_Linear,
        VocabParallelEmbedding=_Embedding,
    )
    functional = _module("torchvision.transforms.functional", resize=_resize)
    transforms = _module(
        "torchvision.transforms",
        ToTensor=lambda: _to_tensor,
        Normalize=_Normalize,
        InterpolationMode=_InterpolationMode,
        functional=functional,
    )
    packages = [
        _module("fairscale"),
        _module("fairscale.nn"),
        _module(parallel, initialize=initialize, layers=layers),
        _module("torchvision", transforms=transforms),
    ]
    return {module.__name__: module for module in (*packages, initialize, layers, transforms, functional)}


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    return module


class _Linear(nn.Linear):
    """Fairscale's parallel linears with a single part."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gather_output: bool = True,
        input_is_parallel: bool = False,
        init_method: Callable[[torch.Tensor], object] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)


class _Embedding(nn.Embedding):
    """Fairscale's parallel embedding with a single part."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, init_method: Callable[[torch.Tensor], object] | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)


class _InterpolationMode(enum.Enum):
    BILINEAR = "bilinear"


class _Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool) -> None:
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self._mean) / self._std


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB to float32 [3, height, width] in 0 … 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def _resize(image: Image.Image, size: tuple[int, int], interpolation: _InterpolationMode) -> Image.Image:
    """What torchvision does with a Pillow image: Pillow's own resize. `size` is (height, width)."""
    assert interpolation is _InterpolationMode.BILINEAR
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
