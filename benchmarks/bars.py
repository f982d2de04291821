"""Figures with pass limits, and their table."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure, its limit, and whether it is met."""

    name: str
    measured: str
    wanted: str
    is_met: bool

    @classmethod
    def at_most(cls, name: str, measured: float, limit: float, unit: str = "") -> "Bar":
        """For a figure that must not exceed a limit."""
        return cls(
            name=name,
            measured=_written(measured, unit),
            wanted=f"at most {_written(limit, unit)}",
            is_met=measured <= limit,
        )

    @classmethod
    def at_least(cls, name: str, measured: float, limit: float, unit: str = "") -> "Bar":
        """For a figure that must not be below a limit."""
        return cls(
            name=name,
            measured=_written(measured, unit),
            wanted=f"at least {_written(limit, unit)}",
            is_met=measured >= limit,
        )

    @classmethod
    def none(cls, name: str, found: Sequence[object]) -> "Bar":
        """For things that must not happen."""
        return cls(
            name=name,
            measured=str(len(found)) + (f": {found[0]}" if found else ""),
            wanted="0",
            is_met=not found,
        )


def report(bars: Sequence[Bar]) -> int:
    """Prints the table. Returns the exit status of a program: 1 if a bar is missed."""
    print("| figure | measured | bar | |\n| --- | ---: | ---: | --- |")
    for bar in bars:
        print(f"| {bar.name} | {bar.measured} | {bar.wanted} | {'PASS' if bar.is_met else 'FAIL'} |")
    return 0 if all(bar.is_met for bar in bars) else 1


def _written(value: float, unit: str) -> str:
    return f"{value:,.3g} {unit}".strip() if abs(value) < 1000 else f"{value:,.0f} {unit}".strip()
