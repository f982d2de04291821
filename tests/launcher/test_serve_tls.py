"""`spyglass serve` and the commands beside it, with TLS on both sides."""

import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificates import Pair, make_pair, make_signed_pair, needs_openssl
from spyglass_client.cli import main
from spyglass_launcher.own_tls import name_in
from stack import KEY, Stack

pytestmark = needs_openssl


def trusting(*pairs: Pair) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(cadata="".join(pair.pem for pair in pairs))
    return context


def command(stack: Stack, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs `spyglass` of this environment."""
    return subprocess.run(
        [sys.executable, "-m", "spyglass_client", *words],
        env=stack.environ(**environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_serve_with_tls_on_both_sides(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The certificate is for a name that is not this machine's; clients need a certificate of their own."""
    web = make_pair(tmp_path, "web")
    authority, new = make_pair(tmp_path, "authority"), make_pair(tmp_path, "new", "DNS:*.example.com")
    served = make_signed_pair(tmp_path, "served", "DNS:*.example.com", authority)
    client = make_pair(tmp_path, "client")
    options = {
        "http-tls-cert": web.cert,
        "http-tls-key": web.key,
        "grpc-tls-cert": served.cert,
        "grpc-tls-key": served.key,
        "grpc-tls-client-ca": client.cert,
        "grpc-client-cert": client.cert,
        "grpc-client-key": client.key,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with Stack(tmp_path / "data", "--model", str(tiny_checkpoint), *words) as stack:
        assert f"  HTTP   https://{stack.address}" in stack.lines
        assert f"  gRPC   {stack.grpc} over TLS" in stack.lines
        assert "without TLS" not in stack.log_file.read_text()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}

        def status() -> int:
            headers = {"Authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=f"https://{stack.address}", verify=trusting(web), headers=headers) as http:
                return http.post("/v1/chat/completions", json=body, timeout=60).status_code

        assert status() == 200
        mine = {"SPYGLASS_GRPC_CLIENT_CERT": str(client.cert), "SPYGLASS_GRPC_CLIENT_KEY": str(client.key)}
        named = {"SPYGLASS_GRPC_SERVER_NAME": "any.example.com"}
        trust = {"SPYGLASS_GRPC_CA": str(authority.cert)}
        for words in (["models"], ["usage"], ["chat", "--max-tokens=2", "Hi"], ["keys", "list"]):
            at = ["--data-dir", str(stack.data_dir)] if words[0] == "keys" else []
            good = command(stack, *words, *at, **mine, **named, **trust)
            assert good.returncode == 0, good.stderr
            for bad in (mine | named, named | trust, mine | trust, {}):
                refused = command(stack, *words, *at, **bad)
                assert refused.returncode == 1, (bad, refused.stdout)
                assert len(refused.stderr.splitlines()) == 1
        new.copy_to(served)  # the bridge goes on, and finds the server again when it loses it
        time.sleep(3)
        assert status() == 200
        good = command(stack, "status", **mine, **named, SPYGLASS_GRPC_CA=str(new.cert))
        assert good.returncode == 0, good.stderr


def test_the_name_in_a_certificate(tmp_path: Path) -> None:
    authority = make_pair(tmp_path, "authority")
    for hosts, name in (
        ("DNS:a.example.com,DNS:b", "a.example.com"),
        ("IP:10.1.2.3", "10.1.2.3"),
        ("DNS:*.x.org", "spyglass.x.org"),
    ):
        for pair in (make_pair(tmp_path, "own", hosts), make_signed_pair(tmp_path, "signed", hosts, authority)):
            assert name_in(pair.cert, pair.key) == name


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--grpc-ca", "system"], "--grpc-ca: serve's own server has no TLS"),
        (["--grpc-tls-cert", "{cert}"], "--grpc-tls-cert needs --grpc-tls-key"),
        (
            ["--grpc-tls-cert", "{cert}", "--grpc-tls-key", "{key}", "--grpc-tls-client-ca", "{cert}"],
            "the bridge needs a certificate too",
        ),
        (["--grpc-tls-cert", "{cert}", "--grpc-tls-key", "{cert}"], "not a certificate and its key"),
        (["--socket-mode", "999"], "is not a permission mode"),
        (["--cors-origin", "app.example.com"], "is neither an origin"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_pair(tmp_path, "pair")
    words = [word.format(cert=pair.cert, key=pair.key) for word in options]
    try:
        code: Any = main(["serve", *words])
    except SystemExit as end:
        code = end.code
    assert code != 0
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--grpc-client-cert", "x"], ["--grpc-server-name", "x"]])
def test_commands_refuse_half_of_what_tls_needs(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *options]) == 1
    assert "--grpc-c" in capsys.readouterr().err
