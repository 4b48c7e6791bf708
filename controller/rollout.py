"""In which order devices are dealt with, and when to stop: the first few as a test, and a bound on failures."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Devices dealt with at once.
PARALLEL = 32


async def rollout(
    items: Sequence[T],
    act: Callable[[T], Awaitable[R]],
    *,
    failed: Callable[[R], bool],
    skip: Callable[[T, str], R],
    canary: int = 0,
    max_failures: int | None = None,
) -> list[R]:
    """``act`` on each item; results in the items' order.

    The first ``canary`` items must all do well before any other is touched. With ``max_failures``, no more are under
    way than may still fail, so never more than that many do. An item not touched gets ``skip(item, why)``.
    ``act`` must not raise. Cancelling cancels what is under way and waits for it.
    """
    results: dict[int, R] = {}
    bound = None if max_failures is None else max(1, max_failures)
    failures = 0

    async def stage(indices: Sequence[int]) -> None:
        nonlocal failures
        waiting = deque(indices)
        running: dict[asyncio.Task[R], int] = {}

        async def one(item: T) -> R:
            return await act(item)

        try:
            while waiting or running:
                most = PARALLEL if bound is None else min(PARALLEL, bound - failures)
                while waiting and len(running) < most:
                    index = waiting.popleft()
                    running[asyncio.create_task(one(items[index]))] = index
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = running.pop(task)
                    results[index] = task.result()
                    failures += failed(results[index])
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    everything = range(len(items))
    why = ""
    if 0 < canary < len(items):
        await stage(everything[:canary])
        bad = sum(index not in results or failed(results[index]) for index in everything[:canary])
        if bad:
            why = f"not touched: {bad} of the {canary} canary devices did not do well"
    if not why:
        await stage([index for index in everything if index not in results])
        why = f"not touched: {failures} devices have failed already"
    return [results[index] if index in results else skip(items[index], why) for index in everything]
