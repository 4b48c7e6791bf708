"""Waiting with a limit: results, timeouts, and cancellations that arrive in the worst moment."""

from __future__ import annotations

import asyncio

import pytest

from targets.waiting import done_within, within


def test_results_and_errors_come_through() -> None:
    async def work() -> None:
        async def give(value: int) -> int:
            await asyncio.sleep(0)
            return value

        async def fail() -> None:
            raise ValueError("no")

        assert await within(5.0, give(3)) == 3
        assert await within(None, give(4)) == 4
        with pytest.raises(ValueError, match="no"):
            await within(5.0, fail())

    asyncio.run(work())


def test_what_takes_too_long_is_cancelled_first() -> None:
    async def work() -> None:
        ended = asyncio.Event()

        async def long() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ended.set()

        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, long())
        assert ended.is_set()

    asyncio.run(work())


def test_a_cancellation_is_not_lost_when_the_work_ends_in_the_same_moment() -> None:
    async def work() -> None:
        for wait in (lambda f: within(5.0, f), lambda f: done_within(5.0, f)):
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(wait(future))
            await asyncio.sleep(0)
            future.set_result(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())


def test_a_cancelled_wait_cancels_its_work() -> None:
    async def work() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(within(None, future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    asyncio.run(work())


def test_done_within_leaves_the_future_alone() -> None:
    async def work() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        assert not await done_within(0.01, future)
        assert not future.done()
        future.set_result(1)
        assert await done_within(0.01, future)

    asyncio.run(work())
