"""One command of the toolkit: run with a deadline, its words handed on as they come, ended with all that it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from targets.base import FleetError

OnLine = Callable[[str], None]
#: Told every few seconds for how many a command has been running.
OnWait = Callable[[float], None]
_WAIT = 2.0
#: Bytes kept of what a command prints: its first and its last; a command that prints without end fills no memory.
_KEPT = 256 << 10
#: Bytes that go to a log at most.
_LOGGED = 8 << 20
#: Bytes of a line that has not ended; what is longer is no line.
_LINE = 8 << 10
_READ = 64 << 10
#: Seconds in which what a command left running may still write after it has ended.
_AFTER = 1.0
_PR_SET_PDEATHSIG = 1
_BREAK = re.compile(rb"[\r\n]+")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended. ``output`` is standard output and standard error as they came, the middle left out where
    it is long. ``seconds`` are from before its start until after its end."""

    status: int
    output: str
    seconds: float


class TimedOut(FleetError):
    """The command was ended at its deadline; ``output`` is what it had printed."""

    code = "timeout"

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def run(
    command: Sequence[str],
    *,
    deadline: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    on_line: OnLine = lambda _: None,
    on_wait: OnWait = lambda _: None,
    log: IO[bytes] | None = None,
    with_parent: bool = False,
) -> Finished:
    """Run a command in ``folder`` and wait for its end, ``deadline`` seconds at most.

    Each line, or each part that a carriage return ends, goes to ``on_line`` without control characters; what is printed
    goes to ``log``, the first megabytes of it. ``on_wait`` is told every few seconds. ``with_parent``: it is killed
    when the calling thread ends, however that happens.

    Raises :class:`TimedOut`, and :class:`FleetError` ``not-started``. Whatever is raised, by ``on_line`` too, nothing
    that was started is left.
    """
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            [*command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            # Tools of the toolkit refuse files that others may write to.
            umask=0o022,
            preexec_fn=_end_with_parent if with_parent else None,
        )
    except OSError as error:
        raise FleetError(f"{command[0]} cannot be started: {error.strerror}", code="not-started") from None
    printed = _Printed(on_line, log)
    try:
        with process:
            assert process.stdout is not None
            in_time = _read(process, process.stdout, printed, begin + deadline, on_wait)
            if not in_time:
                end(process.pid)
                process.wait()
                raise TimedOut(f"{Path(command[0]).name} did not end within {deadline:g} s", printed.text())
            # What it left running would hold this pipe open for ever.
            process.stdout.close()
    except BaseException:
        end(process.pid)
        raise
    printed.end()
    return Finished(process.returncode, printed.text(), time.monotonic() - begin)


def end(pid: int) -> None:
    """Kill a process and all its descendants: they are stopped first, so that none starts another meanwhile."""
    family: dict[int, psutil.Process] = {}
    while True:
        found = _family(pid)
        new = [member for member in found if member.pid not in family]
        if not new:
            break
        for member in new:
            family[member.pid] = member
            with contextlib.suppress(psutil.Error):
                member.suspend()
    for member in family.values():
        with contextlib.suppress(psutil.Error):
            member.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _read(
    process: subprocess.Popen[bytes], source: IO[bytes], printed: _Printed, until: float, on_wait: OnWait
) -> bool:
    """Read until the end of output and process; whether that was in time."""
    os.set_blocking(source.fileno(), False)
    closed = False
    begin = told = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while not closed:
            ended = process.poll() is not None
            if ended:
                until = min(until, time.monotonic() + _AFTER)
            now = time.monotonic()
            if now - told >= _WAIT:
                told = now
                on_wait(now - begin)
            remaining = until - now
            if remaining <= 0:
                return False
            if selector.select(min(remaining, 0.2)):
                data = os.read(source.fileno(), _READ)
                closed = not data
                printed.add(data)
            elif ended:
                # Nothing more came: what it left behind holds the pipe.
                return True
    while process.poll() is None:
        if time.monotonic() >= until:
            return False
        time.sleep(0.005)
    return True


class _Printed:
    def __init__(self, on_line: OnLine, log: IO[bytes] | None) -> None:
        self._on_line = on_line
        self._log = log
        self._first = b""
        self._last = b""
        self._left_out = 0
        self._logged = 0
        self._open = b""

    def add(self, data: bytes) -> None:
        if self._log is not None and self._logged < _LOGGED:
            self._log.write(data[: _LOGGED - self._logged])
            self._logged += len(data)
        room = _KEPT - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        if len(self._last) > 2 * _KEPT:
            self._left_out += len(self._last) - _KEPT
            self._last = self._last[-_KEPT:]
        *whole, self._open = _BREAK.split(self._open + data)
        for line in whole:
            self._tell(line)
        if len(self._open) > _LINE:
            self._open = self._open[:_LINE]

    def end(self) -> None:
        self._tell(self._open)
        self._open = b""

    def text(self) -> str:
        gap = f"\n… {self._left_out} bytes …\n" if self._left_out else ""
        return self._first.decode("utf-8", "replace") + gap + self._last.decode("utf-8", "replace")

    def _tell(self, line: bytes) -> None:
        text = plain(line[:_LINE].decode("utf-8", "replace")).strip()
        if text:
            self._on_line(text)


def plain(text: str) -> str:
    """Without escape sequences of terminals and other characters that print nothing."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(character for character in text if character.isprintable() or character == "\t")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
