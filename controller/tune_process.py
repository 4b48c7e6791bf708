"""A target's tuner in a process of its own, as builds are: compilers leak, print and crash, and kernels are worse.

`TuneProcess` is the parent's side; ``python -m controller.tune_process`` the child's. Each order is a line of JSON, and
so is its answer. Nothing is pickled between the two. The child ends with its parent, and its own children with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TypeVar

import msgspec

from targets.base import FleetError, Option, SourceModel
from targets.tuning import Endpoint, Race, TunableLayer, Tuner, TuningHalf

LOG = "tune.log"
#: Bytes of a line: the layers of the largest networks take a few hundred thousand.
MAX_LINE = 64 * 1024 * 1024


class Start(msgspec.Struct, frozen=True, tag="start"):
    model: SourceModel
    target: str
    options: dict[str, Option]
    workdir: str


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Numbers are those of `Ready.layers`."""

    layer: int
    candidate: int
    rounds: int
    at: Endpoint


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    compiler: str
    layers: list[TunableLayer]


class Ran(msgspec.Struct, frozen=True, tag="ran"):
    race: Race


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str
    hint: str
    code: str


_Order = Start | Run
_Answer = Ready | Ran | Failed
_Expected = TypeVar("_Expected", Ready, Ran)


class TuneProcess:
    """Used as ``async with``; leaving it ends the process, whatever it does."""

    def __init__(self, workdir: Path, zig_cache: Path) -> None:
        self._workdir, self._zig_cache = workdir, zig_cache
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> TuneProcess:
        with (self._workdir / LOG).open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "controller.tune_process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "FLEET_ZIG_CACHE": str(self._zig_cache)},
                limit=MAX_LINE,
                # Ctrl-C is for this process to deal with; and all that the child starts can be ended at once.
                start_new_session=True,
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def start(self, order: Start) -> Ready:
        """Raises FleetError: the tuner's own, or ``tuning-failed`` with its last words."""
        return await self._ask(order, Ready)

    async def race(self, order: Run) -> Race:
        """Raises FleetError: the tuner's own, or ``tuning-failed`` with its last words."""
        return (await self._ask(order, Ran)).race

    async def _ask(self, order: _Order, expected: type[_Expected]) -> _Expected:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
            answer = msgspec.json.decode(line, type=_Answer)
        except (OSError, ValueError):
            # The pipe is broken, or the line is none of ours.
            answer = None
        if isinstance(answer, Failed):
            raise FleetError(answer.message, hint=answer.hint, code=answer.code)
        if not isinstance(answer, expected):
            words = [line for line in (self._workdir / LOG).read_text(errors="replace").splitlines() if line.strip()]
            raise FleetError(
                "the process that tunes has ended",
                code="tuning-failed",
                hint=f"its last words: {words[-1][:300]}" if words else "it said nothing; is there enough memory?",
            )
        return answer


# --- The child ----------------------------------------------------------------------------------


def main() -> None:
    # Standard output belongs to the protocol: whatever a compiler prints goes to the log.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()

    def say(answer: _Answer) -> None:
        out.write(msgspec.json.encode(answer) + b"\n")

    try:
        start = msgspec.json.decode(orders.get(), type=Start)
        tuner = _tuner(start)
        say(Ready(tuner.compiler, list(tuner.layers())))
    except Exception as error:
        say(_failed(error))
        return
    while True:
        order = msgspec.json.decode(orders.get(), type=Run)
        try:
            say(Ran(tuner.race(order.layer, order.candidate, order.rounds, order.at)))
        except Exception as error:
            say(_failed(error))


def _tuner(start: Start) -> Tuner:
    from targets.base import find

    host = find(start.target).host()
    assert isinstance(host, TuningHalf)
    return host.tuner(start.model, start.options, Path(start.workdir))


def _failed(error: Exception) -> Failed:
    import traceback

    traceback.print_exc()
    if isinstance(error, FleetError):
        return Failed(error.message, error.hint, error.code)
    # A fault of ours or of a library: its words for the person, its traceback for the log.
    return Failed(f"tuning failed: {type(error).__name__}: {error}"[:600], "", "tuning-failed")


def _read_orders(orders: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    # The parent is gone: with this process go those that build for it.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
