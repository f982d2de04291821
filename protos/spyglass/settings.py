"""Every setting of Spyglass: one table of options, shared by the commands.

Owns the names, environment variables, defaults and help texts. `spyglass serve` offers all of them
and hands them on as environment variables; `spyglass-server` and `spyglass-bridge` each offer their
own. Knows nothing of what a setting does.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from spyglass.values import address, non_negative_float, one_of, positive_float, positive_int

Process = Literal["server", "bridge"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One option. `name` is the flag without its dashes; the variable follows from it."""

    name: str
    help: str
    default: Any
    _: KW_ONLY
    used_by: tuple[Process, ...]
    parse: Callable[[str], Any] = str
    metavar: str = "TEXT"
    multiple: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name

    @property
    def env(self) -> str:
        """The environment variable; several values are separated by commas."""
        return "SPYGLASS_" + self.name.upper().replace("-", "_")

    @property
    def dest(self) -> str:
        return self.name.replace("-", "_")


_BOTH: tuple[Process, ...] = ("server", "bridge")
_SERVER: tuple[Process, ...] = ("server",)
_BRIDGE: tuple[Process, ...] = ("bridge",)

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model", "a checkpoint folder, or demo for the embedded model", "demo", used_by=_SERVER, metavar="PATH|demo"
    ),
    Setting(
        "served-model-name",
        "a name that clients use for the model; several may be given; the first answers requests without "
        "one (default: the folder's name)",
        (),
        used_by=_SERVER,
        metavar="NAME",
        multiple=True,
    ),
    Setting("http", "where the bridge listens", "127.0.0.1:8000", used_by=_BRIDGE, parse=address, metavar="HOST:PORT"),
    Setting(
        "grpc",
        "where the server listens and the bridge finds it",
        "127.0.0.1:50051",
        used_by=_BOTH,
        parse=address,
        metavar="HOST:PORT",
    ),
    Setting(
        "api-key",
        "a key that clients may use; several may be given (default: the server makes one on its first "
        "start, keeps its hash, and shows it once)",
        (),
        used_by=_SERVER,
        metavar="KEY",
        multiple=True,
        secret=True,
    ),
    Setting(
        "bridge-key",
        "the bridge's own key to the server, with the right to act for callers (spyglass serve makes one up)",
        None,
        used_by=_BOTH,
        metavar="KEY",
        secret=True,
    ),
    Setting(
        "data-dir",
        "where keys and the usage ledger are kept (default: ~/.local/share/spyglass)",
        None,
        used_by=_SERVER,
        metavar="DIR",
    ),
    Setting(
        "dtype",
        "the numbers' format to compute in: auto is the checkpoint's own",
        "auto",
        used_by=_SERVER,
        parse=one_of("auto", "bfloat16", "float32"),
        metavar="auto|bfloat16|float32",
    ),
    Setting(
        "quantization",
        "int8 keeps the weights of the text model's layers in 8 bits: less memory, slightly other answers",
        "none",
        used_by=_SERVER,
        parse=one_of("none", "int8"),
        metavar="none|int8",
    ),
    Setting(
        "device",
        "what to compute on: auto is the first GPU, else the CPU",
        "auto",
        used_by=_SERVER,
        parse=one_of("auto", "cpu", "cuda"),
        metavar="auto|cpu|cuda",
    ),
    Setting(
        "max-model-len",
        "the longest prompt and answer together, in tokens (default: 32768, or what the model "
        "was made for if that is less)",
        None,
        used_by=_SERVER,
        parse=positive_int,
        metavar="N",
    ),
    Setting(
        "chat-template",
        "a Jinja file to use instead of the checkpoint's own chat template",
        None,
        used_by=_SERVER,
        metavar="FILE",
    ),
    Setting(
        "cache-bytes",
        "memory for keys and values of text, in bytes",
        2 << 30,
        used_by=_SERVER,
        parse=positive_int,
        metavar="BYTES",
    ),
    Setting(
        "image-cache-bytes",
        "memory for keys and values of images, in bytes",
        1 << 30,
        used_by=_SERVER,
        parse=positive_int,
        metavar="BYTES",
    ),
    Setting(
        "max-batch", "the most choices that are generated at once", 64, used_by=_SERVER, parse=positive_int, metavar="N"
    ),
    Setting(
        "max-step-tokens",
        "the most tokens that one step of the engine computes",
        512,
        used_by=_SERVER,
        parse=positive_int,
        metavar="N",
    ),
    Setting(
        "max-chunk-tokens",
        "the most prompt tokens that a step computes while answers go on: fewer keep their rhythm, more begin sooner "
        "(default: 64 on a CPU, 512 on a GPU)",
        None,
        used_by=_SERVER,
        parse=positive_int,
        metavar="N",
    ),
    Setting(
        "max-pending",
        "the most generations in the server, running and waiting; beyond it callers get 429",
        256,
        used_by=_SERVER,
        parse=positive_int,
        metavar="N",
    ),
    Setting("max-images", "the most images in one conversation", 16, used_by=_SERVER, parse=positive_int, metavar="N"),
    Setting(
        "max-image-bytes",
        "the largest encoded image, in bytes",
        20 << 20,
        used_by=_BOTH,
        parse=positive_int,
        metavar="BYTES",
    ),
    Setting(
        "max-image-pixels", "the largest image, in pixels", 40_000_000, used_by=_SERVER, parse=positive_int, metavar="N"
    ),
    Setting(
        "request-timeout",
        "the longest time a generation may take, in seconds",
        600.0,
        used_by=_BOTH,
        parse=positive_float,
        metavar="SECONDS",
    ),
    Setting(
        "drain-timeout",
        "how long running generations may go on after a stop signal, in seconds",
        30.0,
        used_by=_BOTH,
        parse=non_negative_float,
        metavar="SECONDS",
    ),
    Setting(
        "price-input",
        "US dollars for a million prompt tokens",
        0.35,
        used_by=_SERVER,
        parse=non_negative_float,
        metavar="USD",
    ),
    Setting(
        "price-output",
        "US dollars for a million generated tokens",
        0.40,
        used_by=_SERVER,
        parse=non_negative_float,
        metavar="USD",
    ),
    Setting(
        "price-cached-input",
        "US dollars for a million prompt tokens found in a cache (default: the input price)",
        None,
        used_by=_SERVER,
        parse=non_negative_float,
        metavar="USD",
    ),
    Setting(
        "max-body-bytes",
        "the largest body of an HTTP request, in bytes",
        64 << 20,
        used_by=_BRIDGE,
        parse=positive_int,
        metavar="BYTES",
    ),
    Setting(
        "allow-image-host",
        "a private host name or network (10.0.0.0/8) that image URLs may reach; several may be given "
        "(default: public addresses only)",
        (),
        used_by=_BRIDGE,
        metavar="HOST|CIDR",
        multiple=True,
    ),
    Setting(
        "log-level",
        "how much to log",
        "info",
        used_by=_BOTH,
        parse=one_of("debug", "info", "warning", "error"),
        metavar="debug|info|warning|error",
    ),
)


def add_settings(
    parser: argparse.ArgumentParser,
    process: Process | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Adds the options of one process, or of all when it is None; values in `environ` become defaults.

    A bad value in the environment ends the program with the same message as a bad option.
    """
    for setting in SETTINGS:
        if process is not None and process not in setting.used_by:
            continue
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


class Collect(argparse.Action):
    """Collects the values of a repeated option, which has nargs; its first use replaces the default."""

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


def to_environ(values: Mapping[str, Any]) -> dict[str, str]:
    """Turns parsed options into environment variables for another process; unset ones are left out."""
    result = {}
    for setting in SETTINGS:
        value = values.get(setting.dest)
        if value in (None, ()):
            continue
        words: Iterable[Any] = value if setting.multiple else (value,)
        result[setting.env] = ",".join(str(word) for word in words)
    return result
