"""Blobs that others write: whoever reaches this machine's files, over SFTP for one, leaves them here to be taken in.

Nothing here is believed. A name has to be a digest, a file has to be a plain one that is all there, and its digest is
computed from bytes that nobody can change any more: the kernel says whether somebody still has the file open for
writing, and if so, or if it cannot tell, what counts is a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.parts import Parts
from agent.space import Space
from targets.base import BundleError
from targets.blobs import BlobDir, check_digest
from targets.files import READ_SIZE, TEMPORARY, disk_errors, make_directory

#: A file from later than this many seconds from now was not written: boards without a battery know the time badly.
_CLOCK_ERROR = 86_400.0


class Incoming:
    """The folder ``root``: unfinished and whole blobs, one file each under the blob's digest, and maybe rubbish.

    ``lock`` is the store's: it guards what it shares with this, and is not held while a file is read.
    """

    def __init__(self, root: Path, blobs: BlobDir, parts: Parts, space: Space, lock: threading.RLock) -> None:
        self.root = root
        self._blobs, self._parts, self._space, self._lock = blobs, parts, space, lock
        self._syncer = ThreadPoolExecutor(4, "sync")
        if not stat.S_ISDIR(_mode(root)):
            root.unlink(missing_ok=True)
        make_directory(root, 0o700)

    def path(self, sha256: str) -> Path:
        return self.root / check_digest(sha256)

    def held(self, sha256: str) -> int:
        """Bytes of a blob that lie here; 0 for what is no file."""
        try:
            status = self.path(sha256).lstat()
        except OSError:
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def kept(self, sha256: str, size: int) -> int:
        """As `held`, for a blob of ``size`` bytes: a file with more is another one and is removed."""
        held = self.held(sha256)
        if held <= size:
            return held
        self.discard(sha256)
        return 0

    def take(self, sha256: str, total: int) -> None:
        """Make a blob of the file here, which has ``total`` bytes.

        Raises :class:`FleetError`: ``not-incoming`` for what is not here or no file, ``incomplete`` when bytes are
        still to come, ``bad-size`` and ``bad-digest`` for another file than was announced, which is removed, and
        ``disk-full`` when it takes room that it must not have; then it stays.
        """
        with self._lock:
            self._check(sha256, total)
            # Its bytes are on the disk already, but may be those that were to stay free.
            self._space.require(0, f"blob {sha256[:12]}")
            claimed = self._claim(sha256)
            self._space.used += total
        try:
            with disk_errors(f"blob {sha256[:12]}"), _opened(claimed) as handle:
                if _is_ours(handle):
                    self._adopt(handle, claimed, sha256, total)
                else:
                    self._copy(handle, sha256, total)
        finally:
            with self._lock:
                if _mode(claimed):
                    _remove(claimed)
                    self._space.used -= total

    def discard(self, sha256: str) -> None:
        """Remove what came of a blob."""
        _remove(self.path(sha256))

    def collect(self, before: float) -> None:
        """Remove whatever nobody has written to since ``before`` (Unix time), or says to have in times to come."""
        latest = time.time() + _CLOCK_ERROR
        for path in list(self.root.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if not before <= path.lstat().st_mtime <= latest:
                    _remove(path)

    def _check(self, sha256: str, total: int) -> None:
        path = self.path(sha256)
        mode, held = _mode(path), self.held(sha256)
        if not stat.S_ISREG(mode):
            _remove(path)
            raise BundleError(f"there is no file of blob {sha256[:12]} among what came in", code="not-incoming")
        if held > total:
            _remove(path)
            raise BundleError(f"blob {sha256[:12]} came with {held} bytes instead of {total}", code="bad-size")
        if held < total:
            raise BundleError(f"of blob {sha256[:12]} only {held} of {total} bytes came", code="incomplete")

    def _claim(self, sha256: str) -> Path:
        """Give the file a name outside of the folder that others write to."""
        claimed = self.root.parent / f"{TEMPORARY}{sha256}"
        with disk_errors(f"blob {sha256[:12]}"):
            self.path(sha256).replace(claimed)
        return claimed

    def _adopt(self, handle: int, path: Path, sha256: str, total: int) -> None:
        # The disk is busy with one while the processor is with the other.
        synced = self._syncer.submit(os.fsync, handle)
        digest = hashlib.sha256()
        try:
            for _, piece in _pieces(handle, total):
                digest.update(piece)
        finally:
            synced.result()
        if digest.hexdigest() != sha256:
            raise BundleError(
                f"what came in as blob {sha256[:12]} has another digest ({digest.hexdigest()[:12]})",
                code="bad-digest",
                hint="send it again; if that fails too, build the bundle again",
            )
        with self._lock:
            self._blobs.adopt(path, sha256, sync=False)
            self._parts.discard(sha256)

    def _copy(self, handle: int, sha256: str, total: int) -> None:
        held = 0
        for offset, piece in _pieces(handle, total):
            with self._lock:
                held = self._parts.put(sha256, offset, piece, total)
        if held < total:
            raise BundleError(f"blob {sha256[:12]} shrank while it was read", code="incomplete")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file open for reading. Raises OSError for a link or what is no file."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path.name} is not a file")
        yield handle
    finally:
        os.close(handle)


def _pieces(handle: int, total: int) -> Iterator[tuple[int, bytes]]:
    """The first ``total`` bytes of an open file, each piece with its offset; of an empty one an empty piece."""
    offset = 0
    while (piece := os.pread(handle, min(READ_SIZE, total - offset), offset)) or not total:
        yield offset, piece
        offset += len(piece)
        if offset >= total:
            return


def _is_ours(handle: int) -> bool:
    """Whether no other name leads to the file and nobody has it open for writing, nor can before it is closed."""
    if os.fstat(handle).st_nlink != 1:
        return False
    try:
        # Who opens it for writing waits until the lease is given back. We need not be told of it, and the signal that
        # tells would end the process.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        # Open for writing; another user's; or on a file system that has no leases.
        return False
    return True


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _remove(path: Path) -> None:
    if stat.S_ISDIR(_mode(path)):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
