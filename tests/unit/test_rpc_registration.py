"""How a device tries to be registered with a tracker: for ever, ever less often, never in step with others."""

from __future__ import annotations

import asyncio
import socket

import pytest

import agent.tracker
from agent.tracker import Registration
from targets.defaults import RECONNECT_CAP, RECONNECT_FIRST


def registration(port: int) -> Registration:
    return Registration(("127.0.0.1", port), key="board", port=9090, address=None, device="board-1")


def test_back_off_doubles_to_its_cap_and_is_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()[1]
    bounds: list[tuple[float, float]] = []

    async def run() -> None:
        enough = asyncio.Event()

        def uniform(low: float, high: float) -> float:
            bounds.append((low, high))
            if len(bounds) == 12:
                enough.set()
            return 0.0

        monkeypatch.setattr(agent.tracker.random, "uniform", uniform)
        trying = asyncio.create_task(registration(nobody).run())
        await asyncio.wait_for(enough.wait(), 30)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying

    asyncio.run(run())
    assert [low for low, _ in bounds] == [0.0] * 12
    assert [high for _, high in bounds] == [min(RECONNECT_FIRST * 2**n, RECONNECT_CAP) for n in range(12)]
    assert bounds[-1][1] == RECONNECT_CAP == 30.0


@pytest.mark.parametrize("key", ["", "board", "board:", "board:0.5"])
def test_no_key_opens_a_device_that_is_not_on_offer(key: str) -> None:
    assert not registration(1).take(key, shared=False)
