"""Serves a scripted model, for measurements of everything else; started by other benchmarks or by hand.

    python benchmarks/scripted.py --api-key sk-test --step-ms 10

Every step takes the same time and gives each answer one letter, so that an answer has as many characters as tokens; an
answer with a grammar gets the first token that the grammar allows. All the rest is the product's server, with all its
options. Once it serves, it prints `ready`; it answers each line on its standard input with a line of JSON: what it
holds at that moment. It stops when its standard input ends.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvloop

from processes import checkpoint_or_demo
from spyglass_common.settings import add_settings
from spyglass_server.app import Server
from spyglass_server.config import resolve
from spyglass_server.engine.handle.async_engine import AsyncEngine
from spyglass_server.engine.messages import EngineInfo, ImageInput, ImageKey, MemoryInfo
from spyglass_server.engine.structured_output import GrammarFailed
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.settings import SETTINGS

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PAGE_SIZE, _NUM_PAGES, _NUM_TILES = 16, 16_384, 64
_COUNT_S = 0.1


class ScriptedRunner:
    """Computes nothing: waits for the time of a step, and outputs letters."""

    looks_ahead = False

    def __init__(self, letters: Sequence[int], step_s: float) -> None:
        self._letters, self._step_s = letters, step_s
        self._chance = random.Random(0)
        self.images: set[ImageKey] = set()

    def close(self) -> None:
        """There are no other processes."""

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        time.sleep(self._step_s)
        return [self._output(row) for row in rows]

    def start(self, rows: Sequence[Row]) -> Pending:
        raise NotImplementedError

    def take_image(self, image: ImageInput) -> None:
        self.images.add(image.key)

    def drop_image(self, key: ImageKey) -> None:
        self.images.remove(key)

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        return True

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """There are no pages."""

    def _output(self, row: Row) -> RowOutput:
        try:
            return RowOutput(tokens=tuple(self._token(row) for _ in row.choices))
        except GrammarFailed as error:
            return RowOutput(error=str(error), by_grammar=True)

    def _token(self, row: Row) -> int:
        if row.matcher is None:
            return self._chance.choice(self._letters)
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(row.matcher.allowed(), np.uint8), bitorder="little"))
        if not len(allowed):
            raise GrammarFailed("no token may follow")
        stops = row.request.stop_token_ids.intersection(allowed.tolist())
        return min(stops) if stops and row.may_stop else int(allowed[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedLoader:
    """Loads an engine with a ScriptedRunner. Writes what the engine holds to the file `counts`."""

    folder: Path
    stop_token_ids: frozenset[int]
    step_s: float
    max_batch: int
    counts: Path

    def load(self) -> tuple[EngineCore, EngineInfo]:
        from spyglass_server.runtime.grammar_compiler import ThreadedGrammarCompiler

        runner = ScriptedRunner(letters(self.folder), self.step_s)
        pages, images = PagePool(_NUM_PAGES, _PAGE_SIZE), ImageCache(_NUM_TILES)
        scheduler = Scheduler(Limits(max_batch=self.max_batch, max_step_tokens=8192), pages, images)
        grammars = ThreadedGrammarCompiler(self.folder / "tokenizer.json", self.stop_token_ids)
        core = EngineCore(scheduler, runner, grammars)
        memory = MemoryInfo(
            host="here",
            device_name="scripted",
            device_bytes=1 << 30,
            weight_bytes=1 << 20,
            kv_cache_tokens=_NUM_PAGES * _PAGE_SIZE,
            kv_cache_bytes=_NUM_PAGES * _PAGE_SIZE,
            image_cache_tiles=_NUM_TILES,
            image_cache_bytes=_NUM_TILES,
        )
        info = EngineInfo(
            dtype="float32",
            quantization="none",
            device="scripted",
            max_tokens=32_768,
            max_image_tiles=_NUM_TILES,
            max_choices=self.max_batch,
            num_cross_layers=0,
            patches_per_side=1,
            ranks=(memory,),
        )

        def held() -> Mapping[str, int]:
            tiles = sum(len(entry.tiles) for entry in list(images._entries.values()) if entry.holders)
            return {
                "requests in the engine": len(core._requests),
                "KV pages": pages.num_pages - pages.num_free,
                "image tiles": tiles,
                "images in the engine": len(runner.images),
            }

        _write(held(), self.counts)
        threading.Thread(target=_keep, args=(held, self.counts), name="counts", daemon=True).start()
        return core, info


def _keep(held: Callable[[], Mapping[str, int]], file: Path) -> None:
    """Repeatedly writes what the engine holds."""
    while True:
        time.sleep(_COUNT_S)
        _write(held(), file)


def _write(held: Mapping[str, int], file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(held))
    new.replace(file)


def letters(folder: Path) -> tuple[int, ...]:
    """Returns a model's tokens that are one letter."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return tuple(vocabulary[letter] for letter in _LETTERS)


def stop_tokens(folder: Path) -> frozenset[int]:
    """Returns the tokens that end a model's answer."""
    found = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return frozenset(found if isinstance(found, list) else [found])


async def serve(given: argparse.Namespace) -> None:
    """Runs the server's process."""
    config = resolve(given)
    folder = checkpoint_or_demo(config.folder)
    counts = config.data_dir / "counts.json"
    scripted = ScriptedLoader(
        folder=folder,
        stop_token_ids=stop_tokens(folder),
        step_s=given.step_ms / 1000,
        max_batch=config.engine.max_batch,
        counts=counts,
    )
    real = CheckpointLoader(folder=folder, settings=config.engine)
    server = Server(config, folder, AsyncEngine(scripted if given.engine == "scripted" else real))
    try:
        await server.start()
        _say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            held = {"tasks in the server": len(asyncio.all_tasks()), "admitted": server.num_admitted}
            _say(json.dumps(held | (json.loads(counts.read_text()) if given.engine == "scripted" else {})))
    finally:
        await server.stop()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--step-ms", type=float, default=10.0, help="how long a step takes (default: %(default)s)")
    engine_help = "scripted (default), or the model, of whose caches nothing is told"
    result.add_argument("--engine", choices=("scripted", "model"), default="scripted", help=engine_help)
    add_settings(result, [replace(one, default="warning") if one.dest == "log_level" else one for one in SETTINGS])
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=given.log_level.upper(), stream=sys.stderr)
    uvloop.run(serve(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
