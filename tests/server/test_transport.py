"""How the gRPC server listens: TLS, certificates that change, mutual TLS, Unix sockets."""

import asyncio
import logging
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from certificates import Pair, bundle, make_pair, needs_openssl, shown_at, wait_shown
from fakes import KEY, FakeLoader, auth, chat, run_test_server
from spyglass.v1 import inference_pb2, options_pb2
from spyglass_client import AsyncClient, SpyglassError, Tls, UnavailableError
from spyglass_server.engine.worker.budget import Limits

NUM_STREAMS = 16


def tls_settings(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"grpc": "localhost:0", "grpc_tls_cert": str(pair.cert), "grpc_tls_key": str(pair.key), **more}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@needs_openssl
@pytest.mark.slow
async def test_a_certificate_changes_under_running_streams(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """None of 16 streams is cut, and new calls see the new certificate within 5 s, half-written ones never."""
    served, new = make_pair(tmp_path, "served"), make_pair(tmp_path, "new")
    first = served.pem
    trusted = Tls(ca_file=bundle(tmp_path / "both.pem", served, new))
    loader = FakeLoader(
        num_pages=8192, step_s=0.02, limits=Limits(max_batch=NUM_STREAMS, max_step_tokens=NUM_STREAMS * 4)
    )
    async with run_test_server(tiny_checkpoint, tmp_path / "data", loader, trusted, **tls_settings(served)) as test:
        port = port_of(test.server.address)
        long = chat("hi", stopping=options_pb2.Stopping(max_tokens=350, min_tokens=350))
        streams = [test.open_stream() for _ in range(NUM_STREAMS)]
        for stream in streams:
            await stream.start(1, long)
        for stream in streams:
            await stream.until(1, "delta")
        reading = [asyncio.create_task(stream.finish()) for stream in streams]
        served.cert.write_bytes(new.cert.read_bytes())  # and its key comes later
        await asyncio.sleep(1.2)
        assert await shown_at(port) == first
        served.key.write_bytes(new.key.read_bytes())
        await wait_shown(port, new, within_s=5)
        assert not any(task.done() for task in reading)  # all of them saw the change
        async with AsyncClient(test.server.address, api_key=KEY, tls=Tls(ca_file=new.cert)) as late:
            assert await late.models()
        await asyncio.gather(*reading)
        for stream in streams:
            assert not stream.finished(1).HasField("error")
            assert stream.finished(1).usage.completion_tokens == 350


@needs_openssl
async def test_mutual_tls_lets_in_only_who_has_a_certificate(tiny_checkpoint: Path, tmp_path: Path) -> None:
    served, known, stranger = (make_pair(tmp_path, name) for name in ("served", "known", "stranger"))
    good = Tls(ca_file=served.cert, cert_file=known.cert, key_file=known.key)
    settings = tls_settings(served, grpc_tls_client_ca=str(known.cert))
    async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), good, **settings) as test:
        async with AsyncClient(test.server.address, api_key=KEY, tls=good) as client:
            assert await client.models()
        for bad in (
            Tls(ca_file=served.cert),
            Tls(ca_file=served.cert, cert_file=stranger.cert, key_file=stranger.key),
            Tls(ca_file=stranger.cert, cert_file=known.cert, key_file=known.key),
            None,
        ):
            async with AsyncClient(test.server.address, api_key=KEY, tls=bad, call_timeout_s=5) as client:
                with pytest.raises(SpyglassError) as refusal:
                    await client.models()
                assert isinstance(refusal.value, UnavailableError) or bad is None
        # A name that is not in the certificate is refused, unless it is the name that is expected.
        address = f"127.0.0.2:{port_of(test.server.address)}"
        with pytest.raises(UnavailableError):
            async with AsyncClient(address, api_key=KEY, tls=good, call_timeout_s=5) as client:
                await client.models()


@needs_openssl
async def test_another_name_than_the_addresss_can_be_expected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    served = make_pair(tmp_path, "served", "DNS:models.example.com")
    named = Tls(ca_file=served.cert, server_name="models.example.com")
    async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), named, **tls_settings(served)) as test:
        assert (await test.stub.ListModels(inference_pb2.ListModelsRequest(), metadata=auth())).models
        for name in (None, "other.example.com"):
            tls = Tls(ca_file=served.cert, server_name=name)
            async with AsyncClient(test.server.address, api_key=KEY, tls=tls, call_timeout_s=5) as client:
                with pytest.raises(UnavailableError):
                    await client.models()


@needs_openssl
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"grpc_tls_cert": "{cert}"}, "--grpc-tls-cert and --grpc-tls-key belong together"),
        ({"grpc_tls_client_ca": "{cert}"}, "--grpc-tls-client-ca needs --grpc-tls-cert"),
        (
            {"grpc": "unix:/tmp/x", "grpc_tls_cert": "{cert}", "grpc_tls_key": "{key}"},
            "a Unix socket is up to --socket-mode",
        ),
        ({"grpc_tls_cert": "{cert}", "grpc_tls_key": "{other}"}, "key values mismatch"),
        ({"grpc_tls_cert": "{cert}", "grpc_tls_key": "{none}"}, "No such file"),
        ({"grpc_tls_cert": "{cert}", "grpc_tls_key": "{key}", "grpc_tls_client_ca": "{key}"}, "no certificates"),
    ],
)
async def test_what_cannot_be_used_ends_the_start(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, str], complaint: str
) -> None:
    pair, other = make_pair(tmp_path, "pair"), make_pair(tmp_path, "other")
    names = {"cert": pair.cert, "key": pair.key, "other": other.key, "none": tmp_path / "none"}
    filled = {name: value.format(**names) for name, value in settings.items()}
    with pytest.raises((ValueError, OSError), match=complaint):
        async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), **filled):
            pass


async def test_a_unix_socket_is_its_owners_and_goes_at_the_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), grpc=f"unix:{path}") as test:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await test.stub.ListModels(inference_pb2.ListModelsRequest(), metadata=auth())).models
    assert not path.exists()


async def test_a_unix_socket_serves_whom_its_mode_lets(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    settings = {"grpc": f"unix:{path}", "socket_mode": "0660"}
    async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), **settings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with AsyncClient(f"unix:{path}", api_key=KEY) as client:
            assert (await client.generate("Hi", max_tokens=3)).finish_reason == "length"
            with pytest.raises(OSError, match="another program listens"):
                async with run_test_server(tiny_checkpoint, tmp_path / "other", FakeLoader(), **settings):
                    pass
            assert (await client.generate("Hi", max_tokens=3)).finish_reason == "length"
    assert not path.exists()


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False), ("[::1]", False)])
async def test_a_listener_that_others_reach_without_tls_is_warned_of(
    tiny_checkpoint: Path, tmp_path: Path, host: str, *, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with run_test_server(tiny_checkpoint, tmp_path / "data", FakeLoader(), grpc=f"{host}:0"):
            pass
    found = [record for record in caplog.records if "can be read" in record.getMessage()]
    assert bool(found) is warns
