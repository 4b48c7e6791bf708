"""The build cache: a build is never made twice, and a damaged one is never used."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from targets.base import BundleError
from targets.blobs import BlobDir
from targets.bundle import Manifest, parse_manifest
from targets.files import hash_file, make_directory, write_atomic

LOCK_POLL = 0.05


def cache_key(parts: object) -> str:
    """SHA-256 over all that shapes a build, as canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


class BuildCache:
    """Manifests by the key of what they were made from, and their blobs. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobDir(root / "blobs")
        make_directory(root / "builds")

    def load(self, key: str) -> tuple[Manifest, bytes] | None:
        """The build under ``key``, if all of it is there and intact. What is damaged is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            stored, _, manifest_bytes = data.partition(b"\n")
            if stored.decode("ascii", "replace") != hashlib.sha256(manifest_bytes).hexdigest():
                raise BundleError("the entry is damaged")
            manifest = parse_manifest(manifest_bytes)
        except BundleError:
            path.unlink(missing_ok=True)
            return None
        damaged = [file.sha256 for file in manifest.files if not self._intact(file.sha256, file.size)]
        for sha256 in damaged:
            self.blobs.remove(sha256)
        if damaged:
            path.unlink(missing_ok=True)
            return None
        return manifest, manifest_bytes

    def store(self, key: str, manifest_bytes: bytes) -> None:
        """Remember a build whose blobs are all in `blobs`."""
        digest = hashlib.sha256(manifest_bytes).hexdigest().encode()
        write_atomic(self._path(key), digest + b"\n" + manifest_bytes)

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Only one process, and one thread of it, builds a key at a time. ``waiting`` is called while another does;
        what it raises ends the wait."""
        handle = os.open(self._path(key).with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(LOCK_POLL)
            yield
        finally:
            os.close(handle)

    def _path(self, key: str) -> Path:
        return self.root / "builds" / key

    def _intact(self, sha256: str, size: int) -> bool:
        return self.blobs.size(sha256) == size and hash_file(self.blobs.path(sha256)) == sha256
