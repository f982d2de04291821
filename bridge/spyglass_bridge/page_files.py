"""The files of the model page, ready to send: read once, compressed once, each with a digest of its contents."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INDEX = "index.html"
REFERENCE_FILES = frozenset({"theme.css", "reference.css", "icon.svg"})
"""The files that the reference at /docs needs, even without a model page."""
_FOLDER = Path(__file__).resolve().parent / "page"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_IS_PACKED = {".png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """A file as it is sent. `packed` is its gzip form, None if that would be no smaller."""

    content_type: str
    body: bytes
    packed: bytes | None
    etag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """Returns all files that may be requested, by name; no other name is served."""
    paths = [path for path in sorted(_FOLDER.rglob("*")) if path.is_file() and path.suffix in _TYPES]
    return {path.relative_to(_FOLDER).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    packed = None if path.suffix in _IS_PACKED else gzip.compress(body, mtime=0)
    return PageFile(
        content_type=_TYPES[path.suffix],
        body=body,
        packed=packed if packed is not None and len(packed) < len(body) else None,
        etag=hashlib.sha256(body).hexdigest()[:32],
    )
