"""Figures that are held to a bar, and the table that says so."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure, what it must be, and whether it is."""

    name: str
    measured: str
    wanted: str
    is_met: bool

    @classmethod
    def at_most(cls, name: str, measured: float, limit: float, unit: str = "") -> "Bar":
        """For what must not be more than a limit."""
        return cls(
            name=name,
            measured=_written(measured, unit),
            wanted=f"at most {_written(limit, unit)}",
            is_met=measured <= limit,
        )

    @classmethod
    def at_least(cls, name: str, measured: float, limit: float, unit: str = "") -> "Bar":
        """For what must not be less than a limit."""
        return cls(
            name=name,
            measured=_written(measured, unit),
            wanted=f"at least {_written(limit, unit)}",
            is_met=measured >= limit,
        )

    @classmethod
    def none(cls, name: str, found: Sequence[object]) -> "Bar":
        """For what must not happen."""
        return cls(
            name=name,
            measured=str(len(found)) + (f": {found[0]}" if found else ""),
            wanted="0",
            is_met=not found,
        )


def report(bars: Sequence[Bar]) -> int:
    """Prints the table. Returns the exit status of a program: 1 where a bar is missed."""
    print("| figure | measured | bar | |\n| --- | ---: | ---: | --- |")
    for bar in bars:
        print(f"| {bar.name} | {bar.measured} | {bar.wanted} | {'PASS' if bar.is_met else 'FAIL'} |")
    return 0 if all(bar.is_met for bar in bars) else 1


def _written(value: float, unit: str) -> str:
    return f"{value:,.3g} {unit}".strip() if abs(value) < 1000 else f"{value:,.0f} {unit}".strip()
