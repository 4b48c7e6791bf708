"""The carrier over TVM RPC against a real listener, session and agent socket; and what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rpc_fixtures import KEY, Board, board, eventually

from controller.links.rpc import RpcLink
from targets.base import FleetError
from targets.tvm_rpc import MAGIC, SUCCESS


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with board(tmp_path_factory.mktemp("board")) as made:
        yield made


def test_messages_arrive_whole_and_in_order(here: Board) -> None:
    async def exchange() -> None:
        link = RpcLink("127.0.0.1", here.port, KEY)
        await link.open()
        sent = [(b"%d" % i, os.urandom(size)) for i, size in enumerate((0, 1, 7, 8, 100, 65_536, 3_000_000, 0))]
        for header, payload in sent:
            await link.send(header, payload)
        assert [await link.receive() for _ in sent] == sent
        await link.close()

    asyncio.run(asyncio.wait_for(exchange(), 60))
    eventually(lambda: not here.sessions(), "the session ends with its link")


def test_many_large_messages_flow_both_ways_at_once(here: Board) -> None:
    async def exchange() -> None:
        link = RpcLink("127.0.0.1", here.port, KEY)
        await link.open()
        piece = os.urandom(1 << 20)

        async def send() -> None:
            for i in range(48):
                await link.send(b"%d" % i, piece)

        sending = asyncio.create_task(send())
        for i in range(48):
            assert await link.receive() == (b"%d" % i, piece)
        await sending
        await link.close()

    asyncio.run(asyncio.wait_for(exchange(), 120))


def test_a_message_is_answered_while_a_receive_waits(here: Board) -> None:
    """The device holds our `fleet.receive` for seconds; a send must not wait behind it."""

    async def exchange() -> float:
        link = RpcLink("127.0.0.1", here.port, KEY)
        await link.open()
        await link.send(b"first")
        await link.receive()
        times = []
        for _ in range(20):
            await asyncio.sleep(0.01)
            started = time.perf_counter()
            await link.send(b"x")
            await link.receive()
            times.append(time.perf_counter() - started)
        await link.close()
        return sorted(times)[10]

    # A timer anywhere on the way would show: the receive under way would last 10 s.
    assert asyncio.run(asyncio.wait_for(exchange(), 60)) < 1


def test_the_controller_needs_no_tvm_for_it(here: Board) -> None:
    code = (
        "import asyncio, sys\n"
        "from controller.links.rpc import RpcLink\n"
        "async def main():\n"
        f"    link = RpcLink('127.0.0.1', {here.port}, '{KEY}')\n"
        "    await link.open(); await link.send(b'x'); print(await link.receive()); await link.close()\n"
        "asyncio.run(main())\n"
        "print([m for m in ('tvm', 'tvm_ffi', 'torch', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["(b'x', b'')", "[]"]


def test_the_listener_needs_no_tvm_either() -> None:
    code = "import sys, agent.rpc; print([m for m in ('tvm', 'tvm_ffi', 'torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stock_client_can_use_the_same_functions(here: Board) -> None:
    from tvm import rpc

    from targets.tvm_rpc import unpack_messages

    remote = rpc.connect("127.0.0.1", here.port, key=KEY)
    came = unpack_messages(bytes(remote.get_function("fleet.send")(b"head", b"payload")))
    while not came:
        came = unpack_messages(bytes(remote.get_function("fleet.receive")(5.0)))
    assert came == [(b"head", b"payload")]


def test_a_session_that_dies_is_said(here: Board) -> None:
    async def exchange() -> FleetError:
        link = RpcLink("127.0.0.1", here.port, KEY)
        await link.open()
        await link.send(b"x")
        assert await link.receive() == (b"x", b"")
        (session,) = here.sessions()
        session.send_signal(signal.SIGKILL)
        with pytest.raises(FleetError) as raised:
            await link.receive()
        with pytest.raises(FleetError) as again:
            await link.receive()
        assert again.value.code == raised.value.code
        with pytest.raises(FleetError):
            await link.send(b"x")
        await link.close()
        return raised.value

    error = asyncio.run(asyncio.wait_for(exchange(), 60))
    assert error.code == "connection-lost" and "gone" in error.message


def opened(link: RpcLink) -> FleetError:
    """The error that opening ``link`` gives."""

    async def attempt() -> FleetError:
        with pytest.raises(FleetError) as raised:
            await link.open()
        await link.close()
        return raised.value

    return asyncio.run(asyncio.wait_for(attempt(), 60))


def test_a_wrong_key_is_said(here: Board) -> None:
    error = opened(RpcLink("127.0.0.1", here.port, "another"))
    assert error.code == "wrong-key" and "'another'" in error.message and error.hint


def test_nobody_listening_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = opened(RpcLink("127.0.0.1", port, KEY))
    assert error.code == "unreachable" and f"127.0.0.1:{port}" in error.message


def test_tvms_own_server_is_said_to_be_no_agent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--key", KEY]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        eventually(lambda: "bind to" in (tmp_path / "log").read_text(), "TVM's server listens", 60)
        error = opened(RpcLink("127.0.0.1", port, KEY))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert error.code == "unreachable" and "not a fleet agent's" in error.message


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that listens and treats one connection as ``answer`` does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                answer(peer)
                # Closing with something unread would be a reset, which may overtake the answer.
                peer.shutdown(socket.SHUT_WR)
                peer.settimeout(10)
                while peer.recv(4096):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


def shake(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(struct.pack("<ii", SUCCESS, 8) + b"server:k")
    peer.recv(100)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda peer: peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "tvm-rpc"),
        (lambda peer: peer.sendall(struct.pack("<ii", MAGIC, 1 << 30)), "tvm-rpc"),
        (lambda peer: peer.recv(100), "unreachable"),
        (lambda peer: (shake(peer), peer.sendall(struct.pack("<Q", 1 << 40))), "tvm-rpc"),
        (lambda peer: (shake(peer), peer.sendall(struct.pack("<Qii", 8, 4, 1 << 30))), "tvm-rpc"),
        (lambda peer: (shake(peer), peer.sendall(struct.pack("<Qiiiq", 20, 4, 1, 70, 0))), "tvm-rpc"),
        (lambda peer: (shake(peer), peer.sendall(struct.pack("<Qii", 100, 4, 1))), "unreachable"),
    ],
    ids=["ssh", "long-key", "silent", "huge-packet", "many-values", "unknown-kind", "cut"],
)
def test_a_server_that_talks_nonsense_is_an_error_in_words(answer: Callable[[socket.socket], None], code: str) -> None:
    with server(answer) as port:
        error = opened(RpcLink("127.0.0.1", port, KEY))
    assert error.code == code and error.message
