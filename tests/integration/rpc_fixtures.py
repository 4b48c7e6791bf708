"""A TVM RPC listener with the agent's own socket behind it, in a thread: TVM's client blocks, and needs it running."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import zmq

from agent.admission import Admission
from agent.router import Router
from agent.rpc import RpcListener
from targets import zig

T = TypeVar("T")
KEY = "test-board"


class Board:
    """What a test talks to. Messages of the fleet protocol are answered with themselves, ``big`` with a small one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: RpcListener, root: Path) -> None:
        self.loop = loop
        self.listener = listener
        self.root = root
        self.granted: list[bytes] = []
        self.revoked: list[bytes] = []

    @property
    def port(self) -> int:
        return self.listener.port

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def sessions(self) -> list[psutil.Process]:
        """Session processes of this board."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cwd().startswith(str(self.root)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def board(root: Path, **options: Any) -> Iterator[Board]:
    """A board with a listener on a free loopback port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def build() -> tuple[Router, Board]:
        public, secret = zmq.curve_keypair()
        admission = Admission(root / "authorized")

        def answer(session: bytes, key: str, header: memoryview, payload: memoryview) -> None:
            small = bytes(header).startswith(b"big")
            router.send(session, bytes(header), b"" if small else bytes(payload))

        def grant(key: bytes) -> None:
            admission.grant(key)
            made.granted.append(key)

        def revoke(key: bytes) -> None:
            admission.revoke(key)
            made.revoked.append(key)

        router = Router(
            public=public, secret=secret, admission=admission, on_message=answer, on_gone=lambda session: None
        )
        await router.start("tcp://127.0.0.1:0")
        listener = RpcListener(
            **{
                "host": "127.0.0.1",
                "port": 0,
                "key": KEY,
                "tracker": None,
                "agent_endpoint": router.endpoint,
                "agent_public": public,
                "grant": grant,
                "revoke": revoke,
                "root": root / "rpc",
                **options,
            }
        )
        made = Board(loop, listener, root)
        try:
            await listener.start()
        except BaseException:
            await router.stop()
            raise
        return router, made

    try:
        router, made = call(build())
        try:
            yield made
        finally:
            call(made.listener.stop())
            call(router.stop())
            assert not made.sessions(), "a session outlived its listener"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def eventually(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def add_one_library(folder: Path, suffix: str = ".so", entry: str = "add_one") -> Path:
    """A library whose function ``entry(x, y)`` sets ``y = x + 1`` for 1024 float32, built by TVM here and now."""
    import tvm
    from tvm import te

    x = te.placeholder((1024,), name="x")
    y = te.compute((1024,), lambda i: x[i] + 1.0, name="y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", entry)
    library = folder / f"add_one{suffix}"
    tvm.compile(tvm.IRModule({entry: function}), target="llvm").export_library(
        str(library), fcompile=None if suffix == ".tar" else link
    )
    return library


def link(output: str, objects: list[str], **_: Any) -> None:
    zig.link_shared(Path(output), [Path(name) for name in objects], "x86_64-linux-gnu")
