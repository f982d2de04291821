"""`spyglass keys`: creates, lists, shows, changes and revokes keys."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from spyglass_client.admin import AdminClient, ApiKey
from spyglass_client.tables import as_json, table
from spyglass_client.target import tls_of
from spyglass_common.data_dir import ADMIN_KEY_FILE, data_dir_of
from spyglass_common.keys import KEY_LIMITS, SCOPES
from spyglass_common.times import parse_time

_NONE = "none"
_UNITS = {"d": 86400, "h": 3600, "m": 60}


def open_admin(args: argparse.Namespace) -> AdminClient:
    """Opens a client with the given key, else with the operator's key in the server's data folder."""
    key = args.admin_key
    path = data_dir_of(args.data_dir) / ADMIN_KEY_FILE
    if key is None:
        try:
            key = path.read_text("ascii").strip()
        except OSError as error:
            raise ValueError(f"give --admin-key, or --data-dir beside the server: {error}") from error
    return AdminClient(args.grpc, admin_key=key, tls=tls_of(args))


def run_create(args: argparse.Namespace) -> int:
    """Creates a key and prints it. Raises SpyglassError."""
    with open_admin(args) as admin:
        key, secret = admin.create_key(**_fields(args))
    if args.json:
        sys.stdout.write(as_json({"secret": secret, "key": key}))
    else:
        sys.stdout.write(f"{secret}\n")  # alone, so that it can be piped
        sys.stderr.write(f"{_described(key)}The key is shown only this once.\n")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Prints keys. Raises SpyglassError."""
    with open_admin(args) as admin:
        keys = admin.keys(args.tenant or "", include_ended=args.all)
    sys.stdout.write(as_json(keys) if args.json else _listed(keys))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Prints one key. Raises SpyglassError."""
    with open_admin(args) as admin:
        return _print(args, admin.key(args.id))


def run_update(args: argparse.Namespace) -> int:
    """Changes a key. Raises SpyglassError."""
    changed = _fields(args)
    if not changed:
        raise ValueError("say what is to be changed, such as --requests-per-minute 60")
    with open_admin(args) as admin:
        return _print(args, admin.update_key(args.id, **changed))


def run_revoke(args: argparse.Namespace) -> int:
    """Revokes a key. Raises SpyglassError."""
    with open_admin(args) as admin:
        return _print(args, admin.revoke_key(args.id))


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Adds options for the fields of a key; those that can be cleared accept the word none."""
    parser.add_argument("--name", help="a name for people")
    parser.add_argument(
        "--tenant", help="its owner: keys of one tenant share caches and scheduling turns (default: its own)"
    )
    parser.add_argument(
        "--scope", action="append", choices=list(SCOPES), help="what it may do; may be repeated (default: generate)"
    )
    parser.add_argument(
        "--models", metavar="NAME,…|none", type=_models, help="the models that it may use (default: all)"
    )
    parser.add_argument(
        "--expires", metavar="30d|DATE|none", type=_expiry, help="when it expires: after 30d, 12h or 15m, or at a time"
    )
    for name, what, number in (
        ("requests-per-minute", "generations that it may begin in a minute", int),
        ("tokens-per-minute", "tokens of prompts and answers in a minute", int),
        ("concurrent-generations", "generations at a time", int),
        ("usd-per-day", "US dollars a day, in UTC", float),
        ("usd-per-month", "US dollars a month, in UTC", float),
    ):
        parser.add_argument(
            f"--{name}", metavar="N|none", type=_limit(number), default=argparse.SUPPRESS, help=f"{what} (default: any)"
        )


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields that were given."""
    given = {"name": args.name, "tenant": args.tenant, "scopes": args.scope, "models": args.models}
    fields = {name: value for name, value in given.items() if value is not None}
    if args.expires is not None:
        fields["expires"] = None if args.expires == _NONE else args.expires
    return fields | {name: getattr(args, name) for name in KEY_LIMITS if hasattr(args, name)}


def _print(args: argparse.Namespace, key: ApiKey) -> int:
    sys.stdout.write(as_json(key) if args.json else _described(key))
    return 0


def _listed(keys: Sequence[ApiKey]) -> str:
    header = ("ID", "NAME", "TENANT", "SCOPES", "STATE", "ENDS WITH", "LIMITS")
    rows = [
        (key.id, key.name, key.tenant, ",".join(key.scopes), _state(key), key.hint or "-", _limits(key)) for key in keys
    ]
    return table(header, rows, num_words=len(header))


def _described(key: ApiKey) -> str:
    lines = {
        "id": key.id,
        "name": key.name or "-",
        "tenant": key.tenant,
        "scopes": ", ".join(key.scopes),
        "models": ", ".join(key.models) or "all",
        "limits": _limits(key),
        "created": f"{key.created:%Y-%m-%d %H:%M:%S} UTC" if key.created else "by the server's settings",
        "expires": f"{key.expires:%Y-%m-%d %H:%M:%S} UTC" if key.expires else "never",
        "state": _state(key),
    }
    return "".join(f"{name:8}  {value}\n" for name, value in lines.items())


def _state(key: ApiKey) -> str:
    if key.revoked:
        return "revoked"
    if key.expires and key.expires <= datetime.now(UTC):
        return "expired"
    return "configured" if key.configured else "active"


def _limits(key: ApiKey) -> str:
    limits = key.limits
    words = (
        (limits.requests_per_minute, "{:,} requests/min"),
        (limits.tokens_per_minute, "{:,} tokens/min"),
        (limits.concurrent_generations, "{:,} at a time"),
        (limits.usd_per_day, "${:,.2f}/day"),
        (limits.usd_per_month, "${:,.2f}/month"),
    )
    return ", ".join(form.format(limit) for limit, form in words if limit is not None) or "none"


def _models(text: str) -> list[str]:
    return [] if text == _NONE else [name for name in text.split(",") if name]


def _expiry(text: str) -> datetime | str:
    if text == _NONE:
        return text
    if text[:-1].isdecimal() and text[-1:] in _UNITS:
        try:
            return datetime.now(UTC) + timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        except OverflowError:
            raise argparse.ArgumentTypeError(f"{text!r} is too long") from None
    try:
        return parse_time(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time, nor a number of d, h or m, nor none") from None


def _limit(number: type[int] | type[float]) -> Any:
    def parse(text: str) -> float | None:
        if text == _NONE:
            return None
        value = number(text)
        if not 0 <= value < 2**53:
            raise ValueError
        return value

    parse.__name__ = "number"  # for argparse's message
    return parse
