"""The command `spyglass-bridge`."""

import argparse
import asyncio
import signal
import sys

import uvloop

from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.server import run_bridge
from spyglass_bridge.settings import SETTINGS
from spyglass_common.logs import LogStyle, set_up_logging
from spyglass_common.memory import return_large_blocks
from spyglass_common.settings import add_settings


def main() -> None:
    """Runs a bridge until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="spyglass-bridge", description="Serves an OpenAI-compatible HTTP API in front of a Spyglass server."
    )
    add_settings(parser, SETTINGS)
    try:
        config = BridgeConfig.from_args(parser.parse_args())
    except ValueError as error:
        parser.error(str(error))
    set_up_logging("bridge", LogStyle(config.log_level.upper(), config.log_format))
    return_large_blocks()
    sys.exit(_run(config))


def _run(config: BridgeConfig) -> str | None:
    """Serves; returns the error message to exit with, if any."""
    complaint = None
    try:
        uvloop.run(_serve(config))
    except* OSError as errors:
        complaint = f"spyglass-bridge: {errors.exceptions[0]}"
    return complaint


async def _serve(config: BridgeConfig) -> None:
    """Drains at the first signal and exits immediately at the second."""
    signals = asyncio.Queue[signal.Signals]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with run_bridge(config) as bridge:
        sys.stdout.write(f"spyglass-bridge: listening on {bridge.address}\n")  # in one write: the server may write too
        sys.stdout.flush()
        await signals.get()
        draining = asyncio.create_task(bridge.drain())
        second = asyncio.create_task(signals.get())
        await asyncio.wait((draining, second), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, second):
            task.cancel()
        await asyncio.gather(draining, second, return_exceptions=True)
