"""Where a device half keeps files on its board: results worth keeping in a cache, the rest in scratch directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from targets.files import disk_errors

#: An agent tells its workers by this variable where its cache is; programs that are no agent's use the user's.
CACHE_VARIABLE = "FLEET_AGENT_CACHE"
_LOCK = ".lock"


def cache_folder(target: str) -> Path:
    """The folder of what ``target`` makes on this board and can make again. It is there."""
    given = os.environ.get(CACHE_VARIABLE, "")
    root = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet"
    folder = root / target
    with disk_errors(f"the cache of target '{target}'"):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


class Scratch:
    """A directory of this process, removed when it is closed; what killed processes left goes when the next is made.

    Its mode is 0755: tools of vendors refuse files in places that others may write to, or that they cannot read.
    """

    def __init__(self, target: str) -> None:
        root = cache_folder(target) / "scratch"
        with disk_errors("working files"):
            root.mkdir(mode=0o755, exist_ok=True)
            with (root / _LOCK).open("w") as turn:
                # One at a time: a directory whose lock is not held yet would be taken for one that was left.
                fcntl.flock(turn, fcntl.LOCK_EX)
                _remove_left(root)
                self.path = Path(tempfile.mkdtemp(dir=root))
                self.path.chmod(0o755)
                # Held as long as this process lives, however it ends.
                self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_left(root: Path) -> None:
    for folder in (each for each in root.iterdir() if each.is_dir()):
        with contextlib.suppress(OSError):
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
