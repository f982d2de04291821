"""The results of the check as a table, with the verdicts last."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A result: its stage and its figures."""


@dataclass(frozen=True, slots=True)
class Lines:
    """All results in order."""

    lines: tuple[Line, ...]

    @classmethod
    def read(cls, file: Path) -> "Lines":
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return cls(tuple(json.loads(line) for line in text.splitlines()))

    def of(self, stage: str, **figures: object) -> list[Line]:
        """Those of a stage that was computed, with these figures."""
        return [line for line in self.lines if line["stage"] == stage and figures.items() <= line.items()]

    def value(self, name: str, stage: str, **figures: object) -> Any:
        """A figure of the first of them; None where there is none."""
        return next((line[name] for line in self.of(stage, **figures) if name in line), None)


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


def report(lines: Lines, failures: Mapping[str, str]) -> tuple[str, bool]:
    """The text, and whether all parts ran to their end and everything was exact; `failures` are of whole parts."""
    exact = lines.of("exactness")
    inexact = [line for line in exact if not line["ok"]]
    failed = [f"{name} {text}" for name, text in failures.items()]
    failed += [f"{line['of']}: {line['error']}" for line in lines.of("failure")]
    failed += [f"{line['stage']}: {line['skipped']}" for line in lines.lines if line.get("failed")]
    text = [*_facts(lines), "", *_table(lines), "", *_traces(lines), *_speed_verdicts(lines), ""]
    text.append(f"exactness: {len(exact) - len(inexact)} met, {len(inexact)} missed")
    text += [
        f"- MISSED {line['case']}: {line['what']}: {line['error']:.3g}, at most {line['bar']:.3g}" for line in inexact
    ]
    text += [f"- FAILED {one}" for one in failed]
    text += [
        f"- skipped {line['stage']}: {line['skipped']}"
        for line in lines.lines
        if "skipped" in line and not line.get("failed")
    ]
    return "\n".join(text) + "\n", not inexact and not failed


def _facts(lines: Lines) -> Iterator[str]:
    """Short results that need no table."""
    stages = (
        "facts", "limits", "memory", "build", "peak", "graphs", "server start", "small kernels",
        "flash attention's options", "flash attention of a chunk", "fp8 products",
    )  # fmt: skip
    for stage in stages:
        for line in lines.of(stage):
            if "skipped" not in line:
                figures = ", ".join(f"{name} {value}" for name, value in line.items() if name != "stage")
                yield f"- {stage}: {figures}"


_CASES: Mapping[str, Callable[[Line], tuple[str, str]]] = {
    "decode": lambda line: (
        f"{line['rows']} rows, context {line['context']}, {line['num_seeing']} see an image",
        f"{line['tokens_per_s']} tokens/s",
    ),
    "decode of unlike lengths": lambda line: (f"{line['rows']} rows", ""),
    "prefill": lambda line: (f"{line['tokens']} after {line['start']}", f"{line['tokens_per_s']} tokens/s"),
    "prefill of new lengths": lambda line: ("one after another", ""),
    "image": lambda line: (f"four tiles, {line['slices']} slices", f"first {line['first_ms']} ms"),
    "sampling": lambda line: (f"{line['rows']} rows, {line['how']}", ""),
    "paged attention": lambda line: (
        f"{line['rows']} rows, context {line['context']}",
        f"with copies {line['copying_ms']} ms ({line['copying_ratio']})",
    ),
}
"""How a line of the table names what was measured, and what it says beside the times."""


def _table(lines: Lines) -> Iterator[str]:
    yield "| what | case | ms | limit ms | ratio | more |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for stage, case_of in _CASES.items():
        for line in lines.of(stage):
            if "skipped" not in line:
                case, more = case_of(line)
                cells = [stage, case, line["ms"], line.get("limit_ms", ""), line.get("ratio", ""), more]
                yield f"| {' | '.join(map(str, cells))} |"
    for stage in ("engine", "serving"):
        for line in lines.of(stage):
            case = f"{line['together']} at once, {line['num_images']} images"
            first = f"first token {line['first_token_ms']} (p99 {line['first_token_p99_ms']})"
            gaps = f"between tokens {line['gap_ms']} (p99 {line['gap_p99_ms']})"
            yield f"| {stage} | {case} | {first}, {gaps} | | | {line['tokens_per_s']} tokens/s |"


def _traces(lines: Lines) -> Iterator[str]:
    for line in lines.of("trace"):
        step = f"{line['rows']} rows, {line['num_seeing']} of which see an image"
        yield f"trace of a decode step of {step}: {line['kernels']} kernels, {line['device_ms']} ms on the device;"
        yield f"the host: {line['host_calls']}"
        for name, count, ms in line["longest"]:
            yield f"    {count:8} {ms:8} ms  {name}"
        yield ""


def _speed_verdicts(lines: Lines) -> Iterator[str]:
    for bar in _bars(lines):
        if bar.figure is not None:
            how = "at least" if bar.at_least else "at most"
            yield f"- {'met' if bar.is_met else 'missed'}: {bar.what}: {bar.figure:.3g}, {how} {bar.limit:g}"


def _bars(lines: Lines) -> Iterator[Bar]:
    for count, least in ((1, 0.70), (64, 0.65)):
        ratio = lines.value("ratio", "decode", rows=count, context=1024, num_seeing=0)
        yield Bar(f"ratio of decode, {count} rows, context 1024", ratio, least)
    yield Bar("ratio of decode of unlike lengths", lines.value("ratio", "decode of unlike lengths", rows=32), 0.6)
    for tokens, start, least in ((2048, 0, 0.55), (512, 16_384, 0.35)):
        ratio = lines.value("ratio", "prefill", tokens=tokens, start=start)
        yield Bar(f"ratio of a prefill of {tokens} after {start}", ratio, least)
    if lines.of("sampling", rows=64):  # those of the full size
        yield Bar("ratio of an image", lines.value("ratio", "image"), 0.4)
    greedy, top_p = (lines.value("ms", "sampling", rows=64, how=how) for how in ("greedy", "temperature and top_p"))
    yield Bar(
        "ms of top_p over greedy, 64 rows", None if None in (greedy, top_p) else top_p - greedy, 1.0, at_least=False
    )
    new = lines.value("ms", "prefill of new lengths") or []
    if len(new) > 2:
        yield Bar("longest prefill of a new length over the second", max(new[1:]) / new[1], 1.5, at_least=False)
    engine, serving = (lines.of(stage, together=32) for stage in ("engine", "serving"))
    if engine:
        yield Bar(
            "p99 over median between tokens, 32 at once",
            engine[0]["gap_p99_ms"] / engine[0]["gap_ms"],
            2,
            at_least=False,
        )
    if engine and serving:
        share = serving[0]["tokens_per_s"] / engine[0]["tokens_per_s"]
        yield Bar("tokens/s of the server over the engine's, 32 at once", share, 0.9)
