"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it in good order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


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

        for number in (signal.SIGINT, signal.SIGTERM):
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
    """Make SIGTERM end synchronous code as Ctrl-C does."""

    def raise_interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, raise_interrupt)
