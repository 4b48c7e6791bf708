"""Waiting with a limit, without ever losing a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of ``work``. Raises asyncio.TimeoutError after ``seconds`` (None: never), when it has been cancelled.

    Unlike ``asyncio.wait_for`` before Python 3.12, which drops the cancellation of its caller when the work is done in
    the same moment: an interrupt would then be without effect.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if not task.cancelled():
        # It came to its end while it was being cancelled.
        return task.result()
    raise asyncio.TimeoutError


async def done_within(seconds: float | None, future: asyncio.Future[T]) -> bool:
    """Whether ``future`` is done before ``seconds`` are over. It is never cancelled itself."""
    await asyncio.wait([future], timeout=seconds)
    return future.done()
