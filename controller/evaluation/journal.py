"""Answers so far, on disk: an evaluation that was cut off goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from controller.evaluation.found import Found
from targets.base import FleetError
from targets.files import disk_errors

#: Seconds of work that a power cut may cost; a process that is killed loses nothing that it has written.
_SYNC_INTERVAL = 2.0
_VERSION = 1


class Journal:
    """One file of answers, a line each, below a line that says of what they are. Used by one process at a time."""

    def __init__(self, folder: Path, key: Mapping[str, object], *, fresh: bool = False) -> None:
        """Opens the journal of ``key``, everything on which the answers depend, and reads it; ``fresh`` empties it.

        Raises :class:`FleetError` (``busy``) while another process has it open.
        """
        head = msgspec.json.encode({"version": _VERSION, **key}, order="sorted") + b"\n"
        self._path = folder / f"{hashlib.sha256(head).hexdigest()[:32]}.jsonl"
        #: Answers by the index of their picture.
        self.found: dict[int, Found] = {}
        self._synced = time.monotonic()
        with disk_errors("the answers so far"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FleetError(
                    f"the same evaluation on {key.get('device')} is already running", code="busy", hint="wait for it"
                ) from None
            with disk_errors("the answers so far"):
                self._recover(head, fresh)
        except BaseException:
            self._file.close()
            raise

    def _recover(self, head: bytes, fresh: bool) -> None:
        """Read whole lines up to the first that is damaged, and cut off the rest."""
        self._file.seek(0)
        good = 0
        if not fresh and self._file.readline() == head:
            good = len(head)
            for line in self._file:
                try:
                    one = msgspec.json.decode(line, type=Found)
                except msgspec.DecodeError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.found[one.index] = one
                good += len(line)
        self._file.truncate(good)
        if not good:
            self._file.write(head)
            self._file.flush()

    def add(self, answers: Sequence[Found]) -> None:
        with disk_errors("the answers so far"):
            self._file.write(b"".join(msgspec.json.encode(one) + b"\n" for one in answers))
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_INTERVAL:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.found.update((one.index, one) for one in answers)

    def forget(self) -> None:
        """The result is stored: nobody needs to go on."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()
