"""A TVM tracker, started as `fleet tracker` starts it, and the device's registration with it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rpc_fixtures import KEY, Board, add_one_library, board, eventually

import agent.tracker
from controller import tracker
from controller.home import Home
from controller.links.rpc import RpcLink
from targets.base import FleetError
from targets.tvm_rpc import TRACKER_MAGIC


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home.find(tmp_path / "home")
    yield made
    tracker.stop(made)


def free(home: Home, key: str = KEY) -> int:
    """How many devices of ``key`` the tracker has to give."""
    return sum(entry.free for entry in tracker.status(home).keys if entry.key == key)


async def echo(link: RpcLink) -> None:
    await link.open()
    await link.send(b"hello", b"there")
    assert await link.receive() == (b"hello", b"there")


def test_it_starts_once_lists_what_is_registered_and_stops(home: Home, tmp_path: Path) -> None:
    assert not tracker.status(home).running
    started = tracker.start(home, port=0)
    assert started.running and started.devices == [] and tracker.start(home, port=0).pid == started.pid
    with pytest.raises(FleetError, match=f"runs already, on 127.0.0.1:{started.port}"):
        tracker.start(home, port=started.port + 1)
    with board(tmp_path / "board", tracker=("127.0.0.1", started.port), device="sim-1") as made:
        eventually(lambda: free(home) == 1, "the device is registered")
        (device,) = tracker.status(home).devices
        assert (device.key, device.address, device.device) == (KEY, f"127.0.0.1:{made.port}", "sim-1")
    eventually(lambda: tracker.status(home).devices == [], "the device is gone from the tracker")
    assert tracker.stop(home) and not tracker.stop(home)
    assert not tracker.status(home).running
    with pytest.raises(FleetError) as raised:
        tracker.summary("127.0.0.1", started.port)
    assert raised.value.code == "unreachable"


def test_a_port_that_is_taken_is_said(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(FleetError) as raised:
        tracker.start(home, port=taken.getsockname()[1])
    assert raised.value.code == "tracker-failed" and "tracker.log" in raised.value.hint
    assert not tracker.status(home).running


def test_a_stock_client_gets_the_device_for_itself(home: Home, tmp_path: Path) -> None:
    from tvm import rpc

    port = tracker.start(home, port=0).port
    with board(tmp_path / "board", tracker=("127.0.0.1", port)):
        eventually(lambda: free(home) == 1, "the device is registered")
        asked = rpc.connect_tracker("127.0.0.1", port)
        remote = asked.request(KEY, session_timeout=60)
        assert remote.listdir(".") == ""
        # Whoever measures must be alone: nothing is on offer until the session has ended.
        assert free(home) == 0
        del remote
        eventually(lambda: free(home) == 1, "the device is offered again")
        assert asked.request(KEY).listdir(".") == ""


def test_fleets_own_link_shares_the_device(home: Home, tmp_path: Path) -> None:
    port = tracker.start(home, port=0).port
    with board(tmp_path / "board", tracker=("127.0.0.1", port)) as made:
        eventually(lambda: free(home) == 1, "the device is registered")

        async def both() -> None:
            first = RpcLink.through_tracker("127.0.0.1", port, KEY)
            second = RpcLink.through_tracker("127.0.0.1", port, KEY)
            await echo(first)
            await echo(second)
            assert len(made.sessions()) == 2
            await first.close()
            await second.close()

        asyncio.run(asyncio.wait_for(both(), 60))


def test_a_restarted_tracker_gets_its_devices_back(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The back-off itself is tried in the unit tests; here it must only not take half a minute.
    monkeypatch.setattr(agent.tracker, "RECONNECT_CAP", 0.5)
    port = tracker.start(home, port=0).port
    with board(tmp_path / "board", tracker=("127.0.0.1", port)):
        eventually(lambda: free(home) == 1, "the device is registered")
        assert tracker.stop(home)
        tracker.start(home, port=port)
        eventually(lambda: free(home) == 1, "the device is registered again")
        asyncio.run(asyncio.wait_for(echo_once(port), 60))


async def echo_once(port: int) -> None:
    link = RpcLink.through_tracker("127.0.0.1", port, KEY)
    await echo(link)
    await link.close()


def test_a_device_nobody_came_for_is_offered_again(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.tracker, "UNUSED_KEY_TIMEOUT", 0.1)
    monkeypatch.setattr(agent.tracker, "TRACKER_PING_INTERVAL", 0.1)
    port = tracker.start(home, port=0).port
    with board(tmp_path / "board", tracker=("127.0.0.1", port)):
        eventually(lambda: free(home) == 1, "the device is registered")
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(struct.pack("<i", TRACKER_MAGIC))
            client.recv(4)
            request = json.dumps([4, KEY, "", 1]).encode()
            client.sendall(struct.pack("<i", len(request)) + request)
            assert client.recv(4)
        eventually(lambda: free(home) == 1, "the device is offered with a new key")


def test_no_free_device_and_no_tracker_are_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import controller.links.rpc

    monkeypatch.setattr(controller.links.rpc, "REQUEST_TIMEOUT", 0.5)
    port = tracker.start(home, port=0).port

    async def attempt() -> FleetError:
        with pytest.raises(FleetError) as raised:
            await RpcLink.through_tracker("127.0.0.1", port, "nobody").open()
        return raised.value

    error = asyncio.run(attempt())
    assert error.code == "unreachable" and "no free device 'nobody'" in error.message
    tracker.stop(home)
    error = asyncio.run(attempt())
    assert error.code == "unreachable" and str(port) in error.message


@pytest.mark.parametrize(
    "reply",
    [
        lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n"),
        lambda peer: peer.sendall(struct.pack("<ii", TRACKER_MAGIC, 1 << 30)),
        lambda peer: peer.sendall(struct.pack("<ii", TRACKER_MAGIC, -4)),
        lambda peer: peer.sendall(struct.pack("<ii", TRACKER_MAGIC, 4) + b"\xff\xfe{["),
        lambda peer: peer.sendall(struct.pack("<ii", TRACKER_MAGIC, 2) + b"{}"),
        lambda peer: peer.sendall(struct.pack("<ii", TRACKER_MAGIC, 100_000) + b"[" * 100_000),
        lambda peer: peer.sendall(struct.pack("<iiii", TRACKER_MAGIC, 1, 48, 0) + os.urandom(1000)),
    ],
    ids=["http", "huge", "negative", "not-text", "wrong-kind", "deep", "noise"],
)
def test_a_tracker_that_talks_nonsense_harms_nobody(
    tmp_path: Path, reply: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.tracker, "RECONNECT_CAP", 0.2)
    visits = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal visits
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    visits += 1
                    reply(peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with board(tmp_path / "board", tracker=("127.0.0.1", listener.getsockname()[1])) as made:
            eventually(lambda: visits >= 3, "the agent tries again and again")
            made.call(made.listener.probe())
            asyncio.run(asyncio.wait_for(direct(made), 60))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


async def direct(made: Board) -> None:
    link = RpcLink("127.0.0.1", made.port, KEY)
    await echo(link)
    await link.close()


def test_meta_schedules_runner_measures_on_the_device(home: Home, tmp_path: Path) -> None:
    from tvm.s_tir.meta_schedule.arg_info import TensorInfo
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RPCConfig, RPCRunner, RunnerInput

    library = add_one_library(tmp_path, entry="main")
    port = tracker.start(home, port=0).port
    with board(tmp_path / "board", tracker=("127.0.0.1", port)):
        eventually(lambda: free(home) == 1, "the device is registered")
        runner = RPCRunner(
            RPCConfig("127.0.0.1", port, KEY, session_priority=1, session_timeout_sec=30),
            EvaluatorConfig(number=2, repeat=2, min_repeat_ms=1),
        )
        inputs = [RunnerInput(str(library), "cpu", [TensorInfo("float32", (1024,))] * 2) for _ in range(3)]
        for future in runner.run(inputs):
            result = future.result()
            assert result.error_msg is None
            assert len(result.run_secs) == 2 and all(float(seconds) > 0 for seconds in result.run_secs)
