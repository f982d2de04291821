"""The gRPC examples, each run as it is."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from fake_service import FakeService
from spyglass.v1 import chat_pb2

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients" / "examples"
PICTURE = (EXAMPLES / "pictures" / "red_circle.png").read_bytes()


async def run(service: FakeService, *command: str | Path, cwd: Path | None = None) -> str:
    """Runs an example to its good end and returns what it printed."""
    environ = {
        **os.environ,
        "SPYGLASS_GRPC": service.target,
        "SPYGLASS_API_KEY": "sk-test",
        "SPYGLASS_CHAT_MODEL": "some-model",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=cwd, stdout=PIPE, stderr=STDOUT)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    assert set(service.authorizations) <= {"Bearer sk-test"}
    assert {turn.start.model for turn in service.turns} <= {"some-model"}
    return out.decode()


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("hello_grpc.py", "Hello!"),
        ("stream_grpc.py", "short story"),
        ("image_grpc.py", "What is in the picture?"),
        ("conversation_grpc.py", "How many triangles are there?"),
        ("async_many.py", "What is a prism?"),
    ],
)
async def test_python(service: FakeService, name: str, printed: str) -> None:
    assert printed in await run(service, sys.executable, EXAMPLES / "python" / name)


async def test_a_conversation_keeps_its_pictures(service: FakeService) -> None:
    await run(service, sys.executable, EXAMPLES / "python" / "conversation_grpc.py")
    first, second = (EXAMPLES / "pictures" / f"{name}.png" for name in ("star_and_square", "three_triangles"))
    for number, turn in enumerate(service.turns):
        messages = turn.start.chat.messages
        assert len(messages) == 1 + 2 * number
        assert messages[0].parts[0].image.data == first.read_bytes()
    assert service.turns[2].start.chat.messages[4].parts[0].image.data == second.read_bytes()


async def test_grpcurl_lists(service: FakeService) -> None:
    printed = await run(service, EXAMPLES / "grpcurl" / "list.sh")
    assert "rpc Generate ( stream .spyglass.v1.GenerateRequest )" in printed
    assert '"id": "spyglass-demo"' in printed


async def test_grpcurl_asks_for_health(service: FakeService) -> None:
    assert '"status": "SERVING"' in await run(service, EXAMPLES / "grpcurl" / "health.sh")


async def test_grpcurl_holds_a_conversation(service: FakeService) -> None:
    printed = await run(service, EXAMPLES / "grpcurl" / "chat.sh")
    assert '"finish_reason": "FINISH_REASON_STOP"' in printed
    [turn] = service.turns
    assert [message.role for message in turn.start.chat.messages] == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_USER,
    ]
    assert turn.start.sampling.HasField("temperature")


async def test_grpcurl_shows_a_picture(service: FakeService) -> None:
    await run(service, EXAMPLES / "grpcurl" / "image.sh")
    parts = service.turns[0].start.chat.messages[0].parts
    assert parts[0].image.data == PICTURE
    assert parts[1].text == "What is in the picture?"


@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm here")
async def test_typescript_with_the_stubs_that_the_template_makes(service: FakeService, tmp_path: Path) -> None:
    for part in ("clients/examples/typescript", "clients/stubs", "protos"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("node_modules", "gen"))
    here = tmp_path / "clients/examples/typescript"
    ping = await asyncio.create_subprocess_exec("npm", "ping", stdout=PIPE, stderr=STDOUT)
    await ping.communicate()
    if ping.returncode:
        pytest.skip("npm's registry cannot be reached")
    for words in (("install", "--silent", "--no-fund", "--no-audit"), ("run", "generate"), ("run", "check")):
        await run(service, "npm", *words, cwd=here)
    printed = await run(service, "npm", "start", "--silent", "two words", cwd=here)
    assert printed == "two words \n[7 + 3 tokens]\n"
