"""`spyglass serve`: a server and a bridge as one program.

Both get all settings as environment variables, and the bridge's key, which is generated unless set and never printed.
"""

import argparse
import asyncio
import importlib.metadata
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from spyglass_client.aio import AsyncClient
from spyglass_client.errors import SpyglassError
from spyglass_client.target import dialable
from spyglass_common.exposure import exposure_warning, is_local
from spyglass_common.settings import to_environ
from spyglass_launcher.own_tls import tls_of_settings, with_own_tls
from spyglass_launcher.probes import grpc_is_serving, http_is_ready, is_listening
from spyglass_launcher.settings import SETTINGS
from spyglass_launcher.supervisor import Program, Supervisor

STOP_GRACE_S = 5.0
"""How long beyond the drain timeout the processes may take to end."""

_REQUIREMENT = re.compile(r"""([\w.-]+).*\bextra == ["'](bridge|server)["']""")


def run_serve(args: argparse.Namespace) -> int:
    """Runs both until a signal.

    Raises:
        ValueError: an extra needed to serve is not installed, torchrun started this process, or TLS settings are
            inconsistent.
        OSError: a certificate cannot be used.
        argparse.ArgumentError: the two processes cannot share a setting.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("serve cannot be started by torchrun: start `-m spyglass_server` so, and the bridge by itself")
    if extras := missing_extras():
        raise ValueError(f"serve needs: pip install 'spyglass[{','.join(extras)}]'")
    settings = dict(vars(args))
    for name in ("http", "grpc"):
        if settings[name].endswith(":0"):
            raise argparse.ArgumentError(
                None, f"--{name}: serve needs a port that both processes know beforehand, not 0"
            )
    settings["bridge_key"] = settings["bridge_key"] or secrets.token_urlsafe(32)
    settings = with_own_tls(settings)
    for name in ("http", "grpc"):
        if not settings[f"{name}_tls_cert"] and not is_local(settings[name]):
            _report(f"warning: {exposure_warning(name, settings[name])}")
    return asyncio.run(_supervise(settings))


def missing_extras() -> list[str]:
    """Returns the extras needed for serving that are not fully installed."""
    requirements = map(_REQUIREMENT.match, importlib.metadata.requires("spyglass") or ())
    return sorted({found[2] for found in requirements if found and not _is_installed(found[1])})


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def make_programs(settings: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Program, Program]:
    """Returns the server and the bridge, for parsed settings and the environment that they inherit."""
    shared = {**environ, **to_environ(SETTINGS, settings)}
    server = Program(
        name="server",
        command=(sys.executable, "-m", "spyglass_server"),
        environ=shared,
        is_ready=partial(grpc_is_serving, settings["grpc"], tls_of_settings(settings)),
    )
    bridge = Program(
        name="bridge",
        command=(sys.executable, "-m", "spyglass_bridge"),
        environ={**shared, "SPYGLASS_GRPC": dialable(settings["grpc"])},
        is_ready=partial(http_is_ready, settings["http"], is_tls=bool(settings["http_tls_cert"])),
    )
    return server, bridge


async def banner(settings: Mapping[str, Any]) -> str:
    """Returns a few lines for people: where it listens and what it serves."""
    http, grpc = dialable(settings["http"]), dialable(settings["grpc"])
    scheme = "https" if settings["http_tls_cert"] else "http"
    lines = [
        "Spyglass is ready.",
        f"  HTTP   {http if http.startswith('unix:') else f'{scheme}://{http}'}",
        f"  gRPC   {grpc}{' over TLS' if settings['grpc_tls_cert'] else ''}",
    ]
    try:
        async with AsyncClient(grpc, api_key=settings["bridge_key"], tls=tls_of_settings(settings)) as client:
            lines += [f"  model  {model.id}" for model in await client.models()]
    except SpyglassError as error:
        lines.append(f"  model  unknown ({error})")
    return "\n".join(lines)


async def _supervise(settings: Mapping[str, Any]) -> int:
    for name in ("http", "grpc"):
        if await is_listening(settings[name]):  # or its answers would be taken for ours
            raise argparse.ArgumentError(None, f"--{name}: another program listens at {settings[name]}")

    async def show_banner() -> None:
        sys.stdout.write(await banner(settings) + "\n")
        sys.stdout.flush()

    supervisor = Supervisor(
        make_programs(settings, os.environ),
        stop_timeout_s=settings["drain_timeout"] + STOP_GRACE_S,
        on_ready=show_banner,
        report=_report,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)
    return await supervisor.run()


def _report(line: str) -> None:
    sys.stderr.write(f"spyglass: {line}\n")
    sys.stderr.flush()
