"""The command `spyglass-server`: options, logging and signals.

The first stop signal drains the server; the second ends it at once.

The engine process imports this module again, and starts before the server's own parts are imported, so that both load
at the same time. So nothing heavy is imported here.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

import uvloop

from spyglass_common.logs import LogStyle, set_up_logging
from spyglass_common.memory import return_large_blocks
from spyglass_common.phases import Phases
from spyglass_common.settings import add_settings
from spyglass_server.config import ServerConfig, resolve
from spyglass_server.engine.handle.async_engine import AsyncEngine, EngineLoadError
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.parallel.keeper import keep_following
from spyglass_server.settings import SETTINGS
from spyglass_server.torchrun import Launch

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the server until a stop signal; exits with 1 if it cannot start."""
    parser = argparse.ArgumentParser(
        prog="spyglass-server",
        description="Serves a Llama 3.2 Vision model over gRPC. Each option also has an environment variable.",
    )
    add_settings(parser, SETTINGS)
    options = parser.parse_args(arguments)
    set_up_logging("server", LogStyle(options.log_level.upper(), options.log_format))
    try:
        config = resolve(options)
        if config.launch and config.launch.rank:
            sys.exit(_follow(config, config.launch))
        return_large_blocks()
        uvloop.run(_serve(config))
    except (EngineLoadError, ValueError, OSError, RuntimeError) as error:
        sys.exit(f"spyglass-server: {error}")


def _follow(config: ServerConfig, launch: Launch) -> int:
    """Computes for the server in another process; returns the exit status."""
    folder = _demo_checkpoint() if config.folder is None else config.folder
    return keep_following(CheckpointLoader(folder=folder, settings=config.engine), launch)


async def _serve(config: ServerConfig) -> None:
    phases = Phases("Python")
    folder = await asyncio.to_thread(_demo_checkpoint) if config.folder is None else config.folder
    stop_signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_signals.put_nowait, None)
    phases.end("checkpoint's folder")
    engine = AsyncEngine(CheckpointLoader(folder=folder, settings=config.engine, launch=config.launch))
    engine.launch()
    phases.end("engine process launched")
    try:
        from spyglass_server.app import Server

        phases.end("imports")
        server = Server(config, folder, engine)
    except BaseException:
        engine.kill()
        raise
    phases.end("tokenizer, keys, ledger")
    if server.new_key:
        _say(f"API key, shown only this once: {server.new_key}")
    try:
        if not await _before(stop_signals.get(), server.start()):
            return
        phases.end("waiting for the engine")
        log.info("ready %s", phases)
        _say(f"listening on {server.address}")
        await stop_signals.get()
        _say("stopping: running generations may end; a second signal ends them")
        await _before(stop_signals.get(), server.drain())
    finally:
        await server.stop()


def _demo_checkpoint() -> Path:
    """Returns the folder of the demo model's checkpoint, which the first start makes.

    Raises:
        RuntimeError: the package spyglass-demo is not installed, or cannot make the checkpoint.
    """
    try:
        import spyglass_demo
    except ModuleNotFoundError as error:
        if error.name != "spyglass_demo":
            raise
        raise RuntimeError(
            "--model demo needs the package spyglass-demo: run `pip install spyglass-demo`, "
            "or `pip install ./demo` from a checkout of the repository; --model PATH serves another checkpoint"
        ) from None
    return spyglass_demo.prepare(spyglass_demo.default_folder(), _say)


async def _before(limit: Awaitable[None], work: Awaitable[None]) -> bool:
    """Runs `work` until `limit` completes; returns whether `work` finished first, and raises what it raised."""
    tasks = working, _ = asyncio.ensure_future(work), asyncio.ensure_future(limit)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    is_done = working.done()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if is_done:
        working.result()
    return is_done


def _say(line: str) -> None:
    sys.stdout.write(f"spyglass-server: {line}\n")  # in one write: the bridge may write to the same terminal
    sys.stdout.flush()
