"""The chain of a server's closed records: each has a hash over itself and the one before.

The chain's end is signed and kept in the data folder, outside the database: records that are changed, added or removed
in the database, even the last one, no longer match it.
"""

import functools
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from spyglass_server.ledger.record import Record
from spyglass_server.private_file import write_privately

FIRST_HASH = ""
"""The hash before the first record."""

_KEY_FILE, _HEAD_FILE = "ledger-key", "ledger-head.json"


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: the number of records up to here, and the hash of the last one."""

    position: int
    hash: str


START = Link(0, FIRST_HASH)


def link(before: Link, record: Record) -> Link:
    """Returns the next place, which is the record's."""
    values = asdict(record)
    if not record.tenant:  # so that records from before tenants existed keep their hashes
        del values["tenant"]
    text = json.dumps([before.position + 1, before.hash, values], sort_keys=True, separators=(",", ":"))
    return Link(before.position + 1, hashlib.sha256(text.encode()).hexdigest())


class ChainHead:
    """The signed end of a server's chain, and the end that it has once the current transaction commits."""

    def __init__(self, folder: Path, server_id: str) -> None:
        self._folder, self.server_id = folder, server_id

    def read(self) -> tuple[Link, Link]:
        """Returns the end of the chain, and the one that it may already have if a crash came in between.

        Raises:
            ValueError: the file is damaged, or was not written by this server.
        """
        path = self._folder / _HEAD_FILE
        if not path.exists():
            return START, START
        try:
            raw = json.loads(path.read_text())
            ends, signature = raw["ends"], raw["signature"]
            is_right = hmac.compare_digest(self._signature(ends), signature)
            now, then = (Link(int(position), str(digest)) for position, digest in ends)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged") from error
        if not is_right:
            raise ValueError(f"{path} has been changed: its signature is wrong")
        return now, then

    def write(self, now: Link, then: Link) -> None:
        """Saves both ends. Raises OSError."""
        ends: list[list[int | str]] = [[now.position, now.hash], [then.position, then.hash]]
        text = json.dumps({"server": self.server_id, "ends": ends, "signature": self._signature(ends)})
        write_privately(self._folder / _HEAD_FILE, text)

    def _signature(self, ends: list[list[int | str]]) -> str:
        text = json.dumps([self.server_id, ends])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    @functools.cached_property
    def _key(self) -> bytes:
        path = self._folder / _KEY_FILE
        if not path.exists():
            write_privately(path, secrets.token_hex(32))
        return bytes.fromhex(path.read_text().strip())
