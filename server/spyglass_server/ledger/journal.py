"""Usage of a server's generations that the database may not have yet, in append-only files.

The files are memory-mapped and their blocks preallocated: an entry is safe as soon as it is written, however the
process ends, and writing one takes a microsecond and cannot fail for lack of space. `sync` makes entries survive a
crash of the machine as well.
"""

import json
import mmap
import os
import struct
import threading
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

SEGMENT_BYTES = 4 << 20
CLOSING_BYTES = 1 << 10
"""Space reserved for the last entry of each running generation."""

_WORD = struct.Struct("<I")
"""An entry begins with its length, which is written last, and the checksum of what follows."""
_BODY = struct.Struct("<BQ")
"""Kind, and the number of the generation if the entry is about one."""
_COUNTS = "Q"
"""Number and tokens of each generation, alternating, in native byte order: the same machine reads them again."""
_PAIR_BYTES = 2 * array(_COUNTS).itemsize
_OVERHEAD_BYTES = 2 * _WORD.size + _BODY.size


class Kind(IntEnum):
    """What an entry records: a generation's start, token counts of some, or a generation's end."""

    OPENED = 1
    COUNTED = 2
    CLOSED = 3


class JournalFull(Exception):
    """The journal has no space left, and cannot grow."""


@dataclass(slots=True)
class Entries:
    """What a journal contains about a generation."""

    opened: dict[str, Any]
    tokens: int = 0
    closed: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class _Segment:
    path: Path
    memory: mmap.mmap | None
    used: int = 0
    unsaved: set[int] = field(default_factory=set)
    """Ended generations that the database may not have yet."""


class Journal:
    """The journal of the server that a data folder belongs to. Thread-safe."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Reads what an earlier process has left; `left` contains it until `saved`.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._segment_bytes = folder, segment_bytes
        self._lock = threading.Lock()
        self._live: dict[int, dict[str, Any]] = {}
        self._tokens: dict[int, int] = {}
        """Token counts of running generations that have any."""
        self.left: dict[int, Entries] = {}
        self._old: list[_Segment] = []
        paths = sorted(folder.glob("*.log"))
        for path in paths:
            segment = _Segment(path=path, memory=None)
            for number, entries in _read(path).items():
                self.left[number] = entries
                segment.unsaved.add(number)
            self._old.append(segment)
        self._next = int(paths[-1].stem) + 1 if paths else 1
        self._segment = self._allocate()

    def open(self, number: int, fields: dict[str, Any]) -> None:
        """Records the start of a generation.

        Raises:
            JournalFull: there is no space for all that may follow.
        """
        with self._lock:
            self._append(Kind.OPENED, number, _json(fields), spare=CLOSING_BYTES * (len(self._live) + 1))
            self._live[number] = fields

    def count(self, tokens: Mapping[int, int]) -> None:
        """Records the token counts of generations.

        Raises:
            JournalFull: they cannot be written.
        """
        with self._lock:
            if not tokens.keys() <= self._live.keys():  # some have ended
                tokens = {number: count for number, count in tokens.items() if number in self._live}
            payload = array(_COUNTS, chain.from_iterable(tokens.items())).tobytes()
            self._append(Kind.COUNTED, 0, payload, spare=CLOSING_BYTES * len(self._live))
            self._tokens.update(tokens)

    def close(self, number: int, fields: dict[str, Any]) -> None:
        """Records the end of a generation; there is always space for it."""
        with self._lock:
            self._append(Kind.CLOSED, number, _json(fields), spare=0)
            del self._live[number]
            self._tokens.pop(number, None)
            self._segment.unsaved.add(number)

    def saved(self, numbers: list[int]) -> None:
        """Marks generations as saved in the database, so that they may be forgotten."""
        with self._lock:
            for segment in (*self._old, self._segment):
                segment.unsaved.difference_update(numbers)
            for number in numbers:
                self.left.pop(number, None)
            self._forget()

    def sync(self) -> None:
        """Makes all entries so far survive a crash of the machine."""
        with self._lock:
            segments = [segment for segment in (*self._old, self._segment) if segment.memory is not None]
            descriptors = [os.open(segment.path, os.O_RDONLY) for segment in segments]
        for descriptor in descriptors:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def shut(self) -> None:
        """Closes the files, and removes those that are no longer needed."""
        with self._lock:
            if not self._live:
                self._old.append(self._segment)
            self._forget()
            for segment in (*self._old, self._segment):
                if segment.memory is not None:
                    segment.memory.close()
                    segment.memory = None

    def _append(self, kind: Kind, number: int, payload: bytes, spare: int) -> None:
        """Writes an entry that leaves `spare` bytes free after it, in a new segment if necessary."""
        size = _OVERHEAD_BYTES + len(payload)
        if self._segment.used + size + spare > self._segment_bytes:
            self._rotate(size + spare)
        self._write(self._segment, kind, number, payload)

    def _write(self, segment: _Segment, kind: Kind, number: int, payload: bytes) -> None:
        assert segment.memory is not None
        body = _BODY.pack(kind, number) + payload
        start, end = segment.used + _WORD.size, segment.used + 2 * _WORD.size + len(body)
        segment.memory[start:end] = _WORD.pack(zlib.crc32(body)) + body
        _WORD.pack_into(segment.memory, segment.used, end - segment.used)
        segment.used = end

    def _rotate(self, needed: int) -> None:
        """Continues in a new segment, which begins with the running generations."""
        carried = [(number, _json(fields)) for number, fields in self._live.items()]
        needed += sum(2 * _OVERHEAD_BYTES + _PAIR_BYTES + len(opened) for _, opened in carried)
        if needed > self._segment_bytes:
            raise JournalFull("more generations run than the journal has room for")
        try:
            segment = self._allocate()
        except OSError as error:
            raise JournalFull(f"the journal cannot grow: {error.strerror}") from error
        for number, opened in carried:
            self._write(segment, Kind.OPENED, number, opened)
        self._write(segment, Kind.COUNTED, 0, array(_COUNTS, chain.from_iterable(self._tokens.items())).tobytes())
        self._old.append(self._segment)
        self._segment = segment
        self._forget()

    def _allocate(self) -> _Segment:
        path = self._folder / f"{self._next:08}.log"
        with path.open("xb+") as file:
            try:
                _take_blocks(file, self._segment_bytes)
                memory = mmap.mmap(file.fileno(), self._segment_bytes)
            except OSError:
                path.unlink()
                raise
        self._next += 1
        return _Segment(path=path, memory=memory)

    def _forget(self) -> None:
        """Removes old segments whose entries are all saved or carried over."""
        for segment in [segment for segment in self._old if not segment.unsaved]:
            if segment.memory is not None:
                segment.memory.close()
            segment.path.unlink(missing_ok=True)
            self._old.remove(segment)


def _read(path: Path) -> dict[int, Entries]:
    """Returns a segment's entries for each generation."""
    found: dict[int, Entries] = {}
    for kind, number, payload in _entries(path.read_bytes()):
        match kind:
            case Kind.OPENED:
                found[number] = Entries(json.loads(payload))
            case Kind.COUNTED:
                flat = array(_COUNTS, payload)
                for counted, tokens in zip(flat[::2], flat[1::2], strict=True):
                    found[counted].tokens = tokens
            case Kind.CLOSED:
                found[number].closed = json.loads(payload)
    return found


def _entries(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields kind, number and payload of all complete entries."""
    used = 0
    while used + _OVERHEAD_BYTES <= len(data) and (size := _WORD.unpack_from(data, used)[0]):
        body = data[used + 2 * _WORD.size : used + size]
        if zlib.crc32(body) != _WORD.unpack_from(data, used + _WORD.size)[0]:
            return  # the machine crashed while it was being written
        yield *_BODY.unpack_from(body), body[_BODY.size :]
        used += size


def _take_blocks(file: BinaryIO, num_bytes: int) -> None:
    """Reserves disk space for a file."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:
        file.write(bytes(num_bytes))
        file.flush()


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
