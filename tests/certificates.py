"""Certificates made for a test, with openssl, and what a server shows of its own."""

import asyncio
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@dataclass(frozen=True)
class Pair:
    """A certificate that signs itself, so that it is its own authority, and its key."""

    cert: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.cert.read_text()

    def copy_to(self, other: "Pair") -> None:
        """Puts this one in the other's place, and lets nobody see half of a file."""
        for source, target in ((self.cert, other.cert), (self.key, other.key)):
            new = target.with_suffix(".new")
            new.write_bytes(source.read_bytes())
            new.replace(target)


def make_pair(folder: Path, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
    """A certificate for these hosts."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={hosts}")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    command = ("openssl", "req", *kind, *subject, "-keyout", str(pair.key), "-out", str(pair.cert))
    subprocess.run(command, check=True, capture_output=True)
    return pair


def make_signed_pair(folder: Path, name: str, hosts: str, authority: Pair) -> Pair:
    """A certificate for these hosts that an authority has signed."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={hosts}\n")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}")
    ask = ("openssl", "req", *kind, "-keyout", str(pair.key), "-out", str(request))
    by = ("-CA", str(authority.cert), "-CAkey", str(authority.key), "-CAcreateserial", "-days", "2")
    sign = ("openssl", "x509", "-req", "-in", str(request), *by, "-extfile", str(extensions), "-out", str(pair.cert))
    for command in (ask, sign):
        subprocess.run(command, check=True, capture_output=True)
    return pair


def bundle(path: Path, *pairs: Pair) -> Path:
    """A file of authorities that has these."""
    path.write_text("".join(pair.pem for pair in pairs))
    return path


async def shown_at(port: int) -> str:
    """The certificate that a new connection gets to see."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=5)


async def wait_shown(port: int, pair: Pair, within_s: float) -> None:
    """Returns when new connections see this certificate."""
    async with asyncio.timeout(within_s):
        while await shown_at(port) != pair.pem:  # noqa: ASYNC110 - a server says nothing by itself
            await asyncio.sleep(0.1)
