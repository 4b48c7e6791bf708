"""What a board has built, kept so that the next deployment takes seconds.

::

    <key>/made.json and files      one program in the form of one engine
    timing-<digest>/               what TensorRT has timed on this GPU with these versions

A key is a digest of all that shapes what was built: program, weights, settings, GPU, system, and every version. Entries
appear by one rename of something complete and fsynced, and the longest unused go when all take more than is allowed.

Loading an engine runs what is in its file. The folder is its owner's alone (0700), holds only what was built here, and
nothing is ever fetched into it; the digests in ``made.json`` find damage, not forgery.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from targets.files import TEMPORARY, disk_errors, hash_file, make_directory, sync_directory, write_atomic

_MADE = "made.json"
_TIMING = "timing-"


class File(msgspec.Struct, frozen=True):
    name: str
    size: int
    sha256: str


class Made(msgspec.Struct, frozen=True):
    """What an entry is: its files, what its engine said of it, and how long it took to build."""

    files: tuple[File, ...]
    found: dict[str, str]
    seconds: float


def key(parts: Mapping[str, Any]) -> str:
    """A digest of all that shapes what is built."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


class EngineCache:
    """The cache at ``root``, of at most ``most`` bytes besides the newest entry. Several processes may use it."""

    def __init__(self, root: Path, most: int) -> None:
        self.root = root
        self._most = most
        with disk_errors("what is built for this board"):
            make_directory(root, 0o700)
            root.chmod(0o700)
        self._clean()

    def find(self, key: str) -> tuple[Path, Made] | None:
        """An entry whose files are as they were written; a damaged one is removed."""
        folder = self.root / key
        if not folder.is_dir():
            return None
        try:
            made = msgspec.json.decode((folder / _MADE).read_bytes(), type=Made)
            whole = all(
                "/" not in file.name
                and (folder / file.name).stat().st_size == file.size
                and hash_file(folder / file.name) == file.sha256
                for file in made.files
            )
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            whole = False
        if not whole:
            self.drop(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder, made

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to build in, gone afterwards."""
        with disk_errors("what is built for this board"):
            folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, key: str, folder: Path, found: dict[str, str], seconds: float) -> Path:
        """Make a folder of `staging` an entry. Returns where it lies now."""
        with disk_errors("what was built for this board"):
            files = [path for path in sorted(folder.iterdir()) if path.is_file()]
            made = Made(tuple(File(path.name, path.stat().st_size, hash_file(path)) for path in files), found, seconds)
            for path in files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            write_atomic(folder / _MADE, msgspec.json.encode(made))
            place = self.root / key
            try:
                folder.rename(place)
            except OSError:
                # Another process may have built the same: its entry is as good, and may be in use.
                if not place.is_dir():
                    raise
            sync_directory(self.root)
        self._trim(place)
        return place

    def drop(self, key: str) -> None:
        shutil.rmtree(self.root / key, ignore_errors=True)

    def timing(self, environment: str) -> Path:
        """The file for what TensorRT has timed in an environment; it need not exist yet."""
        folder = self.root / f"{_TIMING}{environment[:32]}"
        with disk_errors("what was timed on this board"):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder / "timing_cache.bin"

    def _trim(self, newest: Path) -> None:
        """Remove what was not used for the longest time until the rest is within the bound."""
        entries = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(TEMPORARY)]
        used = {path: _size(path) for path in entries}
        total = sum(used.values()) - used.get(newest, 0)
        for path in sorted(entries, key=_last_used):
            if total <= self._most:
                return
            if path != newest:
                total -= used[path]
                shutil.rmtree(path, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what processes left that are no more."""
        for path in self.root.glob(f"{TEMPORARY}*"):
            owner = path.name[len(TEMPORARY) :].partition("-")[0]
            if not (owner.isdigit() and Path("/proc", owner).exists()):
                shutil.rmtree(path, ignore_errors=True)


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            size += path.stat().st_size
    return size


def _last_used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
