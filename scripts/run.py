"""`make run`: serves the embedded model for development, and says how to talk to it.

Owns the development key, which is kept in `.spyglass/dev-key` for this user alone. All settings are
those of `spyglass serve` and come from the environment.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY_FILE = ROOT / ".spyglass" / "dev-key"
DATA_DIR = ROOT / ".spyglass" / "data"
POLL_S = 0.2

EXAMPLES = """
The development key is {key}

Ask it over HTTP:

  curl {url}/v1/openai/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

In the terminal:

  SPYGLASS_GRPC={grpc} SPYGLASS_API_KEY={key} {bin}/spyglass chat "What is the capital of France?"

From Python, with the openai package:

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1/openai", api_key="{key}")
  question = [{{"role": "user", "content": "Name three colours."}}]
  print(client.chat.completions.create(model="{model}", messages=question).choices[0].message.content)

Ctrl-C stops it.
"""


def dev_key() -> str:
    """The key of earlier runs, or a new one."""
    if not KEY_FILE.exists():
        KEY_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("sk-dev-" + secrets.token_urlsafe(24) + "\n")
    return KEY_FILE.read_text().strip()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    environ = os.environ | {
        "SPYGLASS_API_KEY": os.environ.get("SPYGLASS_API_KEY") or dev_key(),
        "SPYGLASS_DATA_DIR": os.environ.get("SPYGLASS_DATA_DIR") or str(DATA_DIR),
    }
    http = environ.get("SPYGLASS_HTTP") or "127.0.0.1:8000"
    model = environ.get("SPYGLASS_MODEL") or "demo"
    url = f"http://{http}"
    if is_ready(url):
        print(f"{url} is taken by another Spyglass; SPYGLASS_HTTP and SPYGLASS_GRPC choose other addresses")
        return 1
    default_name = "spyglass-demo" if model == "demo" else Path(model).resolve().name
    server = subprocess.Popen([sys.executable, "-m", "spyglass_client", "serve"], env=environ)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal's Ctrl-C reaches `spyglass serve` by itself
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while server.poll() is None and not is_ready(url):
        time.sleep(POLL_S)
    if server.poll() is None:
        print(
            EXAMPLES.format(
                url=url,
                grpc=environ.get("SPYGLASS_GRPC") or "127.0.0.1:50051",
                key=environ["SPYGLASS_API_KEY"].split(",")[0],
                model=(environ.get("SPYGLASS_SERVED_MODEL_NAME") or default_name).split(",")[0],
                bin=Path(sys.executable).parent,
            ),
            flush=True,
        )
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
