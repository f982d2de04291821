"""A stage of the check: whether the engine computes on this device what it computes in float32 on the CPU.

A small random checkpoint, loaded by the product's loader, with the head sizes of the published models, so that the same
kernels run: prompts as a whole and in pieces in scattered pages, images, decode steps with and without CUDA graphs,
sampling. Once for each way to keep weights: float32, bfloat16 and fp8.
"""

import contextlib
import itertools
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from checkpoints import random_checkpoint
from harness import (
    TOP_P,
    ScatteredPages,
    SeenImages,
    encode_noise,
    make_row,
    make_runner,
    num_recordings,
)
from random_weights import Sizes, VisionSizes
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.linear import CONVERTERS
from spyglass_server.runtime.runner import ModelRunner
from stage_run import StageRun

Outputs = dict[str, Tensor]
"""All that is compared, on the CPU in float32."""

NUM_PAGES, NUM_TILES = 600, 16
FOUR, ONE = (9, 4, 14, 6), (2,)
"""Where the states of the two images stand, which have so many tiles."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """How far results may be from the reference: the relative error of logits, the largest difference of a logprob,
    and the share of tokens that may differ."""

    logits: float
    logprobs: float
    tokens: float

    def of(self, what: str) -> float:
        return self.tokens if "tokens" in what else self.logprobs if "logprobs" in what else self.logits


BARS = {
    "float32": Bars(logits=2e-4, logprobs=2e-3, tokens=0.0),
    "bfloat16": Bars(logits=2.5e-2, logprobs=0.25, tokens=0.2),
    "fp8": Bars(logits=0.15, logprobs=1.5, tokens=0.5),
}


SAME = {
    "logits of a prompt in pieces": "logits of a prompt",
    "logits of a decode step in copied pages": "logits of a decode step",
}
"""What is the same computed in two ways: the reference must agree with itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is computed by a model of these sizes: a prompt as a whole and in pieces between `borders`; a prompt of
    `seeing` tokens with an image at position 3 and one at `second`; then decode steps of rows with prompts of these
    lengths, of which the last `num_seeing` see images: so many steps with these rows apart, one with all together, and
    so many beside a prompt of `extra` tokens."""

    sizes: Sizes
    borders: tuple[int, ...]
    seeing: int
    second: int
    lengths: tuple[int, ...]
    num_seeing: int
    apart: int
    beside: int
    extra: int

    @property
    def steps(self) -> int:
        return self.apart + 1 + self.beside


FULL = Workload(
    sizes=Sizes(
        hidden_size=512,
        num_heads=4,
        intermediate_size=768,
        vision=VisionSizes(tile_size=56, hidden_size=160, intermediate_size=320),
    ),
    borders=(0, 1, 50, 51, 200),
    seeing=120,
    second=40,
    lengths=(1, 17, 64, 700, 300, 40),
    num_seeing=2,
    apart=8,
    beside=3,
    extra=30,
)
SMOKE = Workload(
    sizes=Sizes(hidden_size=32, num_heads=2, num_kv_heads=1, intermediate_size=48, num_layers=2, cross_layers=(1,)),
    borders=(0, 1, 17, 20),
    seeing=9,
    second=6,
    lengths=(1, 18),
    num_seeing=1,
    apart=1,
    beside=1,
    extra=5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to compute; `kind` names its bars."""

    name: str
    kind: str
    device: torch.device
    has_graphs: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.kind == "float32" else torch.bfloat16


class Workbench:
    """A runner with its own pages that computes a workload."""

    def __init__(self, runner: ModelRunner, workload: Workload) -> None:
        self._runner, self._workload = runner, workload
        self._pages = ScatteredPages(NUM_PAGES)
        generator = torch.Generator().manual_seed(3)
        self._tokens = torch.randint(3, 250, (8000,), generator=generator).tolist()

    def outputs(self) -> Outputs:
        found = self._prompts() | self._decode_steps()
        return {what: tensor.float().cpu() for what, tensor in found.items()}

    def _prompts(self) -> Outputs:
        borders, count = self._workload.borders, self._workload.seeing
        pages = self._pages.take(borders[-1])
        whole = self._runner.logits(make_row(self._tokens[: borders[-1]], 0, pages))
        pages = self._pages.take(borders[-1])
        pieces = [make_row(self._tokens[begin:end], begin, pages) for begin, end in itertools.pairwise(borders)]
        in_pieces = torch.cat([self._runner.logits(piece) for piece in pieces])
        tile_size = self._workload.sizes.vision.tile_size
        encode_noise(self._runner, tile_size, b"four", 2, 2, FOUR)
        encode_noise(self._runner, tile_size, b"one", 1, 1, ONE)
        seen = SeenImages((FOUR, ONE), (3, self._workload.second))
        seeing = self._runner.logits(make_row(self._tokens[:count], 0, self._pages.take(count), images=seen))
        return {
            "logits of a prompt": whole,
            "logits of a prompt in pieces": in_pieces,
            "logits of a prompt with images": seeing,
        }

    def _decode_steps(self) -> Outputs:
        """Tokens that are given, not chosen, so that one difference does not become many."""
        work, sequences = self._workload, self._prefilled()
        prompt, extra = self._tokens[7000 : 7000 + work.extra], self._pages.take(work.extra)
        logprobs, chosen = [], []
        for step in range(work.steps):
            rows = [
                make_row([self._tokens[6000 + 10 * step + i]], length + step, pages, images=images, top_logprobs=8)
                for i, (length, pages, images) in enumerate(sequences)
            ]
            batches = [rows]
            if step < work.apart:
                batches = [rows[: -work.num_seeing], rows[-work.num_seeing :]]
            elif step > work.apart:  # never in a graph
                batches = [[*rows, make_row(prompt, 0, extra, top_logprobs=8)]]
            for output in itertools.chain.from_iterable(map(self._runner.execute, batches)):
                assert output.error is None, output.error
                logprobs.append(output.logprobs[0].top)
                chosen.append(output.tokens[0])
        again = [
            make_row([self._tokens[6500 + i]], length + work.steps - 1, pages, images=images, sampling=TOP_P)
            for i, (length, pages, images) in enumerate(sequences)
        ]
        sampled = [output.tokens[0] for output in self._runner.execute(again)]
        return {
            "logprobs of decode steps": torch.tensor(logprobs),
            "greedy tokens": torch.tensor(chosen),
            "sampled tokens": torch.tensor(sampled),
            "logits of a decode step": self._runner.logits(again[-1]),
            "logits of a decode step in copied pages": self._copied(again[-1]),
        }

    def _prefilled(self) -> list[tuple[int, tuple[int, ...], SeenImages]]:
        """Length, pages and images of each sequence whose prompt is computed."""
        work, begin = self._workload, 1000
        sequences = []
        for i, length in enumerate(work.lengths):
            images = SeenImages()
            if i >= len(work.lengths) - work.num_seeing:
                is_long = length > work.second
                images = SeenImages((FOUR, ONE), (3, work.second)) if is_long else SeenImages((ONE,), (2,))
            pages = self._pages.take(length + work.steps)
            self._runner.execute([make_row(self._tokens[begin : begin + length], 0, pages, images=images)])
            begin += length
            sequences.append((length, pages, images))
        return sequences

    def _copied(self, row: Row) -> Tensor:
        """Logits of a row whose sequence was copied to other pages."""
        pages = self._pages.take(row.end)
        self._runner.copy_pages(list(zip(row.pages, pages, strict=True)))
        images = SeenImages(row.image_tiles, row.request.image_positions)
        return self._runner.logits(make_row(row.tokens, row.start, pages, images=images))


class Exactness:
    """The cases of this stage."""

    def __init__(self, run: StageRun, folder: Path) -> None:
        self._run = run
        self._workload = SMOKE if run.is_smoke else FULL
        self._folder = random_checkpoint(folder, sizes=self._workload.sizes)

    def run(self) -> None:
        """Computes the reference, and every case beside it."""
        kind, device = self._run.weights, self._run.device
        reference = self._outputs(Case(name="reference", kind="float32", device=CPU, has_graphs=False))
        cases = []
        if kind == "float32":
            for what, same in SAME.items():
                self._compare("float32 on the CPU", kind, {what: reference[what]}, {what: reference[same]})
        elif not self._run.is_smoke:
            cases.append(Case(name=f"{kind} on the CPU", kind=kind, device=CPU, has_graphs=False))
        # a smoke run computes float32 as on a GPU; the others, which the kernels' interpreter has not, as on a CPU
        graphs = (kind == "float32",) if self._run.is_smoke else (False, True)
        for has_graphs in graphs:
            name = f"{kind}, graphs {'on' if has_graphs else 'off'}"
            cases.append(Case(name=name, kind=kind, device=device, has_graphs=has_graphs))
        for case in cases:
            self._run.case(f"exactness of {case.name}", partial(self._check, case, reference))

    def _check(self, case: Case, reference: Outputs) -> None:
        self._compare(case.name, case.kind, self._outputs(case), reference)

    def _outputs(self, case: Case) -> Outputs:
        config = load_config(self._folder)
        model = load_model(self._folder, config, case.dtype, case.device, CONVERTERS.get(case.kind))
        with self._kernels(case):
            runner = make_runner(model, NUM_PAGES, NUM_TILES, case.dtype, case.device, case.has_graphs)
            found = Workbench(runner, self._workload).outputs()
            if case.has_graphs:
                count, wanted = num_recordings(runner)
                self._run.record("graphs", case=case.name, count=count)
                missing = float(wanted - count) if wanted else 1.0
                self._run.compare(case.name, "shapes of decode steps that are not recorded", missing, 0)
            return found

    def _kernels(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """Where the smoke run stands in for a GPU, the kernels' interpreter; its module needs pytest."""
        if not (self._run.is_smoke and case.has_graphs):
            return contextlib.nullcontext()
        from simulated_gpu import simulated_gpu

        return simulated_gpu()

    def _compare(self, case: str, kind: str, ours: Outputs, reference: Outputs) -> None:
        for what, value in ours.items():
            expected, bar = reference[what], BARS[kind].of(what)
            if "tokens" in what:
                error = float((value != expected).float().mean())
            elif "logprobs" in what:
                error = float((value - expected).abs().max())
            else:
                error = float((value - expected).norm() / expected.norm())
            self._run.compare(case, what, error, bar)


def run(run: StageRun) -> None:
    """Runs the stage."""
    with tempfile.TemporaryDirectory() as folder:
        Exactness(run, Path(folder)).run()
