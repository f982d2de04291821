"""Compiles kernels.c for this machine's processor once; the library is kept under a digest of its inputs.

OpenMP's functions are left unresolved at link time and found in the library that torch has loaded, so that the kernels
share torch's threads.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spyglass_server.runtime.cache_folder import cache_folder

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    "-O2",
    "-ftree-vectorize",
    "-std=gnu11",
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
)
_LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
"""The processors that a library is compiled for, by torch's name for their capability."""
_TIMEOUT_S = 60.0


def load_library(capability: str, environ: Mapping[str, str]) -> ctypes.CDLL | None:
    """Returns the library for a processor with the `capability` that torch reports, compiled now if needed.

    Returns None if it cannot be compiled, or the processor does not support it.
    """
    level, compiler = _LEVELS.get(capability), _compiler(environ)
    if level is None or compiler is None:
        log.info("no kernels of our own: there is no %s", "AVX2" if level is None else "C compiler")
        return None
    try:
        with _folder(environ) as folder:
            return ctypes.CDLL(str(_library(compiler, level, folder)), mode=os.RTLD_NOW)
    except (OSError, subprocess.SubprocessError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("no kernels of our own, since they cannot be compiled: %s", told)
        return None


def _compiler(environ: Mapping[str, str]) -> str | None:
    path = environ.get("PATH", os.defpath)
    found = (shutil.which(name, path=path) for name in (environ.get("CC"), "gcc", "cc", "clang") if name)
    return next(filter(None, found), None)


def _library(compiler: str, level: str, folder: Path) -> Path:
    """Returns the library's file, compiling it if it does not exist yet."""
    target = f"-march={level}"
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=_TIMEOUT_S).stdout
    made_of = (_SOURCE.read_bytes(), version, " ".join((*_FLAGS, target)).encode())
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    library = folder / f"kernels-{digest[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            compiled, linked = Path(name, "kernels.o"), Path(name, "kernels.so")
            _run(compiler, *_FLAGS, target, "-c", str(_SOURCE), "-o", str(compiled))
            _run(compiler, "-shared", str(compiled), "-o", str(linked))
            linked.replace(library)
    return library


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)


@contextmanager
def _folder(environ: Mapping[str, str]) -> Iterator[Path]:
    """The folder where libraries are kept, or a temporary one if nothing can be kept."""
    try:
        kept = cache_folder("kernels", environ)
    except (OSError, RuntimeError) as error:
        log.warning("kernels are compiled at every start: %s", error)
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        yield kept
