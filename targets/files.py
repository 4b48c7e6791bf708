"""Files that are either wholly there or not there at all, whenever the power goes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from targets.base import FleetError

READ_SIZE = 1 << 20
#: Names that start so are unfinished: nobody reads them, and they may be removed when nobody writes.
TEMPORARY = ".tmp-"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns what the system says of a disk into a :class:`FleetError`: code ``disk-full``, or ``disk-error``."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise disk_full(f"cannot store {what}: {reason.lower()}") from error
        raise FleetError(
            f"cannot store {what}: {reason.lower()}",
            code="disk-error",
            hint="see that the disk is healthy and can be written (dmesg, mount)",
        ) from error


def disk_full(message: str) -> FleetError:
    return FleetError(message, code="disk-full", hint="free some space there, then try again: nothing was lost")


def sync_directory(path: Path) -> None:
    """Make names created in or moved into a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Create a directory and the parents that it lacks, durably."""
    if path.is_dir():
        return
    make_directory(path.parent, mode)
    path.mkdir(mode=mode, exist_ok=True)
    sync_directory(path.parent)


def write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of an open file; the system may take it in pieces."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        offset += written
        view = view[written:]


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write a file so that after a crash it has its old contents or the new ones.

    Without ``replace`` a file that is already there stays, and ``FileExistsError`` is raised.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        try:
            os.fchmod(handle, mode)
            write_all(handle, data, 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_bounded(path: Path, most: int, refused: Callable[[str], FleetError] | None = None) -> bytes:
    """A file's contents. Raises for one of more than ``most`` bytes, having read no more.

    That is what ``refused`` makes of the reason in words, or a :class:`FleetError` with the code ``too-large``.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) <= most:
        return data
    if refused is not None:
        raise refused(f"it has more than {most} bytes")
    raise FleetError(f"{path.name} is larger than {most} bytes", code="too-large", hint="it is not what it should be")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
