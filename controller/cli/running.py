"""Runs a command's coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in good order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: Signals that end a command as Ctrl-C does. One that was ignored from the start, as under `nohup`, stays ignored.
_ENDING = tuple(n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end. The first signal cancels it, so that leases are given back and boards told; the next
    one does not wait for that. Raises KeyboardInterrupt in both cases.
    """
    # Takes long to import, and neither help nor half of the commands need it.
    import asyncio

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        interrupted = False

        def on_signal() -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
            task.cancel()

        for number in (signal.SIGINT, *_ENDING):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                # Refused outside the main thread, where nobody sends signals either.
                loop.add_signal_handler(number, on_signal)
        try:
            result = await task
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise
        if interrupted:
            raise KeyboardInterrupt
        return result

    return asyncio.run(supervised())


def terminate_like_interrupt() -> None:
    """Make a request to end, or the end of the terminal, stop synchronous code as Ctrl-C does."""

    def raise_interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in _ENDING:
        with contextlib.suppress(ValueError):
            signal.signal(number, raise_interrupt)
