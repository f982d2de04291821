"""Starts kernels: the one place through which all of them go."""

from typing import Any

from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **options: Any) -> None:
    """Starts a kernel on the current stream, one program for each place of the grid; none when that has no place."""
    if 0 not in grid:
        start(kernel, grid, *arguments, **options)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **options: Any) -> None:
    """Starts a kernel; tests that have no device look at what it is given instead."""
    kernel[grid](*arguments, **options)
