"""Watching devices: beside other work, until a key is pressed, or until each has told its readings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from controller.cli.terminal import is_terminal
from controller.events import DeviceChanged, Event, Message, Reading
from controller.tui.state import GONE, ViewState
from targets.waiting import within

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.inventory import Device

T = TypeVar("T")


async def alongside(fleet: Fleet, selection: Sequence[Device], work: Coroutine[Any, Any, T]) -> T:
    """Do ``work``, and meanwhile tell the fleet's listener of the devices' readings and states."""
    watching = asyncio.ensure_future(fleet.watch(selection))
    try:
        return await work
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        if not watching.cancelled() and (error := watching.exception()):
            # What was asked for has its own outcome; without readings it is only less to look at.
            fleet.listener(Message("", f"the devices could not be watched: {error}", "warning"))


async def _end(watching: asyncio.Future[None]) -> None:
    """Stop watching. Raises the error that ended it before, if one did."""
    watching.cancel()
    await asyncio.wait([watching])
    if not watching.cancelled():
        watching.result()


async def watch(
    fleet: Fleet, selection: Sequence[Device], seconds: float, scroll: Callable[[int], None] | None
) -> None:
    """Watch until q is pressed or ``seconds`` are over."""
    ended = asyncio.Event()

    def on_key(key: str) -> None:
        moves = {"\x1b[A": -1, "k": -1, "\x1b[B": 1, "j": 1, "\x1b[5~": -10, "\x1b[6~": 10}
        if key in ("q", "Q"):
            ended.set()
        elif scroll is not None and key in moves:
            scroll(moves[key])

    watching = asyncio.ensure_future(fleet.watch(selection))
    watching.add_done_callback(lambda _: ended.set())
    try:
        with _keys(on_key), contextlib.suppress(asyncio.TimeoutError):
            await within(seconds or None, ended.wait())
    finally:
        await _end(watching)


@contextlib.contextmanager
def _keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_key`` for each key pressed, if standard input is a terminal; Ctrl-C still interrupts."""
    if not is_terminal(sys.stdin):
        yield
        return
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def readable() -> None:
        try:
            data = os.read(descriptor, 32)
        except OSError:
            # The terminal is gone; a signal says so too.
            data = b""
        if not data:
            loop.remove_reader(descriptor)
            return
        on_key(data.decode(errors="replace"))

    loop.add_reader(descriptor, readable)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def snapshot(fleet: Fleet, selection: Sequence[Device], deadline: float) -> list[dict[str, Any]]:
    """What the view would show as soon as every device has told its readings, or cannot."""
    state = ViewState("")
    waiting = {device.name for device in selection}
    complete = asyncio.Event()
    for device in selection:
        state.add_device(device.name, device.target, simulated=device.simulated)

    def listen(event: Event) -> None:
        state.apply(event, time.time())
        if isinstance(event, Reading) or (isinstance(event, DeviceChanged) and event.state in GONE):
            waiting.discard(event.device)
            if not waiting:
                complete.set()

    fleet.listener = listen
    watching = asyncio.ensure_future(fleet.watch(selection))
    watching.add_done_callback(lambda _: complete.set())
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await within(deadline, complete.wait())
    finally:
        await _end(watching)
    return _rows(state)


def _rows(state: ViewState) -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "target": row.target,
            "simulated": row.simulated,
            "state": row.state or "unknown",
            "release": row.release,
            "model": row.model,
            "readings": row.readings,
        }
        for row in state.rows.values()
    ]
