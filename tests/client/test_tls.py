"""Calls over TLS, with certificates made for the test."""

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from fake_service import FakeService
from spyglass.v1 import inference_pb2_grpc as pb_grpc
from spyglass_client import AsyncClient, Tls, UnavailableError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    command = ("openssl", "req", *kind, *subject, "-keyout", str(key), "-out", str(cert))
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_a_server_and_a_client_that_know_each_other(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    server = grpc.aio.server()
    pb_grpc.add_InferenceServiceServicer_to_server(FakeService(), server)
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
    )
    target = f"localhost:{server.add_secure_port('localhost:0', credentials)}"
    await server.start()
    try:
        async with AsyncClient(target, tls=Tls(ca_file=cert, cert_file=cert, key_file=key)) as client:
            assert (await client.generate("hello")).text == "hello "
        async with AsyncClient(target, tls=Tls()) as stranger:
            with pytest.raises(UnavailableError, match="no connection to localhost"):
                await stranger.models()
    finally:
        await server.stop(grace=None)
