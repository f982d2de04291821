"""The peers that `make bench-peers` installs into their own environment: OpenVINO GenAI and `transformers serve`.

Owns the models that they load, and how each is started, asked and stopped. Like all contestants they have the
environment variables of the engine's process. Knows nothing about tables.
"""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import plain_model
from askers import Chat
from contestants import OverHttp, prompt_ids
from load import Sample, Summary, summarize
from processes import free_ports, until_ready
from spyglass_server.prompt import PromptMaker

_SCRIPTS = Path(__file__).with_name("peers")
_EXPORT, _CHILD, _REQUIREMENTS = (
    _SCRIPTS / name for name in ("export_openvino.py", "openvino_child.py", "requirements.txt")
)
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers' environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def exist(self) -> bool:
        return self.python.exists()

    def plain_model(self, checkpoint: Path) -> Path:
        """Returns the text layers as a plain Llama, which is written once."""
        return self._written("plain", checkpoint, lambda folder: plain_model.write(checkpoint, folder))

    def openvino_model(self, checkpoint: Path) -> Path:
        """Returns the same model, exported to OpenVINO."""
        plain = self.plain_model(checkpoint)
        return self._written("openvino", checkpoint, lambda folder: self._export(plain, folder))

    def _export(self, plain: Path, folder: Path) -> None:
        command = [self.python, _EXPORT, plain, folder]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            sys.exit(f"{ended.stderr}\nthe export to OpenVINO failed")

    def _written(self, kind: str, checkpoint: Path, write: Callable[[Path], object]) -> Path:
        """Returns the complete folder of a kind for this checkpoint and these scripts."""
        digest = hashlib.sha256()
        for file in (*sorted(checkpoint.glob("*.safetensors")), checkpoint / "tokenizer.json"):
            digest.update(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns} ".encode())
        for file in (Path(plain_model.__file__), _EXPORT, _REQUIREMENTS):
            digest.update(file.read_bytes())
        target = self.folder / "exports" / digest.hexdigest()[:16] / kind
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                write(Path(folder) / kind)
                (Path(folder) / kind).rename(target)
        return target


class OpenVino:
    """OpenVINO GenAI's pipeline with continuous batching, in a child process that idles until it is asked."""

    def __init__(self, child: "subprocess.Popen[str]", maker: PromptMaker) -> None:
        self._child, self._maker = child, maker

    @classmethod
    @contextlib.contextmanager
    def started(cls, peers: Peers, checkpoint: Path, maker: PromptMaker) -> Iterator["OpenVino"]:
        model = peers.openvino_model(checkpoint)
        command = [str(part) for part in (peers.python, _CHILD, model, torch.get_num_threads())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            one = cls(child, maker)
            if one._read() != "ready":
                sys.exit("OpenVINO GenAI did not start; `make bench-peers` installs it")
            yield one

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        samples, duration_s = await asyncio.to_thread(self.answer, chats, concurrency, max_tokens)
        return summarize(samples, duration_s)

    def answer(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> tuple[list[Sample], float]:
        """Returns the answers with their tokens, and the total time in seconds, as measured by the child."""
        prompts = [prompt_ids(self._maker, chat) for chat in chats]
        load = {
            "prompts": prompts,
            "concurrency": concurrency,
            "max_tokens": max_tokens,
            "stop_token_ids": sorted(self._maker.stop_token_ids),
        }
        assert self._child.stdin is not None
        print(json.dumps(load), file=self._child.stdin, flush=True)
        reply: dict[str, Any] = json.loads(self._read())
        samples = [
            Sample(
                started=answer["started"],
                pieces=answer["pieces"],
                prompt_tokens=len(prompt),
                tokens=len(answer["tokens"]),
                token_ids=answer["tokens"],
            )
            for prompt, answer in zip(prompts, reply["answers"], strict=True)
        ]
        return samples, reply["duration_s"]

    def _read(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().rstrip("\n")


@contextlib.contextmanager
def transformers_serve(peers: Peers, checkpoint: Path) -> Iterator[OverHttp]:
    """Runs `transformers serve` with continuous batching, with room for about 24,000 tokens."""
    model = str(peers.plain_model(checkpoint))
    [port] = free_ports(1)
    command = [str(peers.folder / "bin" / "transformers"), "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32", "--continuous-batching"]
    command += ["--cb-num-blocks", "96", "--cb-max-batch-tokens", "512"]  # by default it takes most of the memory
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(until_ready(f"http://127.0.0.1:{port}/health", process))
        yield OverHttp(f"http://127.0.0.1:{port}/v1", model=model)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
