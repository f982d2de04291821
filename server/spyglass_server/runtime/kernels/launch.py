"""Launches kernels; all launches go through this module."""

from typing import Any

from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **options: Any) -> None:
    """Launches a kernel on the current stream, one program for each place of the grid; none if the grid is empty."""
    if 0 not in grid:
        start(kernel, grid, *arguments, **options)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **options: Any) -> None:
    """Launches a kernel; tests without a device inspect its arguments instead."""
    kernel[grid](*arguments, **options)
