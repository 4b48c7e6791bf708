"""The directory of blobs."""

import errno
import os
from pathlib import Path

import pytest
from made_bundles import blob, sha256

from targets.base import BundleError, FleetError
from targets.blobs import BlobDir
from targets.files import TEMPORARY, disk_errors, write_atomic


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY}*"))


def test_equal_contents_are_kept_once(tmp_path: Path) -> None:
    blobs = BlobDir(tmp_path / "blobs")
    data = blob(1, 3_000_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    digest = blobs.add_file(source)
    before = blobs.path(digest).stat().st_ino
    assert digest == sha256(data) == blobs.add_bytes(data) == blobs.add_file(source)
    assert blobs.path(digest).stat().st_ino == before
    assert blobs.path(digest).read_bytes() == data
    assert blobs.path(digest).relative_to(blobs.root).parts == (digest[:2], digest)
    assert list(blobs) == [digest]
    assert blobs.size(digest) == len(data)
    source.write_bytes(b"")
    assert blobs.add_file(source) == sha256(b"") == blobs.add_bytes(b"")
    assert blobs.path(digest).read_bytes() == data
    assert leftovers(tmp_path) == []


def test_what_is_not_there(tmp_path: Path) -> None:
    blobs = BlobDir(tmp_path)
    assert not blobs.has("ab" * 32)
    assert blobs.size("ab" * 32) is None
    with pytest.raises(FileNotFoundError):
        blobs.add_file(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, "../" * 21 + "a", "ab" * 32 + "\n", "g" * 64])
def test_a_digest_cannot_be_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(BundleError) as caught:
        BlobDir(tmp_path).path(digest)
    assert caught.value.code == "bad-digest"


def test_what_an_ended_process_left_is_removed(tmp_path: Path) -> None:
    blobs = BlobDir(tmp_path)
    digest = blobs.add_bytes(b"kept")
    handle, _ = blobs.temporary()
    os.close(handle)
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / f"{TEMPORARY}folder" / "file").write_bytes(b"x")
    blobs.clean()
    assert leftovers(tmp_path) == []
    assert list(blobs) == [digest]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(FileExistsError):
        write_atomic(path, b"new", replace=False)
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EFBIG, "disk-full"), (errno.EIO, "disk-error")],
)
def test_what_the_system_says_of_a_disk_is_told_to_a_person(number: int, code: str) -> None:
    with pytest.raises(FleetError, match="cannot store a thing: ") as caught, disk_errors("a thing"):
        raise OSError(number, "odd")
    assert caught.value.code == code
    assert caught.value.hint
