"""Blobs that are still on their way: what has come of each is kept until the rest does, however long that takes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.space import Space
from targets.base import BundleError, FleetError
from targets.blobs import BlobDir, check_digest
from targets.files import READ_SIZE, disk_errors, make_directory, write_all

if TYPE_CHECKING:
    from hashlib import _Hash

#: Blobs that grow at once with their file open and their digest at hand; a push has one.
_OPEN = 16


@dataclass(slots=True)
class _Part:
    """A file that holds the first ``held`` bytes of a blob, and the digest of those."""

    handle: int
    held: int = 0
    digest: _Hash = field(default_factory=hashlib.sha256)


class Parts:
    """Unfinished blobs, one file each under the blob's digest. One caller at a time.

    Whoever sends a blob, and however many do at once, its bytes are appended in order once: a piece that is already
    there is skipped, one that would leave a gap is refused. The whole is hashed before it becomes a blob.
    """

    def __init__(self, root: Path, blobs: BlobDir, space: Space) -> None:
        self.root = root
        self.blobs = blobs
        self.space = space
        self._open: OrderedDict[str, _Part] = OrderedDict()
        self._hasher = ThreadPoolExecutor(1, "hash")
        make_directory(root)

    def path(self, sha256: str) -> Path:
        return self.root / check_digest(sha256)

    def held(self, sha256: str) -> int:
        """Bytes of a blob that have come so far."""
        part = self._open.get(sha256)
        if part is not None:
            return part.held
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def put(self, sha256: str, offset: int, data: bytes | memoryview, total: int) -> int:
        """Take a piece of a blob of ``total`` bytes; the number of its bytes that are here then.

        With the last piece it becomes a blob. Raises :class:`FleetError` with code ``bad-offset`` for a gap (nothing is
        lost), ``disk-full`` (nothing is lost), or ``bad-digest`` (it has to be sent anew).
        """
        part = self._resume(sha256)
        if part.held > total:
            # An earlier sender was wrong about its size, so what came is of no use.
            self.discard(sha256)
            part = self._resume(sha256)
        if offset > part.held:
            raise FleetError(
                f"blob {sha256[:12]} continues at byte {part.held}, not at {offset}",
                code="bad-offset",
                hint=f"send it from byte {part.held}",
            )
        fresh = memoryview(data)[part.held - offset :]
        if fresh:
            self._append(sha256, part, fresh, total)
        if part.held == total:
            self._finish(sha256, part)
        return total if part.held == total else part.held

    def discard(self, sha256: str) -> None:
        """Forget what has come of a blob."""
        self._close(sha256)
        path = self.path(sha256)
        size = self.held(sha256)
        path.unlink(missing_ok=True)
        self.space.used -= size

    def collect(self, before: float) -> None:
        """Forget blobs of which nothing has come since ``before`` (Unix time)."""
        for path in list(self.root.iterdir()):
            if path.stat().st_mtime < before:
                self.discard(path.name)

    def close(self) -> None:
        """Close all files; what they hold stays."""
        for sha256 in list(self._open):
            self._close(sha256)

    def _append(self, sha256: str, part: _Part, data: memoryview, total: int) -> None:
        self.space.require(total - part.held, f"blob {sha256[:12]}")
        # Hashing and writing both work without the interpreter's lock, so they share the time.
        digest = part.digest.copy()
        hashed = self._hasher.submit(digest.update, data)
        try:
            with disk_errors(f"blob {sha256[:12]}"):
                write_all(part.handle, data, part.held)
        except FleetError:
            with contextlib.suppress(OSError):
                os.ftruncate(part.handle, part.held)
            raise
        finally:
            hashed.result()
        part.digest = digest
        part.held += len(data)
        self.space.used += len(data)

    def _finish(self, sha256: str, part: _Part) -> None:
        if part.digest.hexdigest() != sha256:
            self.discard(sha256)
            raise BundleError(
                f"what was sent as blob {sha256[:12]} has another digest ({part.digest.hexdigest()[:12]})",
                code="bad-digest",
                hint="send it again from byte 0; if that fails too, build the bundle again",
            )
        try:
            with disk_errors(f"blob {sha256[:12]}"):
                os.fsync(part.handle)
                self.blobs.adopt(self.path(sha256), sha256, sync=False)
        except FleetError:
            # After a failed fsync nobody knows what is on the disk.
            self.discard(sha256)
            raise
        self._close(sha256)

    def _resume(self, sha256: str) -> _Part:
        """The open part of a blob; what an earlier process or connection left of it is hashed again."""
        part = self._open.get(sha256)
        if part is None:
            with disk_errors(f"blob {sha256[:12]}"):
                part = _read_part(self.path(sha256))
            self._open[sha256] = part
            if len(self._open) > _OPEN:
                self._close(next(iter(self._open)))
        self._open.move_to_end(sha256)
        return part

    def _close(self, sha256: str) -> None:
        part = self._open.pop(sha256, None)
        if part is not None:
            os.close(part.handle)


def _read_part(path: Path) -> _Part:
    part = _Part(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    try:
        while block := os.pread(part.handle, READ_SIZE, part.held):
            part.digest.update(block)
            part.held += len(block)
    except OSError:
        os.close(part.handle)
        raise
    return part
