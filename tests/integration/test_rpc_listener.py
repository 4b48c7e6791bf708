"""The TVM RPC listener as TVM's own client sees it, and what happens to it when things go wrong."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rpc_fixtures import KEY, Board, add_one_library, board, eventually, link

import agent.rpc
import agent.rpc_process
from targets.tvm_rpc import MAGIC, MISMATCH


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_one_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose function ``crash`` writes through a null pointer."""
    folder = tmp_path_factory.mktemp("crashing")
    source = folder / "crash.c"
    source.write_text("int __tvm_ffi_crash(void *s, void *a, int n, void *r) { *(volatile int *)0 = 1; return 0; }\n")
    target = folder / "crash.so"
    # -O0: a compiler that optimises may make another trap of it.
    subprocess.run(
        [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-O0",
            "-shared",
            "-fPIC",
            "-fno-sanitize=all",
            "-o",
            str(target),
            str(source),
        ],
        check=True,
    )
    return target


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Board]:
    with board(tmp_path) as made:
        yield made


def connect(made: Board, **options: Any) -> Any:
    from tvm import rpc

    return rpc.connect("127.0.0.1", made.port, key=KEY, **options)


def check_add_one(remote: Any, library: Path) -> None:
    import tvm

    remote.upload(str(library))
    function = remote.load_module(library.name)["add_one"]
    x = tvm.runtime.tensor(np.arange(1024, dtype="float32"), remote.cpu(0))
    y = tvm.runtime.empty((1024,), "float32", remote.cpu(0))
    function(x, y)
    np.testing.assert_array_equal(y.numpy(), np.arange(1024, dtype="float32") + 1)


def test_a_stock_client_uploads_loads_runs_and_measures(here: Board, library: Path) -> None:
    import tvm

    remote = connect(here)
    check_add_one(remote, library)
    assert remote.listdir(".") == library.name
    assert remote.download(library.name) == library.read_bytes()
    function = remote.load_module(library.name)
    x = tvm.runtime.empty((1024,), "float32", remote.cpu(0))
    timing = function.time_evaluator("add_one", remote.cpu(0), number=10, repeat=3)(x, x)
    assert len(timing.results) == 3 and 0 < timing.mean < 1
    remote.remove(library.name)
    assert remote.listdir(".") == ""
    (workdir,) = (here.root / "rpc").iterdir()
    del function, x, remote
    eventually(lambda: not workdir.exists(), "the session's files are removed")
    assert here.granted == here.revoked and len(here.granted) == 1


def test_an_archive_of_objects_is_linked_on_the_device(here: Board, tmp_path: Path) -> None:
    archive = add_one_library(tmp_path, ".tar")
    remote = connect(here)
    check_add_one(remote, archive)
    linked = remote.download_linked_module(archive.name)
    assert bytes(linked[:4]) == b"\x7fELF"


def test_a_stock_client_runs_a_relax_virtual_machine(here: Board, tmp_path: Path) -> None:
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    path = tmp_path / "relu.so"
    tvm.compile(builder.get(), target="llvm").export_library(str(path), fcompile=link)
    remote = connect(here)
    remote.upload(str(path))
    device = remote.cpu(0)
    machine = relax.VirtualMachine(remote.load_module("relu.so"), device)
    value = np.array([[-1, 2, -3], [4, -5, 6]], dtype="float32")
    machine.set_input("main", tvm.runtime.tensor(value, device))
    machine.invoke_stateful("main")
    np.testing.assert_array_equal(machine.get_outputs("main").numpy(), np.maximum(value, 0))
    timing = machine.time_evaluator("invoke_stateful", device, number=2, repeat=2)("main")
    assert timing.mean > 0


def test_a_wrong_key_is_refused_and_the_next_client_served(here: Board, library: Path) -> None:
    from tvm import rpc

    with pytest.raises(Exception, match="cannot find server that matches key"):
        rpc.connect("127.0.0.1", here.port, key="another")
    assert not here.granted
    check_add_one(connect(here), library)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<ii", MAGIC, -1),
        struct.pack("<ii", MAGIC, 1 << 30),
        struct.pack("<ii", MAGIC, 4) + b"\xff\xff\xff\xff",
        struct.pack("<ii", MAGIC, 4) + b"    ",
        struct.pack("<ii", MAGIC, 12) + b"server:board",
        struct.pack("<ii", MAGIC, 23) + b"client:board -timeout=x",
        struct.pack("<ii", MAGIC, 25) + b"client:board -timeout=nan",
    ],
)
def test_garbage_in_a_handshake_closes_that_connection_only(here: Board, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", here.port), timeout=10) as peer:
        peer.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(16) == b""
    here.call(here.listener.probe())


def test_silent_connections_keep_nobody_out(here: Board, library: Path) -> None:
    silent = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(8)]
    try:
        check_add_one(connect(here), library)
    finally:
        for peer in silent:
            peer.close()


def test_a_session_that_crashes_takes_itself_only(here: Board, library: Path, crashing: Path) -> None:
    remote = connect(here)
    remote.upload(str(crashing))
    crash = remote.load_module(crashing.name)["crash"]
    with pytest.raises(Exception, match=r"kShutdown|[Cc]onnection|[Cc]hannel"):
        crash()
    eventually(lambda: here.granted == here.revoked, "the crashed session's key is revoked")
    check_add_one(connect(here), library)


def test_a_killed_session_leaves_nothing_behind(here: Board, library: Path) -> None:
    remote = connect(here)
    remote.upload(str(library))
    (session,) = here.sessions()
    os.kill(session.pid, signal.SIGKILL)
    eventually(lambda: not any((here.root / "rpc").iterdir()), "the session's files are removed")
    assert here.granted == here.revoked
    check_add_one(connect(here), library)


def test_a_session_ends_after_the_time_its_client_asked_for(here: Board) -> None:
    remote = connect(here, session_timeout=1)
    # Held to the end: TVM's client frees a remote function with a blocking call that keeps the interpreter's lock,
    # and the listener, a thread of this process, needs that lock to close the connection.
    receive = remote.get_function("fleet.receive")
    started = time.monotonic()
    # Waits for messages that never come, far longer than the session may last.
    with pytest.raises(Exception, match="1s session has expired"):
        receive(60.0)
    assert 0.5 < time.monotonic() - started < 10
    eventually(lambda: here.granted == here.revoked, "the session is gone, and its connection shut down")
    assert not here.sessions()


def test_a_forgotten_session_is_ended(here: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.rpc_process, "IDLE_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(agent.rpc_process, "RPC_SESSION_DEADLINE", 1.0)
    remote = connect(here)
    eventually(lambda: not here.sessions(), "the session that nobody uses is gone")
    with pytest.raises(Exception, match="nothing happened in it"):
        remote.listdir(".")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/fleet-escaped", "a/../../escaped", "..", "link/escaped"])
def test_an_upload_cannot_leave_its_directory(here: Board, tmp_path: Path, name: str) -> None:
    remote = connect(here)
    (workdir,) = (here.root / "rpc").iterdir()
    (workdir / "link").symlink_to(tmp_path)
    before = set(tmp_path.rglob("*"))
    for function in ("upload", "download", "load_module", "remove", "download_linked_module"):
        arguments = (name, bytearray(b"x")) if function == "upload" else (name,)
        with pytest.raises(Exception, match="not a file name inside"):
            remote.get_function(f"tvm.rpc.server.{function}")(*arguments)
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/fleet-escaped").exists()


@pytest.mark.parametrize("name", ["", ".", "a/.."])
def test_the_directory_itself_is_not_removed(here: Board, library: Path, name: str) -> None:
    remote = connect(here)
    remote.remove(name)
    check_add_one(remote, library)


def test_sessions_are_bounded_and_the_next_client_waits_its_turn(tmp_path: Path, library: Path) -> None:
    with board(tmp_path, max_sessions=1) as made:
        first = connect(made)
        done = threading.Event()

        def second() -> None:
            check_add_one(connect(made), library)
            done.set()

        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()
        assert not done.wait(1)
        assert len(made.sessions()) == 1
        del first
        assert done.wait(30)
        waiting.join()


def test_a_session_that_wants_too_much_memory_is_refused_it(here: Board, library: Path) -> None:
    import tvm

    remote = connect(here)
    with pytest.raises(Exception, match="bad_alloc"):
        tvm.runtime.empty((5 << 28,), "float32", remote.cpu(0))
    del remote
    check_add_one(connect(here), library)


def test_a_listener_that_lost_its_socket_listens_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.rpc, "PROBE_INTERVAL", 0.2)
    with board(tmp_path) as made:
        port = made.port

        async def lose() -> None:
            assert made.listener._socket is not None
            made.listener._socket.shutdown(socket.SHUT_RDWR)

        made.call(lose())

        def answers() -> bool:
            try:
                made.call(made.listener.probe())
            except (OSError, asyncio.TimeoutError):
                return False
            return True

        eventually(answers, "it answers again")
        assert made.port == port
        connect(made).listdir(".")


def test_a_taken_port_is_said_in_words(here: Board, tmp_path: Path) -> None:
    with (
        pytest.raises(agent.rpc.FleetError, match=f"cannot listen on 127.0.0.1:{here.port}"),
        board(tmp_path / "second", port=here.port),
    ):
        pass


def test_a_mismatch_is_answered_as_tvm_does(here: Board) -> None:
    with socket.create_connection(("127.0.0.1", here.port), timeout=10) as peer:
        peer.sendall(struct.pack("<ii", MAGIC, 12) + b"client:wrong")
        assert peer.recv(4) == struct.pack("<i", MISMATCH)
        assert peer.recv(4) == b""
