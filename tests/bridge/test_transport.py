"""How the bridge listens and calls its server: TLS, certificates that change, Unix sockets."""

import asyncio
import logging
import socket
import ssl
import stat
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import aiohttp
import grpc
import pytest

from bridge_setup import CHAT, ask, config_for, run_bridge_under_test
from certificates import Pair, bundle, make_pair, needs_openssl, shown_at, wait_shown
from fake_service import PATIENCE_S, USER_KEY, FakeService, Reply
from spyglass_bridge.config import Certificate, TcpAddress, UnixAddress
from spyglass_bridge.server import run_bridge
from spyglass_common.tls import Tls

NUM_STREAMS = 16
AUTH = {"Authorization": f"Bearer {USER_KEY}"}


def trusting(*pairs: Pair) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(cadata="".join(pair.pem for pair in pairs))
    return context


@needs_openssl
async def test_a_certificate_changes_under_running_streams(server: FakeService, tmp_path: Path) -> None:
    """None of 16 streams is cut, and new calls see the new certificate within 5 s, half-written ones never."""
    served, new = make_pair(tmp_path, "served"), make_pair(tmp_path, "new")
    first = served.pem
    gate = asyncio.Event()
    server.script = Reply(gate=gate)
    config = config_for(server.target, https=Certificate(served.cert, served.key))
    async with run_bridge(config) as running, asyncio.TaskGroup() as group:
        assert running.address.startswith("https://127.0.0.1:")
        port = int(running.address.rpartition(":")[2])
        connector = aiohttp.TCPConnector(ssl=trusting(served), limit=0)
        async with aiohttp.ClientSession(running.address, connector=connector, headers=AUTH) as http:

            async def read() -> str:
                async with http.post(CHAT, json=ask(stream=True)) as response:
                    assert response.status == 200
                    return await response.text()

            reading = [group.create_task(read()) for _ in range(NUM_STREAMS)]
            await server.turn(NUM_STREAMS)
            served.cert.write_bytes(new.cert.read_bytes())  # and its key comes later
            await asyncio.sleep(1.2)
            assert await shown_at(port) == first
            served.key.write_bytes(new.key.read_bytes())
            await wait_shown(port, new, within_s=5)
            assert not any(task.done() for task in reading)
            gate.set()
            async with aiohttp.ClientSession(running.address, headers=AUTH) as late:
                async with late.post(CHAT, json=ask(), ssl=trusting(new)) as response:
                    assert response.status == 200
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await late.get("/health", ssl=trusting(make_pair(tmp_path, "other")))
            for task in reading:
                assert (await task).endswith("data: [DONE]\n\n")


@needs_openssl
async def test_old_versions_of_tls_and_plain_http_are_refused(server: FakeService, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "pair")
    async with run_bridge(config_for(server.target, https=Certificate(pair.cert, pair.key))) as running:
        port = int(running.address.rpartition(":")[2])
        for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            context = trusting(pair)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1") if not works else nullcontext():
                context.minimum_version = context.maximum_version = version
            async with aiohttp.ClientSession(running.address) as http:
                if works:
                    assert (await http.get("/health", ssl=context)).status == 200
                else:
                    with pytest.raises(aiohttp.ClientConnectorError):
                        await http.get("/health", ssl=context)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as plain:
            with pytest.raises(aiohttp.ClientError):
                await plain.get("/health")


@needs_openssl
async def test_a_handshake_that_does_not_come_is_not_waited_for(
    server: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spyglass_bridge.listening._HANDSHAKE_TIMEOUT_S", 0.2)
    pair = make_pair(tmp_path, "pair")
    async with run_bridge(config_for(server.target, https=Certificate(pair.cert, pair.key))) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.address.rpartition(":")[2]))
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello, and no more
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()


def mutual(server_pair: Pair, client_ca: Path) -> grpc.ServerCredentials:
    pair = (server_pair.key.read_bytes(), server_pair.cert.read_bytes())
    return grpc.ssl_server_credentials([pair], client_ca.read_bytes(), require_client_auth=True)


@needs_openssl
async def test_the_bridges_own_certificate_and_authorities_change_under_running_streams(
    server: FakeService, tmp_path: Path
) -> None:
    """Streams that run end on the connection that they began on; the next server takes only the new certificate."""
    own, new = make_pair(tmp_path, "own"), make_pair(tmp_path, "new")
    theirs, their_next = make_pair(tmp_path, "theirs"), make_pair(tmp_path, "their-next")
    authority = bundle(tmp_path / "ca.pem", theirs)
    clients = bundle(tmp_path / "clients.pem", own, new)
    await server.end()
    server.credentials = mutual(theirs, clients)
    await server.begin()
    gate = asyncio.Event()
    server.script = Reply(gate=gate)
    tls = Tls(ca_file=authority, cert_file=own.cert, key_file=own.key)
    async with run_bridge_under_test(server, grpc_tls=tls) as bridge, asyncio.TaskGroup() as group:
        await bridge.wait_ready()
        reading = [group.create_task(bridge.stream()) for _ in range(NUM_STREAMS)]
        await server.turn(NUM_STREAMS)
        first = server.streams[-1]
        new.copy_to(own)
        bundle(authority, theirs, their_next)
        async with asyncio.timeout(PATIENCE_S):  # another stream is opened, with the new certificate
            while server.streams[-1] is first:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not any(task.done() for task in reading)
        server.script = Reply()
        async with asyncio.timeout(PATIENCE_S):  # new generations begin on it
            while server.turns[-1].stream is first:
                assert (await bridge.chat())[0] == 200
        gate.set()
        for task in reading:
            assert (await task).endswith("data: [DONE]\n\n")
        async with asyncio.timeout(PATIENCE_S):  # and nothing stays open of the old one
            await first.half_closed.wait()
        await server.end()
        server.credentials = mutual(their_next, new.cert)
        await server.begin()
        await bridge.wait_ready()
        assert (await bridge.chat())[0] == 200


@needs_openssl
@pytest.mark.parametrize("trust", ["nobody's", "another's", "another name"])
async def test_a_server_that_is_not_trusted_gets_no_request(server: FakeService, tmp_path: Path, trust: str) -> None:
    theirs, other = make_pair(tmp_path, "theirs"), make_pair(tmp_path, "other")
    await server.end()
    server.credentials = grpc.ssl_server_credentials([(theirs.key.read_bytes(), theirs.cert.read_bytes())])
    await server.begin()
    tls = {
        "nobody's": None,
        "another's": Tls(ca_file=other.cert),
        "another name": Tls(ca_file=theirs.cert, server_name="other.example.com"),
    }[trust]
    async with run_bridge_under_test(server, grpc_tls=tls) as bridge:
        assert (await bridge.chat())[0] == 503
    assert not server.turns
    assert not server.access_checks
    async with run_bridge_under_test(server, grpc_tls=Tls(ca_file=theirs.cert)) as bridge:
        await bridge.wait_ready()
        assert (await bridge.chat())[0] == 200


async def test_a_unix_socket_is_its_owners_and_goes_at_the_end(server: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    config = config_for(server.target, http=UnixAddress(str(path)))
    async with run_bridge(config) as running:
        assert running.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession("http://bridge", connector=aiohttp.UnixConnector(str(path))) as http:
            async with http.get("/health") as response:
                assert response.status == 200
            with pytest.raises(ExceptionGroup) as refusal:
                async with run_bridge(config):
                    pass
            assert "another program listens" in str(refusal.value.exceptions[0])
            async with http.get("/health") as response:
                assert response.status == 200
    assert not path.exists()
    async with run_bridge(replace(config, socket_mode=0o660)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_a_listener_that_others_reach_without_tls_is_warned_of(
    server: FakeService, host: str, *, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with run_bridge(config_for(server.target, http=TcpAddress(host, 0))):
            pass
    found = [record for record in caplog.records if "can be read" in record.getMessage()]
    assert bool(found) is warns
