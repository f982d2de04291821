"""`make run`: serves the demo model for development, and says how to talk to it.

Owns the development key, which is kept in `.spyglass/dev-key` for this user alone. All settings are
those of `spyglass serve` and come from the environment.
"""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY_FILE = ROOT / ".spyglass" / "dev-key"
DATA_DIR = ROOT / ".spyglass" / "data"
BANNERS_MODEL = "  model  "

EXAMPLES = """
The development key is {key}

Open its page and try it there:

  {url}/

Ask it over HTTP:

  curl {url}/v1/openai/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

In the terminal:

  SPYGLASS_GRPC={grpc} SPYGLASS_API_KEY={key} {bin}/spyglass chat --temperature 0 "What is the capital of France?"

From Python, with the openai package:

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1/openai", api_key="{key}")
  question = [{{"role": "user", "content": "Name three colours."}}]
  answer = client.chat.completions.create(model="{model}", messages=question, temperature=0, max_tokens=100)
  print(answer.choices[0].message.content)

Ctrl-C stops it.
"""


def dev_key() -> str:
    """The key of earlier runs, or a new one."""
    if not KEY_FILE.exists():
        KEY_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("sk-dev-" + secrets.token_urlsafe(24) + "\n")
    return KEY_FILE.read_text().strip()


def default_name(model: str) -> str:
    """The name that a checkpoint is served under unless a setting names another."""
    return "spyglass-demo" if model == "demo" else Path(model).resolve().name


def main() -> int:
    environ = os.environ | {
        "SPYGLASS_API_KEY": os.environ.get("SPYGLASS_API_KEY") or dev_key(),
        "SPYGLASS_DATA_DIR": os.environ.get("SPYGLASS_DATA_DIR") or str(DATA_DIR),
    }
    names = (environ.get("SPYGLASS_SERVED_MODEL_NAME") or default_name(environ.get("SPYGLASS_MODEL") or "demo")).split(
        ","
    )
    examples = EXAMPLES.format(
        url="http://" + (environ.get("SPYGLASS_HTTP") or "127.0.0.1:8000").replace("0.0.0.0", "127.0.0.1"),
        grpc=(environ.get("SPYGLASS_GRPC") or "127.0.0.1:50051").replace("0.0.0.0", "127.0.0.1"),
        key=environ["SPYGLASS_API_KEY"].split(",")[0],
        model=names[0].strip(),
        bin=Path(sys.executable).parent,
    )
    command = [sys.executable, "-m", "spyglass_client", "serve"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as server:
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal's Ctrl-C reaches `spyglass serve` by itself
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        assert server.stdout is not None
        models_to_come = len(names)
        for line in server.stdout:
            print(line, end="", flush=True)
            if line.startswith(BANNERS_MODEL):
                models_to_come -= 1
                if not models_to_come:  # the banner of `spyglass serve` is complete
                    print(examples, flush=True)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
