"""The results of the check as a table, with the verdicts last."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A result: what was found, in which stage, and its figures."""


@dataclass(frozen=True, slots=True)
class Lines:
    """All results in order."""

    lines: tuple[Line, ...]

    @classmethod
    def read(cls, file: Path) -> "Lines":
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return cls(tuple(json.loads(line) for line in text.splitlines()))

    def of(self, what: str, **figures: object) -> list[Line]:
        """Those with these figures."""
        return [line for line in self.lines if line["what"] == what and figures.items() <= line.items()]

    def value(self, name: str, what: str, **figures: object) -> Any:
        """A figure of the first of them; None where there is none."""
        return next((line[name] for line in self.of(what, **figures) if name in line), None)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure should be at least, or at most; the figure is None where it was not measured."""

    what: str
    figure: float | None
    limit: float
    _: KW_ONLY
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        assert self.figure is not None
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        how = "at least" if self.at_least else "at most"
        return f"- {'met' if self.is_met else 'missed'}: {self.what}: {self.figure:.3g}, {how} {self.limit:g}"


def report(lines: Lines, failures: Mapping[str, str]) -> tuple[str, bool]:
    """The text, and whether all stages ran to their end and everything was exact; `failures` are of whole stages."""
    exact = lines.of("exactness")
    inexact = [line for line in exact if not line["ok"]]
    failed = [f"{name} {text}" for name, text in failures.items()]
    failed += [f"{line['stage']}: {line['of']}: {line['error']}" for line in lines.of("failure")]
    text = [*_facts(lines), "", *_table(lines), "", *_traces(lines)]
    text += [str(bar) for bar in _bars(lines) if bar.figure is not None]
    text += ["", f"exactness: {len(exact) - len(inexact)} met, {len(inexact)} missed"]
    text += [
        f"- MISSED {line['case']}: {line['of']}: {line['error']:.3g}, at most {line['bar']:.3g}" for line in inexact
    ]
    text += [f"- FAILED {one}" for one in failed]
    text += [f"- skipped {line['skipped']}" for line in lines.lines if "skipped" in line]
    return "\n".join(text) + "\n", not inexact and not failed


def _facts(lines: Lines) -> Iterator[str]:
    """Short results that need no table."""
    for what in ("facts", "limits", "memory", "build", "graphs", "server start"):
        for line in lines.of(what):
            figures = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("what", "stage"))
            yield f"- {what} ({line['stage']}): {figures}"


def _table(lines: Lines) -> Iterator[str]:
    """All that was timed."""
    yield "| what | case | ms | limit ms | ratio | more |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for line in lines.lines:
        if "ms" in line:
            cells = [line.get(name, "") for name in ("what", "case", "ms", "limit_ms", "ratio", "more")]
            yield f"| {' | '.join(map(str, cells))} |"


def _traces(lines: Lines) -> Iterator[str]:
    for line in lines.of("trace"):
        step = f"{line['rows']} rows, {line['num_seeing']} of which see an image"
        yield f"trace of a decode step of {step}: {line['kernels']} kernels, {line['device_ms']} ms on the device;"
        yield f"the host: {line['host_calls']}"
        for name, count, ms in line["longest"]:
            yield f"    {count:8} {ms:8} ms  {name}"
        yield ""


def _bars(lines: Lines) -> Iterator[Bar]:
    yield from _decode_bars(lines)
    yield Bar("ratio of a prefill of 2048", lines.value("ratio", "prefill", tokens=2048, start=0), 0.55)
    first_ms = lines.value("ms", "first token about an image") if lines.value("gpu", "facts") != "none" else None
    yield Bar("ms to the first token about an image of four tiles", first_ms, 150, at_least=False)
    greedy, top_p = (lines.value("ms", "sampling", rows=64, how=how) for how in ("greedy", "temperature and top_p"))
    more_ms = None if None in (greedy, top_p) else top_p - greedy
    yield Bar("ms of top_p over greedy, 64 rows", more_ms, 1.0, at_least=False)
    new = lines.value("over_second", "longest prefill of a new length")
    yield Bar("longest prefill of a new length over the second", new, 1.5, at_least=False)
    yield from _serving_bars(lines)


def _decode_bars(lines: Lines) -> Iterator[Bar]:
    """Of steps without images."""
    for size, weights, count, least in (
        ("11B", "bfloat16", 1, 0.70), ("11B", "bfloat16", 64, 0.65), ("90B/8", "fp8", 1, 0.6),
    ):  # fmt: skip
        figures = {"size": size, "weights": weights, "rows": count, "context": 1024, "num_seeing": 0}
        ratio = lines.value("ratio", "decode", **figures)
        yield Bar(f"ratio of decode, {size} in {weights}, {count} rows of 1024", ratio, least)
    ratio = lines.value("ratio", "decode of unlike lengths", size="11B", weights="bfloat16")
    yield Bar("ratio of decode of unlike lengths", ratio, 0.6)


def _serving_bars(lines: Lines) -> Iterator[Bar]:
    """Of 32 requests at once."""
    engine = lines.of("engine", together=32)
    for what in ("engine", "serving over gRPC", "serving over HTTP"):
        for line in lines.of(what, together=32):
            share = line["gap_p99_ms"] / line["ms"]
            yield Bar(f"p99 over median between tokens, {what}, 32 at once", share, 2, at_least=False)
            if engine and what != "engine":
                share = line["tokens_per_s"] / engine[0]["tokens_per_s"]
                yield Bar(f"tokens/s over the engine's, {what}, 32 at once", share, 0.9)
