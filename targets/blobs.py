"""A directory of blobs, each under its own SHA-256: what is equal is kept once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from targets.base import BundleError
from targets.files import (
    READ_SIZE,
    TEMPORARY,
    disk_errors,
    hash_file,
    make_directory,
    sync_directory,
    write_all,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(sha256: str) -> str:
    """The digest itself. Raises :class:`BundleError` unless it is 64 lower-case hex digits, and so safe in a path."""
    if not _DIGEST.fullmatch(sha256):
        raise BundleError(f"'{sha256[:80]}' is not a SHA-256 in lower-case hex", code="bad-digest")
    return sha256


class BlobDir:
    """Blobs at ``root/ab/abcd…``. A blob is there whole or not at all; several processes may add at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_directory(root)

    def path(self, sha256: str) -> Path:
        """Where a blob lies, or would lie."""
        return self.root / check_digest(sha256)[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or nothing when it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def __iter__(self) -> Iterator[str]:
        """Digests of all blobs, in no order."""
        for folder in self.root.iterdir():
            if len(folder.name) == 2:
                yield from (file.name for file in folder.iterdir() if _DIGEST.fullmatch(file.name))

    def add_bytes(self, data: bytes) -> str:
        """Keep ``data``; its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256):
            handle, temporary = self.temporary()
            try:
                with disk_errors("a blob"):
                    write_all(handle, data, 0)
                    os.fsync(handle)
                self.adopt(temporary, sha256)
            finally:
                os.close(handle)
                temporary.unlink(missing_ok=True)
        return sha256

    def add_file(self, path: Path) -> str:
        """Keep a copy of a file; its SHA-256."""
        sha256 = hash_file(path)
        if self.has(sha256):
            return sha256
        handle, temporary = self.temporary()
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as source, disk_errors(f"a copy of {path.name}"):
                offset = 0
                while block := source.read(READ_SIZE):
                    # Hashed again: what counts is what was copied, should the file be changing.
                    digest.update(block)
                    write_all(handle, block, offset)
                    offset += len(block)
                os.fsync(handle)
            sha256 = digest.hexdigest()
            self.adopt(temporary, sha256)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)
        return sha256

    def temporary(self) -> tuple[int, Path]:
        """A new file on the same file system, open for writing, that `adopt` can make a blob of."""
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=self.root)
        return handle, Path(name)

    def adopt(self, path: Path, sha256: str, *, sync: bool = True) -> None:
        """Move a file in as a blob. The caller has checked its digest and fsynced it.

        Without ``sync`` its name may be lost in a power cut until `sync_names`.
        """
        final = self.path(sha256)
        make_directory(final.parent)
        path.chmod(0o444)
        path.replace(final)
        if sync:
            sync_directory(final.parent)

    def sync_names(self, digests: set[str]) -> None:
        """Make sure that these blobs are found after a power cut."""
        for folder in {self.path(sha256).parent for sha256 in digests}:
            sync_directory(folder)

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what unfinished writers left. Only for the one process that writes here."""
        for path in self.root.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
