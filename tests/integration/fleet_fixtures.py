"""Running simulated boards and what can be deployed on them, for tests of the controller.

Import the fixtures that a test module needs; ``yard`` is a home with its own keys, boards and results.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from agent_client import NUMPY_TARGET, Bundle, make_bundle, wait_for

from agent import protocol as p
from controller import sim
from controller.events import Event
from controller.fleet import Fleet
from controller.home import Home
from controller.inventory import Device
from controller.session import Session
from targets.archive import write_archive
from targets.blobs import BlobDir
from targets.keys import Keys

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class Yard:
    """A controller's home with simulated boards of the target ``numpy`` (or another)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = Home.find(root)
        self.events: list[Event] = []

    def up(
        self, count: int = 1, *, target: str = "numpy", faults: Sequence[str] = (), **more: Any
    ) -> list[sim.SimBoard]:
        return sim.up(self.home, count, target=target, faults=faults, **more)

    def fleet(self, listener: Callable[[Event], None] | None = None, **more: Any) -> Fleet:
        def listen(event: Event) -> None:
            self.events.append(event)
            if listener is not None:
                listener(event)

        return Fleet(home=more.pop("home", self.home), listener=listen, **more)

    @property
    def everything(self) -> list[Device]:
        return self.fleet().select(everything=True)

    def archive(self, bundle: Bundle, *, signed: bool = True, keys: Keys | None = None) -> str:
        """The bundle as a ``.fleet`` file."""
        blobs = BlobDir(self.root / "made")
        for data in bundle.blobs.values():
            blobs.add_bytes(data)
        path = self.root / f"{bundle.id[:16]}{'' if signed else '-unsigned'}.fleet"
        signature = (keys or Keys(self.home.keys)).sign(bundle.id) if signed else None
        write_archive(path, bundle.manifest, signature, blobs)
        return str(path)

    def made(self, name: str = "product", **what: Any) -> tuple[str, Bundle]:
        """A signed archive of a bundle for the NumPy target; see `agent_client.make_bundle`."""
        bundle = make_bundle(name, **what)
        return self.archive(bundle), bundle

    def kill(self, name: str) -> None:
        """SIGKILL a board's agent, and wait until it is gone."""
        (board,) = [board for board in sim.status(self.home) if board.name == name]
        os.kill(board.pid, signal.SIGKILL)
        wait_for(lambda: self.state(name) == "dead", f"the end of {name}")

    def state(self, name: str) -> str:
        return next(board.state for board in sim.status(self.home) if board.name == name)

    def ask(self, device: Device, message: p.Message, reply: type[Any]) -> Any:
        """One request to one device."""

        async def work() -> Any:
            async with self.fleet().session(device) as session:
                return await session.connection.request(message, reply)

        return run(work())

    def status(self, device: Device) -> p.Status:
        found: p.Status = self.ask(device, p.GetStatus(), p.Status)
        return found

    def active(self, device: Device, slot: str = "default") -> str:
        return next((r.bundle for r in self.status(device).releases if r.slot == slot), "")


class HeldLease:
    """Somebody else who holds a device's lease, in a thread with a loop of its own, until it is told to let go."""

    def __init__(self, yard: Yard, device: Device, holder: str = "somebody@else:1") -> None:
        self._ready, self._end = threading.Event(), threading.Event()
        self._fleet = yard.fleet(holder=holder)
        self._device = device
        self._thread = threading.Thread(target=lambda: asyncio.run(self._hold()))

    async def _hold(self) -> None:
        session: Session
        async with self._fleet.session(self._device, lease=True) as session:
            assert session.token
            self._ready.set()
            await asyncio.to_thread(self._end.wait, 60)

    def __enter__(self) -> HeldLease:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def let_go(self, after: float = 0.0) -> None:
        threading.Timer(after, self._end.set).start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{NUMPY_TARGET}{os.pathsep}{before}" if before else str(NUMPY_TARGET))
    monkeypatch.syspath_prepend(str(NUMPY_TARGET))
    monkeypatch.delenv("FLEET_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    made = Yard(tmp_path / "home")
    try:
        yield made
    finally:
        sim.down(made.home)


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Coroutine[Any, Any, None]:
    """As `agent_client.wait_for`, for the inside of a loop."""

    async def wait() -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            await asyncio.sleep(0.01)

    return wait()
