"""The `spyglass` command: its options and error output.

Exit codes are 0 for success, 1 for a failure (one line on stderr), 2 for wrong options and 130 after Ctrl-C. Each
command is implemented in its own module.
"""

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from spyglass_client import keys_command
from spyglass_client.chat.command import run_chat
from spyglass_client.chat.writing import describe, printable
from spyglass_client.errors import SpyglassError
from spyglass_client.reports import run_models, run_usage
from spyglass_client.status_command import run_status
from spyglass_client.target import DEFAULT_TARGET, default_admin_key, default_api_key, default_target
from spyglass_common.settings import Collect, add_settings, address, non_negative_float, positive_float, positive_int
from spyglass_common.shared_settings import GRPC_CLIENT_TLS
from spyglass_common.times import parse_time

_EXAMPLES = """examples:
  spyglass serve --model demo
  spyglass chat
  spyglass chat "Hello!"
  spyglass chat --image cat.png "What is in the picture?"
  spyglass chat --image receipt.jpg --json-schema receipt.schema.json "What was bought?"
  git diff | spyglass chat --system "Write a commit message for this." -
  spyglass models
  spyglass status --watch
  spyglass usage --by day,model
  spyglass keys create --name alice --tenant acme --requests-per-minute 60 --usd-per-month 20
  spyglass plan --model 90b --gpu h200 --quantization fp8
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(os.environ, words[0] if words else "")
    args = parser.parse_args(words)
    try:
        code: int = args.run(args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: discard further output
        return 1
    except (SpyglassError, OSError, ValueError) as error:
        print(f"spyglass: {printable(describe(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser(environ: Mapping[str, str], command: str) -> argparse.ArgumentParser:
    """Builds the whole parser; imports and environment variables of serve and plan are read only for them."""
    parser = argparse.ArgumentParser(
        prog="spyglass",
        description="Serves Llama 3.2 Vision models, and talks to them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spyglass {importlib.metadata.version('spyglass')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = _add_command(commands, "serve", _run_serve, "run a server and a bridge until Ctrl-C")
    if command == "serve":
        from spyglass_launcher.settings import SETTINGS

        add_settings(serve, SETTINGS, environ)
    plan = _add_command(commands, "plan", _run_plan, "compute what a model needs and reaches on given GPUs")
    if command == "plan":
        from spyglass_server.planning.command import add_options

        add_options(plan, environ)
    _add_chat(commands, environ)
    models = _add_command(commands, "models", run_models, "list the models that a server runs")
    _add_connection(models, environ)
    models.add_argument("--json", action="store_true", help="print JSON")
    status = _add_command(commands, "status", run_status, "show how a server is")
    _add_connection(status, environ)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--watch", action="store_true", help="keep it updated until Ctrl-C")
    status.add_argument(
        "--interval", type=positive_float, default=1.0, metavar="SECONDS", help="how often to update (default: 1)"
    )
    usage = _add_command(commands, "usage", run_usage, "show what your key has used")
    _add_connection(usage, environ)
    usage.add_argument("--json", action="store_true", help="print JSON, as --format json does")
    usage.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print (default: table)"
    )
    usage.add_argument(
        "--by",
        type=lambda text: text.split(","),
        metavar="WORD,…",
        help="group sums by tenant, key, model or day, or by several, separated by commas",
    )
    for flag, what in (
        ("--since", "that began at this day or time (UTC) or later"),
        ("--until", "that began before it"),
    ):
        usage.add_argument(flag, type=moment, metavar="TIME", help=f"only generations {what}")
    usage.add_argument("--model", metavar="NAME", help="only generations of this model")
    usage.add_argument("--all", action="store_true", help="of all keys, with an operator's key")
    usage.add_argument("--tenant", metavar="NAME", help="of a tenant's keys, with an operator's key")
    usage.add_argument("--key", metavar="ID", help="of one key, with an operator's key")
    _add_admin(usage, environ)
    _add_option(
        usage,
        environ,
        "--records",
        "SPYGLASS_USAGE_RECORDS",
        "how many of the latest generations to list, at most 1000 (default: 10)",
        default="10",
        parse=whole_number,
        metavar="N",
    )
    verify = _add_command(
        usage.add_subparsers(metavar="[verify]"),
        "verify",
        _run_verify,
        "check, beside a server's data folder, that none of its usage records was changed, added or removed",
    )
    if command == "usage":
        from spyglass_server.ledger.command import add_options as add_ledger_options

        add_ledger_options(verify, environ)
    _add_keys(commands, environ)
    return parser


def _add_keys(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environ: Mapping[str, str]) -> None:
    keys = _add_command(commands, "keys", keys_command.run_list, "manage the keys of a server")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("create", keys_command.run_create, "make a key, and print it this once"),
        ("list", keys_command.run_list, "list keys"),
        ("show", keys_command.run_show, "show a key"),
        ("update", keys_command.run_update, "change what a key may do"),
        ("revoke", keys_command.run_revoke, "end a key for good"),
    ):
        action = _add_command(actions, name, run, text)
        if name in ("show", "update", "revoke"):
            action.add_argument("id", metavar="ID", help="the key's id, which list shows")
        if name in ("create", "update"):
            keys_command.add_fields(action)
        if name == "list":
            action.add_argument("--tenant", metavar="NAME", help="only those of a tenant")
            action.add_argument("--all", action="store_true", help="also those that are revoked or have expired")
        action.add_argument("--json", action="store_true", help="print JSON")
        _add_target(action, environ)
        _add_admin(action, environ)


def _run_serve(args: argparse.Namespace) -> int:
    from spyglass_launcher.serve import run_serve

    return run_serve(args)


def _run_plan(args: argparse.Namespace) -> int:
    from spyglass_server.planning.command import run_plan

    return run_plan(args)


def _run_verify(args: argparse.Namespace) -> int:
    from spyglass_server.ledger.command import run_verify

    return run_verify(args)


def _add_chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environ: Mapping[str, str]) -> None:
    chat = _add_command(commands, "chat", run_chat, "ask a question, or hold a conversation")
    chat.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="the question; - reads it from stdin, as does no question if stdin is not a terminal; on a terminal, no "
        "question begins a conversation",
    )
    for flag, variable, what in (
        ("--image", "SPYGLASS_CHAT_IMAGE", "a picture to ask about"),
        ("--file", "SPYGLASS_CHAT_FILE", "a text to ask about"),
    ):
        chat.add_argument(
            flag,
            action=Collect,
            nargs=1,
            default=tuple(path for path in environ.get(variable, "").split(os.pathsep) if path),
            metavar="FILE",
            help=f"{what}; may be given several times [{variable}, separated by {os.pathsep}]",
        )
    options: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
        ("--json-schema", "hold answers to a JSON schema: a file, or the schema itself", json_schema, "FILE|JSON"),
        ("--system", "a system prompt", str, "TEXT"),
        ("--model", "the model to ask (default: the server's first)", str, "NAME"),
        ("--max-tokens", "the longest answer, in tokens (default: what fits)", positive_int, "N"),
        ("--temperature", "0 always takes the most probable token; at most 2 (default: 1)", non_negative_float, "T"),
        ("--show-attention", "write where the model looked as a PNG, over the picture", str, "FILE"),
        ("--seed", "the same seed gives the same answer (default: a random one)", whole_number, "N"),
    )
    for flag, text, parse, metavar in options:
        variable = "SPYGLASS_CHAT_" + flag.strip("-").upper().replace("-", "_")
        _add_option(chat, environ, flag, variable, text, parse=parse, metavar=metavar)
    _add_connection(chat, environ)


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_connection(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Adds the server's address and the API key."""
    _add_target(parser, environ)
    parser.add_argument(
        "--api-key",
        default=default_api_key(environ),
        metavar="KEY",
        help="your key; the first one, if the variable holds several [SPYGLASS_API_KEY]",
    )


def _add_admin(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Adds the operator's key, and the server's data folder, which contains one."""
    parser.add_argument(
        "--admin-key",
        default=default_admin_key(environ),
        metavar="KEY",
        help="a key with the scope admin (default: the one in the server's data folder) [SPYGLASS_ADMIN_KEY]",
    )
    parser.add_argument(
        "--data-dir",
        default=environ.get("SPYGLASS_DATA_DIR"),
        metavar="DIR",
        help="the server's data folder (default: ~/.local/share/spyglass) [SPYGLASS_DATA_DIR]",
    )


def _add_target(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    parser.add_argument(
        "--grpc",
        type=address,
        default=default_target(environ),
        metavar="HOST:PORT",
        help=f"where the server is (default: {DEFAULT_TARGET}) [SPYGLASS_GRPC]",
    )
    add_settings(parser, GRPC_CLIENT_TLS, environ)


def _add_option(
    parser: argparse.ArgumentParser,
    environ: Mapping[str, str],
    flag: str,
    variable: str,
    text: str,
    *,
    parse: Callable[[str], Any],
    metavar: str,
    default: str | None = None,
) -> None:
    """Adds an option with its variable; argparse parses a string default like an argument."""
    parser.add_argument(
        flag, type=parse, default=environ.get(variable) or default, metavar=metavar, help=f"{text} [{variable}]"
    )


def json_schema(text: str) -> Any:
    """Parses a schema: the JSON object itself, or the path of its file."""
    try:
        written = text if text.lstrip().startswith("{") else Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {error}") from None
    try:
        schema = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return schema


def moment(text: str) -> datetime:
    """Parses a day or a time, in UTC unless it says otherwise."""
    try:
        return parse_time(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-29 or 2026-11-29T12:00:00Z") from None


def whole_number(text: str) -> int:
    """Parses a non-negative integer that fits in 64 bits."""
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)
