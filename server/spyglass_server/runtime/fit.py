"""Whether a model fits a device, in the operator's terms: what it needs, what there is, what would fit instead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from spyglass_server.planning.memory import CacheSizes, CacheUnits, CacheWishes, ParameterCount, divide, gigabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device's memory in bytes, and how much of it may be used: `share` of it, less what others already hold."""

    name: str
    total: int
    share: float = 1.0
    held: int = 0

    @property
    def budget(self) -> int:
        """The usable bytes."""
        return int(self.total * self.share) - self.held

    def __str__(self) -> str:
        text = f"{self.name} has {gigabytes(self.total)}"
        if self.share < 1:
            text += (
                f", of which --gpu-memory-utilization {self.share:g} allows {gigabytes(int(self.total * self.share))}"
            )
        return text + (f" and others hold {gigabytes(self.held)}" if self.held else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model on a device, and the requested caches; `units` are their units in each precision to choose from."""

    count: ParameterCount
    device: Device
    wishes: CacheWishes
    units: Mapping[torch.dtype, CacheUnits]
    quantizations: tuple[str, ...]
    dtype: torch.dtype
    quantization: str

    @property
    def weight_bytes(self) -> int:
        """The size of the weights as they will be loaded."""
        return self.count.nbytes(self.dtype.itemsize, self.quantization)

    def check(self) -> None:
        """Checks, before anything is loaded, that the weights and the smallest caches fit.

        Raises:
            ValueError: they do not; the text says what would.
        """
        left = self.device.budget - self.weight_bytes
        form = "" if self.quantization == "none" else f"{self.quantization} and "
        weights = f"the weights take {gigabytes(self.weight_bytes)} in {form}{precision(self.dtype)}"
        if left < 0:
            raise ValueError(f"{weights}, but {self.device}{self._advice()}")
        if self.wishes.least(self.units[self.dtype]) > left:
            raise ValueError(f"{weights}, and {self.device}; {self._shortage(left)}{self._advice()}")

    def divide(self, weight_bytes: int, step_bytes: int) -> CacheSizes:
        """Divides the memory that loaded weights and the largest step leave between the caches.

        Raises:
            ValueError: too little is left; the text says what would fit.
        """
        left = self.device.budget - weight_bytes - step_bytes
        units = self.units[self.dtype]
        if self.wishes.least(units) > left:
            taken = f"the weights take {gigabytes(weight_bytes)} and a step up to {gigabytes(step_bytes)}"
            raise ValueError(f"{taken}, and {self.device}; {self._shortage(left)}{self._advice(step_bytes)}")
        return divide(left, self.wishes, units)

    def _shortage(self, left: int) -> str:
        """Returns a text that too little is left for the caches."""
        units, wishes = self.units[self.dtype], self.wishes
        text, images = (gigabytes(need) for need in (wishes.least_text(units), wishes.least_images(units)))
        if wishes.cache_bytes is not None:
            pages = f"--cache-bytes is {text}"
        elif wishes.max_model_len is not None:
            pages = f"--max-model-len {wishes.max_model_len} needs {text}"
        else:
            pages = f"a page of text needs {text}"
        tiles = f"an image needs {images}" if wishes.image_cache_bytes is None else f"--image-cache-bytes is {images}"
        return f"that leaves {gigabytes(max(0, left))} for caches, where {pages} and {tiles}"

    def _advice(self, step_bytes: int = 0) -> str:
        """Returns a text to append: what would fit instead, or how much memory would be needed."""
        nbytes = self.count.nbytes
        needs = {
            (dtype, quantization): nbytes(dtype.itemsize, quantization) + step_bytes + self.wishes.least(units)
            for dtype, units in self.units.items()
            for quantization in self.quantizations
        }
        advice = []
        for form, need in needs.items():
            if need <= self.device.budget:
                advice.append(f"{self._options(*form)} needs {gigabytes(need)}")
            elif tokens := self._shorter(need, self.units[form[0]]):
                advice.append(f"{self._options(*form)} --max-model-len {tokens} fits".lstrip())
        if advice:
            return "; " + "; ".join(advice)
        form = min(needs, key=needs.__getitem__)
        total = math.ceil((needs[form] + self.device.held) / self.device.share)
        return (
            f"; no --dtype or --quantization fits: the smallest, {precision(form[0])} with --quantization {form[1]}, "
            f"needs {gigabytes(needs[form])}, which takes a device of {gigabytes(total)}"
        )

    def _shorter(self, need: int, units: CacheUnits) -> int:
        """Returns the longest sequence with enough room, in a form in which the requested length does not fit."""
        if self.wishes.max_model_len is None or self.wishes.cache_bytes is not None:
            return 0
        room = self.device.budget - need + self.wishes.least_text(units)
        return max(0, room // units.page_bytes * units.page_size)

    def _options(self, dtype: torch.dtype, quantization: str) -> str:
        """Returns the options that differ for a form."""
        options = [f"--dtype {precision(dtype)}"] if dtype != self.dtype else []
        if quantization != self.quantization:
            options.append(f"--quantization {quantization}")
        return " ".join(options)


def precision(dtype: torch.dtype) -> str:
    """Returns a precision's name in options."""
    return str(dtype).removeprefix("torch.")
