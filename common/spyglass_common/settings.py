"""Settings: command-line options that can also be set by an environment variable.

Each process declares its own in a table, a tuple of `Setting`; `add_settings` turns the table into argparse options.

    PORT = count("port", "TCP port to listen on", 80)  # --port, SPYGLASS_PORT
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """One option. `name` is the flag without its dashes; the name of the variable is derived from it.

    A `multiple` setting is a tuple: its option takes several values and may be repeated, and its variable separates
    them by commas. The default of a `secret` setting is not shown. A setting with a `negation` has a second flag,
    --no-NAME, that sets this value.
    """

    name: str
    help: str
    default: Any
    _: KW_ONLY
    parse: Callable[[str], Any] = str
    metavar: str = "TEXT"
    multiple: bool = False
    secret: bool = False
    negation: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name

    @property
    def env(self) -> str:
        """The name of the environment variable."""
        return "SPYGLASS_" + self.name.upper().replace("-", "_")

    @property
    def dest(self) -> str:
        """The attribute of the parsed options."""
        return self.name.replace("-", "_")


def address(text: str) -> str:
    """Checks HOST:PORT ([HOST]:PORT for IPv6) or unix:PATH and returns it unchanged."""
    if text.startswith("unix:") and len(text) > 5:
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT or unix:PATH")
    return text


def tcp_address(text: str) -> str:
    """Checks HOST:PORT ([HOST]:PORT for IPv6) and returns it unchanged."""
    if text.startswith("unix:"):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return address(text)


def http_url(text: str) -> str:
    """Checks http://HOST… or https://HOST… and returns it unchanged."""
    if not re.fullmatch(r"https?://[^\s/]+\S*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not http://HOST:PORT")
    return text


def origin(text: str) -> str:
    """Checks SCHEME://HOST[:PORT] as browsers write it, or *, and returns it as browsers write it."""
    lowered = text.lower()
    if lowered != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", lowered):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an origin such as https://app.example.com nor *")
    for scheme, port in (("https://", ":443"), ("http://", ":80")):
        if lowered.startswith(scheme):
            lowered = lowered.removesuffix(port)
    return lowered


def file_mode(text: str) -> str:
    """Checks permissions in octal digits, as chmod takes them, and returns them unchanged."""
    if not 3 <= len(text) <= 4 or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not a permission mode such as 600 or 0660")
    return text


def positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def non_negative_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def positive_float(text: str) -> float:
    number = non_negative_float(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def fraction(text: str) -> float:
    number = positive_float(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return number


def choice(name: str, description: str, default: str, metavar: str, *, negation: str | None = None) -> Setting:
    """Returns a setting that takes one of the words in `metavar`, which are separated by |."""
    words = metavar.split("|")

    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    return Setting(name, description, default, parse=parse, metavar=metavar, negation=negation)


def count(name: str, description: str, default: int | None, metavar: str = "N") -> Setting:
    """Returns a setting that takes a whole number above 0."""
    return Setting(name, description, default, parse=positive_int, metavar=metavar)


def add_settings(
    parser: argparse.ArgumentParser, settings: Iterable[Setting], environ: Mapping[str, str] = os.environ
) -> None:
    """Adds an option for each setting; a value in `environ` replaces its default.

    A bad value in the environment ends the program with the same message as a bad option.
    """
    for setting in settings:
        default = setting.default
        if text := environ.get(setting.env):
            try:
                values = [setting.parse(word.strip()) for word in text.split(",")] if setting.multiple else None
                default = tuple(values) if values is not None else setting.parse(text)
            except argparse.ArgumentTypeError as error:
                parser.error(f"{setting.env}: {error}")
        parser.add_argument(
            setting.flag,
            type=setting.parse,
            action=Collect if setting.multiple else "store",
            nargs="+" if setting.multiple else None,
            default=default,
            metavar=setting.metavar,
            help=_help(setting),
        )
        if setting.negation is not None:
            parser.add_argument(
                f"--no-{setting.name}",
                dest=setting.dest,
                action="store_const",
                const=setting.parse(setting.negation),
                default=argparse.SUPPRESS,
                help=f"the same as {setting.flag} {setting.negation}",
            )


class Collect(argparse.Action):
    """Collects the values of an option that may be repeated (with `nargs`); the first use replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        earlier = () if given is self.default else given
        setattr(namespace, self.dest, (*earlier, *values))


def _help(setting: Setting) -> str:
    shown = setting.default not in (None, ()) and not setting.secret
    default = f" (default: {setting.default})" if shown else ""
    return f"{setting.help}{default} [{setting.env}]".replace("%", "%%")


def to_environ(settings: Iterable[Setting], values: Mapping[str, Any]) -> dict[str, str]:
    """Turns parsed options into environment variables for another process; unset ones are left out."""
    result = {}
    for setting in settings:
        value = values.get(setting.dest)
        if value in (None, ()):
            continue
        words: Iterable[Any] = value if setting.multiple else (value,)
        result[setting.env] = ",".join(str(word) for word in words)
    return result
