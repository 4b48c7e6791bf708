"""Results of bench runs, kept until a controller has said that it has them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.protocol import RunResult
from targets.base import FleetError
from targets.defaults import MAX_MESSAGE
from targets.files import TEMPORARY, disk_errors, make_directory, sync_directory, write_atomic

_log = logging.getLogger(__name__)
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"(\d{12})-(.+)\.run")


class Journal:
    """One file per result, ``<number>-<run>.run`` in MessagePack, so that none is lost with another. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        make_directory(root)
        for path in root.glob(f"{TEMPORARY}*"):
            path.unlink()
        #: Files by run, oldest first.
        self._files: dict[str, Path] = {}
        self._next = 0
        for path in sorted(root.iterdir()):
            if match := _NAME.fullmatch(path.name):
                self._files[match[2]] = path
                self._next = int(match[1]) + 1

    def add(self, result: RunResult) -> None:
        """Keep a result; it survives a power cut once this returns. A run that is already here is not added again.

        Raises :class:`FleetError` with code ``disk-full``; what was there before is not touched.
        """
        if not _RUN.fullmatch(result.run):
            raise FleetError(f"'{result.run[:80]}' cannot be the name of a run", code="bad-run")
        data = msgspec.msgpack.encode(result)
        with self._lock:
            if result.run in self._files:
                return
            path = self.root / f"{self._next:012d}-{result.run}.run"
            with disk_errors(f"the result of run {result.run}"):
                write_atomic(path, data)
            self._files[result.run] = path
            self._next += 1

    def pending(self, limit: int, *, max_bytes: int = MAX_MESSAGE // 2) -> list[RunResult]:
        """The oldest results nobody has acknowledged: at most ``limit``, and not more than fit into one message.

        A result that cannot be read any more is put aside (``*.damaged``) and logged.
        """
        results: list[RunResult] = []
        size = 0
        with self._lock:
            for run, path in list(self._files.items()):
                if len(results) >= limit:
                    break
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    _log.error("the result of run %s was removed from %s by somebody else", run, self.root)
                    del self._files[run]
                    continue
                if results and size + len(data) > max_bytes:
                    break
                try:
                    results.append(msgspec.msgpack.decode(data, type=RunResult))
                except (msgspec.MsgspecError, ValueError) as error:
                    _log.error("the result of run %s cannot be read and is put aside: %s", run, error)
                    path.rename(path.with_suffix(".damaged"))
                    del self._files[run]
                    continue
                size += len(data)
        return results

    def ack(self, runs: Iterable[str]) -> None:
        """Forget results; runs that are not here are ignored, because an acknowledgement may come twice."""
        with self._lock:
            for run in runs:
                path = self._files.pop(run, None)
                if path is not None:
                    path.unlink(missing_ok=True)
            sync_directory(self.root)

    def count(self) -> int:
        """Results that nobody has acknowledged."""
        return len(self._files)
