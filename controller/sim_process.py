"""Processes that outlive the command which starts them: known by number and start time, and ended only if both fit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

#: Seconds between one way to end a process and the next, harsher one.
END_PATIENCE = 5.0

#: Those that this very process started: without this they would stay behind as zombies when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Process(msgspec.Struct, kw_only=True, frozen=True):
    """A process as it is written down. ``created`` is its start time: a number alone may have been given anew."""

    pid: int = 0
    created: float = 0.0

    @property
    def alive(self) -> bool:
        # The start time is derived from the boot time, which may be off by a tick between two readings.
        return self.pid > 0 and self.created > 0 and abs(_created(self.pid) - self.created) < 1.0

    @property
    def status(self) -> int | None:
        """What it exited with, if it was started here and has ended."""
        child = _children.get(self.pid)
        return None if child is None else child.poll()

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(command: Sequence[str], log: Path, more: Mapping[str, str] | None = None) -> Process:
    """Start a program in a session of its own, with its output in ``log`` and ``more`` environment variables."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**os.environ, **(more or {})},
            start_new_session=True,
        )
    _children[child.pid] = child
    return Process(pid=child.pid, created=_created(child.pid))


def find(pid: int, words: Sequence[str]) -> Process:
    """The process with this number if its command line has all these ``words``; else one that is not alive."""
    import psutil

    with contextlib.suppress(psutil.Error):
        if set(words) <= set(psutil.Process(pid).cmdline()):
            return Process(pid=pid, created=_created(pid))
    return Process()


def tail(log: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])
    return ""


def end(processes: Sequence[Process]) -> list[Process]:
    """End processes, asking once; those that are still there after all."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.signal(number)
        processes = left_after(processes)
    return list(processes)


def left_after(processes: Sequence[Process], seconds: float = END_PATIENCE) -> list[Process]:
    """Those that are still there after a while."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if process.alive]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _created(pid: int) -> float:
    """When a process was started; 0 when there is none, or one that has ended and was not waited for."""
    import psutil

    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        # Asked for its status later, it still tells.
        return 0.0
    try:
        process = psutil.Process(pid)
        # Its parent may never ask for the end of one that it left behind. Ours, until we have its end, still has
        # threads that hold its port.
        ended = child is None and process.status() == psutil.STATUS_ZOMBIE
        return 0.0 if ended else float(process.create_time())
    except psutil.Error:
        return 0.0
