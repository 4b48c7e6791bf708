"""TVM RPC of a whole agent: pushes into its store, stock clients, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rpc_fixtures import add_one_library, eventually

from agent import protocol as p
from controller import sim, tracker
from controller.events import Event, Progress, ignore
from controller.home import Home
from controller.inventory import Device
from controller.prepare import Bundle
from controller.push import Traffic, push
from controller.session import CUT, Session
from targets.base import FleetError, Requirements
from targets.blobs import BlobDir
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo
from targets.keys import Keys


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home.find(tmp_path_factory.mktemp("home"))
    sim.up(made, 1, prefix="board")
    yield made
    sim.down(made)


@pytest.fixture(scope="module")
def over_rpc(home: Home) -> Device:
    """The board, with TVM RPC as the only way to it."""
    board = sim.devices(home)[0]
    assert board.rpc
    return Device(name=board.name, target=board.target, rpc=board.rpc)


def bundle_of(blobs: BlobDir, data: bytes) -> Bundle:
    """A bundle with one file, as far as a push looks into it."""
    sha256 = blobs.add_bytes(data)
    manifest = Manifest(
        model=ModelInfo(name="m", source_sha256=sha256, origin="test"),
        target="x86",
        toolchain={},
        options={},
        inputs=(),
        outputs=(),
        entry="model.so",
        parameters=(),
        engine="",
        requirements=Requirements(),
        golden=Golden(inputs=(), outputs=(), rtol=0, atol=0, reference=""),
        files=(FileEntry(path="model.so", size=len(data), sha256=sha256, role="library"),),
    )
    return Bundle(id="", manifest=manifest, manifest_bytes=b"", blobs=blobs, signature=None)


def session(home: Home, device: Device) -> Session:
    return Session(device, Keys(home.keys), holder="test", lease=True, lease_wait=30, listener=ignore)


def stored(home: Home, data: bytes) -> bool:
    """Whether the board's store has a blob with just these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    files = [path for path in (home.sim / "board-1").rglob(digest) if path.is_file()]
    return [path.read_bytes() for path in files] == [data]


def sessions(home: Home) -> list[psutil.Process]:
    """TVM RPC sessions of the board."""
    (board,) = sim.status(home)
    found = []
    for process in psutil.Process(board.pid).children(recursive=True):
        try:
            if "agent.rpc_session" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("data", [os.urandom(5_000_000), b"compresses well " * 300_000], ids=["random", "text"])
def test_a_push_over_tvm_rpc_lands_in_the_agents_store(
    home: Home, over_rpc: Device, tmp_path: Path, data: bytes
) -> None:
    bundle = bundle_of(BlobDir(tmp_path / "blobs"), data)

    async def twice() -> tuple[Traffic, Traffic]:
        first, second = Traffic(), Traffic()
        async with session(home, over_rpc) as opened:
            assert opened.carrier == "rpc"
            await push(opened, bundle, first, ignore)
            await push(opened, bundle, second, ignore)
        return first, second

    first, second = asyncio.run(asyncio.wait_for(twice(), 120))
    assert (first.sent, second.sent) == (len(data), 0)
    assert first.on_wire == len(data) if data[0] != ord("c") else first.on_wire < len(data) // 20
    assert stored(home, data)


def test_a_push_that_is_cut_goes_on_where_it_was(home: Home, over_rpc: Device, tmp_path: Path) -> None:
    data = os.urandom(40_000_000)
    bundle = bundle_of(BlobDir(tmp_path / "blobs"), data)
    traffic = Traffic()

    async def cut_once() -> int:
        async with session(home, over_rpc) as opened:
            under_way = asyncio.Event()

            def watch(event: Event) -> None:
                if isinstance(event, Progress) and event.bytes_done >= 4_000_000:
                    under_way.set()

            pushing = asyncio.create_task(push(opened, bundle, traffic, watch))
            await under_way.wait()
            for process in sessions(home):
                process.send_signal(signal.SIGKILL)
            with pytest.raises(FleetError) as raised:
                await pushing
            assert raised.value.code in CUT
            before = traffic.on_wire
            assert before < len(data)
            await opened.restore()
            await push(opened, bundle, traffic, ignore)
            return traffic.on_wire - before

    again = asyncio.run(asyncio.wait_for(cut_once(), 120))
    assert traffic.sent == len(data) and again <= len(data) - 4_000_000
    assert stored(home, data)


def test_a_push_through_a_tracker(home: Home, tmp_path: Path) -> None:
    apart = Home.find(tmp_path / "home")
    data = os.urandom(2_000_000)
    try:
        port = tracker.start(apart, port=0).port
        sim.up(apart, 1, tracker=("127.0.0.1", port), prefix="board")
        eventually(lambda: len(tracker.status(apart).devices) == 1, "the board is registered")
        (registered,) = tracker.status(apart).devices
        assert registered.device == "board-1"
        device = Device(name="board-1", target="x86", tracker=f"127.0.0.1:{port}", rpc_key=registered.key)

        async def once() -> str:
            async with session(apart, device) as opened:
                await push(opened, bundle_of(BlobDir(tmp_path / "blobs"), data), Traffic(), ignore)
                return opened.carrier

        assert asyncio.run(asyncio.wait_for(once(), 120)) == "tracker"
        assert stored(apart, data)
    finally:
        sim.down(apart)
        tracker.stop(apart)


def test_two_carriers_reach_one_agent(home: Home, over_rpc: Device) -> None:
    async def both() -> tuple[p.Status, p.Status]:
        async with session(home, over_rpc) as rpc:
            plain = Session(sim.devices(home)[0], Keys(home.keys), holder="watcher", listener=ignore)
            async with plain as own:
                assert (rpc.carrier, own.carrier) == ("rpc", "socket")
                return (
                    await rpc.connection.request(p.GetStatus(), p.Status),
                    await own.connection.request(p.GetStatus(), p.Status),
                )

    over, direct = asyncio.run(asyncio.wait_for(both(), 60))
    assert over.device == direct.device == "board-1"
    assert over.lease is not None and direct.lease is not None and direct.lease.holder == "test/board-1"


def test_a_stock_client_measures_on_the_same_agent(over_rpc: Device, tmp_path: Path) -> None:
    import numpy as np
    import tvm
    from tvm import rpc

    library = add_one_library(tmp_path)
    host, _, port = over_rpc.rpc.rpartition(":")
    remote = rpc.connect(host, int(port), key=over_rpc.target)
    remote.upload(str(library))
    module = remote.load_module(library.name)
    device = remote.cpu(0)
    x = tvm.runtime.tensor(np.ones(1024, dtype="float32"), device)
    y = tvm.runtime.empty((1024,), "float32", device)
    assert module.time_evaluator("add_one", device, number=5, repeat=2)(x, y).mean > 0
    np.testing.assert_array_equal(y.numpy(), np.full(1024, 2, dtype="float32"))


def test_a_killed_agent_takes_its_sessions_along_and_comes_back(tmp_path: Path) -> None:
    apart = Home.find(tmp_path / "home")
    try:
        (board,) = sim.up(apart, 1, prefix="board")
        data = os.urandom(1_000_000)
        device = Device(name="board-1", target="x86", rpc=f"127.0.0.1:{board.rpc_port}")

        async def kill() -> list[psutil.Process]:
            async with session(apart, device) as opened:
                await push(opened, bundle_of(BlobDir(tmp_path / "blobs"), data), Traffic(), ignore)
                running = sessions(apart)
                os.kill(board.pid, signal.SIGKILL)
                with pytest.raises(FleetError) as raised:
                    await opened.connection.request(p.GetStatus(), p.Status)
                assert raised.value.code in CUT
                return running

        running = asyncio.run(asyncio.wait_for(kill(), 60))
        assert running
        eventually(lambda: not any(process.is_running() for process in running), "the sessions are gone")
        sim.up(apart, 1, prefix="board")
        assert stored(apart, data)
        # What the killed sessions left is removed at the start.
        assert not list((apart.sim / "board-1" / "rpc").iterdir())
    finally:
        sim.down(apart)
