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
    """

    def __init__(self, root: Path, quota: int = 0) -> None:
        self.root = root
        self.quota = quota
        self.recount()

    def recount(self) -> None:
        """Look again at what is there: after damage, nobody knows."""
        self.used = measure(self.root)

    @property
    def free(self) -> int:
        """Bytes that may still be added. The disk's last bytes are left for what must never fail to be written."""
        disk = os.statvfs(self.root)
        free = disk.f_bavail * disk.f_frsize - DISK_RESERVE
        if self.quota:
            free = min(free, self.quota - self.used)
        return max(free, 0)

    def require(self, size: int, what: str) -> None:
        """Raises :class:`FleetError` with code ``disk-full`` unless ``size`` more bytes fit."""
        free = self.free
        if size > free:
            raise disk_full(f"there is no room for {what}: it needs {size} bytes, {free} are free")


def measure(path: Path) -> int:
    """Bytes of the files at or below ``path``; links count nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISDIR(status.st_mode):
        return sum(measure(child) for child in path.iterdir())
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
