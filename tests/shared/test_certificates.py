"""Certificates in files that change."""

import logging
import os
from pathlib import Path

import pytest

from certificates import Pair, make_pair, needs_openssl
from spyglass_common import certificates
from spyglass_common.certificates import CertificateError, Rotated, read_authorities, read_pair

pytestmark = needs_openssl


@pytest.fixture(autouse=True)
def always_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_PAUSE_S", 0.0)


def rotated(pair: Pair) -> Rotated[tuple[bytes, bytes]]:
    return Rotated((pair.cert, pair.key), lambda: read_pair(pair.cert, pair.key))


def test_what_changed_is_read_again(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, "first"), make_pair(tmp_path, "second")
    files = rotated(first)
    assert not files.refresh()
    second.copy_to(first)
    assert files.refresh()
    assert files.current == (second.cert.read_bytes(), second.key.read_bytes())
    assert not files.refresh()


@pytest.mark.parametrize("damage", ["half", "empty", "gone", "another key", "locked key"])
def test_what_cannot_be_used_is_not_and_is_logged_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    served, new = make_pair(tmp_path, "served"), make_pair(tmp_path, "new")
    files = rotated(served)
    before = files.current
    whole = new.key.read_bytes()
    if damage == "gone":
        served.key.unlink()
    elif damage == "another key":
        served.key.write_bytes(whole)
    elif damage == "locked key":
        command = f"openssl ec -aes256 -passout pass:x -in {new.key} -out {served.key} 2>/dev/null"
        assert os.system(command) == 0
        served.cert.write_bytes(new.cert.read_bytes())
    else:
        served.cert.write_bytes(new.cert.read_bytes())
        served.key.write_bytes(whole[: len(whole) // 2 if damage == "half" else 0])
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            assert not files.refresh()
    assert files.current == before
    [record] = caplog.records
    assert str(served.key) in record.getMessage()
    assert "what was there before stays" in record.getMessage()
    new.copy_to(served)
    assert files.refresh()
    assert files.current == (new.cert.read_bytes(), whole)


def test_a_change_behind_a_link_is_seen(tmp_path: Path) -> None:
    """As Kubernetes replaces secrets: the files are links into a folder that is a link itself."""
    first, second = make_pair(tmp_path / "1", "tls"), make_pair(tmp_path / "2", "tls")
    link = tmp_path / "data"
    link.symlink_to(first.cert.parent)
    files = rotated(Pair(link / "tls.pem", link / "tls.key"))
    new = tmp_path / "new"
    new.symlink_to(second.cert.parent)
    new.replace(link)
    assert files.refresh()
    assert files.current[0] == second.cert.read_bytes()


def test_what_is_no_certificate_is_refused_at_once(tmp_path: Path) -> None:
    one, two = make_pair(tmp_path, "one"), make_pair(tmp_path, "two")
    with pytest.raises(CertificateError, match="key values mismatch"):
        read_pair(one.cert, two.key)
    with pytest.raises(FileNotFoundError):
        read_pair(tmp_path / "none", one.key)
    with pytest.raises(CertificateError, match="no certificates"):
        read_authorities(one.key)
    assert read_authorities(one.cert) == one.cert.read_bytes()
