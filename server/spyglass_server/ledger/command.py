"""The command `spyglass usage verify`."""

import argparse
import sys
from collections.abc import Mapping

from spyglass_common.data_dir import data_dir_of
from spyglass_common.settings import add_settings
from spyglass_server.settings import SETTINGS

_NEEDED = ("data_dir", "ledger_url")


def add_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Adds the command's options, with their variables."""
    add_settings(parser, [setting for setting in SETTINGS if setting.dest in _NEEDED], environ)


def run_verify(options: argparse.Namespace) -> int:
    """Prints whether all records are right. Returns 0 if so, else 1.

    Raises:
        ValueError, OSError: there are no records, or they cannot be read; the text is for the operator.
    """
    from spyglass_server.ledger.data_dir import known_server_id
    from spyglass_server.ledger.verification import verify

    folder = data_dir_of(options.data_dir)
    server_id = known_server_id(folder)
    verdict = verify(folder, server_id, options.ledger_url)
    if verdict.fault:
        sys.stdout.write(
            f"{server_id}: {verdict.fault}; records before that which are right: {verdict.num_records:,}\n"
        )
        return 1
    sys.stdout.write(f"{server_id}: all {verdict.num_records:,} records are right\n")
    return 0
