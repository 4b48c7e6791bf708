"""How much a store holds and how much more it may."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from targets.defaults import DISK_RESERVE
from targets.files import disk_full


class Space:
    """Counts the bytes of the files below ``root``; whoever adds or removes some says so.

    ``quota`` is the largest number of bytes they may have, like a small disk; with 0 only the disk itself bounds them.
    The files below ``apart`` are others' to write: what they have is not counted but measured whenever it matters.
    """

    def __init__(self, root: Path, quota: int = 0, apart: Path | None = None) -> None:
        self.root = root
        self.quota = quota
        self._apart = apart
        self.recount()

    def recount(self) -> None:
        """Look again at what is there: after damage, nobody knows."""
        self.used = measure(self.root) - self._others

    @property
    def total(self) -> int:
        """Bytes of all files, whoever wrote them."""
        return self.used + self._others

    @property
    def _others(self) -> int:
        return 0 if self._apart is None else measure(self._apart)

    @property
    def free(self) -> int:
        """Bytes that may still be added. The disk's last bytes are left for what must never fail to be written."""
        return max(self._margin, 0)

    def require(self, size: int, what: str) -> None:
        """Raises :class:`FleetError` with code ``disk-full`` unless ``size`` more bytes fit.

        Even 0 do not fit where others have taken what was to be left free.
        """
        margin = self._margin
        if size > margin:
            raise disk_full(f"there is no room for {what}: it needs {max(size, -margin)} bytes, {self.free} are free")

    @property
    def _margin(self) -> int:
        disk = os.statvfs(self.root)
        margin = disk.f_bavail * disk.f_frsize - DISK_RESERVE
        return min(margin, self.quota - self.total) if self.quota else margin


def measure(path: Path) -> int:
    """Bytes of the files at or below ``path``; links count nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISDIR(status.st_mode):
        return sum(measure(child) for child in path.iterdir())
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
