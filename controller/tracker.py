"""A TVM tracker on this machine: started, asked and stopped by ``fleet tracker``.

It runs TVM's own tracker as a daemon process; its address, process and log lie below ``HOME/tracker``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from controller.home import Home
from targets.base import FleetError
from targets.tvm_rpc import TrackerCode, TrackerConnection, WireError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9190
START_DEADLINE = 60.0
STOP_DEADLINE = 5.0


class TrackedDevice(msgspec.Struct, kw_only=True):
    """One registered device. ``device`` is its name, empty for servers that are not fleet's."""

    key: str
    address: str
    device: str = ""


class TrackedKey(msgspec.Struct, kw_only=True):
    """One key: devices that can be had now, and clients that wait for one."""

    key: str
    free: int
    waiting: int


class TrackerReport(msgspec.Struct, kw_only=True):
    """What ``fleet tracker status`` says. Without ``running`` only ``log`` means something."""

    running: bool
    host: str = ""
    port: int = 0
    pid: int = 0
    log: str = ""
    devices: list[TrackedDevice] = []
    keys: list[TrackedKey] = []


class _Record(msgspec.Struct, kw_only=True):
    """``tracker.json``. ``created`` tells the process from a later one with the same id."""

    pid: int
    created: float
    host: str
    port: int


def start(home: Home, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> TrackerReport:
    """Start a tracker, or find it running. ``port`` 0 takes a free one.

    Raises:
        FleetError: ``tracker-running`` when it runs elsewhere, ``tracker-failed`` with the log's last words.
    """
    folder = _folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        record = _running(folder)
        if record is not None:
            if (host, port or record.port) != (record.host, record.port):
                raise FleetError(
                    f"a tracker runs already, on {record.host}:{record.port}",
                    code="tracker-running",
                    hint="stop it first: fleet tracker stop",
                )
        else:
            record = _launch(folder, host, port or _free_port(host))
    return _report(folder, record)


def stop(home: Home) -> bool:
    """Stop the tracker. Returns whether one was running."""
    import psutil

    folder = _folder(home)
    if not folder.is_dir():
        return False
    with _locked(folder):
        record = _running(folder)
        if record is not None:
            process = psutil.Process(record.pid)
            process.terminate()
            try:
                process.wait(STOP_DEADLINE)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_DEADLINE)
        (folder / "tracker.json").unlink(missing_ok=True)
    return record is not None


def status(home: Home) -> TrackerReport:
    """Whether a tracker runs, and what is registered with it."""
    folder = _folder(home)
    record = _running(folder)
    return TrackerReport(running=False, log=str(folder / "tracker.log")) if record is None else _report(folder, record)


def summary(host: str, port: int) -> tuple[list[TrackedDevice], list[TrackedKey]]:
    """What is registered with any TVM tracker. Raises :class:`FleetError` (code ``unreachable``)."""
    try:
        return _parse(asyncio.run(_ask(host, port)))
    except (OSError, WireError) as error:
        raise FleetError(
            f"the TVM tracker at {host}:{port} does not answer: {error}",
            code="unreachable",
            hint="is it running? fleet tracker status, fleet tracker start",
        ) from None


# --- The process --------------------------------------------------------------------------------


def _folder(home: Home) -> Path:
    return home.state / "tracker"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(folder: Path) -> _Record | None:
    import psutil

    try:
        record = msgspec.json.decode((folder / "tracker.json").read_bytes(), type=_Record)
        process = psutil.Process(record.pid)
        alive = process.create_time() == record.created and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, msgspec.MsgspecError, psutil.Error):
        return None
    return record if alive else None


def _launch(folder: Path, host: str, port: int) -> _Record:
    import psutil

    log = folder / "tracker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "controller.tracker_server", host, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # It only moves JSON: TVM's runtime is enough and does not take the compiler's memory.
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
            start_new_session=True,
        )
    try:
        _await_answer(process, host, port, log)
        record = _Record(pid=process.pid, created=psutil.Process(process.pid).create_time(), host=host, port=port)
        temporary = folder / ".tracker.json"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(folder / "tracker.json")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return record


def _await_answer(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while True:
        if process.poll() is not None:
            words = log.read_text(errors="replace").strip().splitlines()
            raise FleetError(
                f"the tracker does not start: {words[-1] if words else f'exit status {process.returncode}'}",
                code="tracker-failed",
                hint=f"is port {port} free on {host}? all of its words are in {log}",
            )
        try:
            asyncio.run(_ask(host, port))
            return
        except (OSError, WireError) as error:
            if time.monotonic() > deadline:
                raise FleetError(
                    f"the tracker does not answer within {START_DEADLINE:g} s: {error}", code="tracker-failed"
                ) from None
        time.sleep(0.05)


def _free_port(host: str) -> int:
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise FleetError(f"a tracker cannot listen on {host}: {error}", code="tracker-failed") from None


# --- What it says -------------------------------------------------------------------------------


async def _ask(host: str, port: int) -> object:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = TrackerConnection(host, port)
    try:
        await connection.open()
        return await connection.call([TrackerCode.SUMMARY])
    finally:
        connection.close()


def _report(folder: Path, record: _Record) -> TrackerReport:
    devices, keys = summary(record.host, record.port)
    return TrackerReport(
        running=True,
        host=record.host,
        port=record.port,
        pid=record.pid,
        log=str(folder / "tracker.log"),
        devices=devices,
        keys=keys,
    )


class _Server(msgspec.Struct):
    key: str
    addr: tuple[str, int]
    device: str = ""


class _Queue(msgspec.Struct):
    free: int
    pending: int


class _Summary(msgspec.Struct):
    queue_info: dict[str, _Queue]
    server_info: list[_Server]


def _parse(answer: object) -> tuple[list[TrackedDevice], list[TrackedKey]]:
    try:
        code, found = msgspec.convert(answer, type=tuple[int, _Summary])
    except msgspec.ValidationError as error:
        raise WireError(f"its summary cannot be understood: {error}") from None
    if code != TrackerCode.SUCCESS:
        raise WireError(f"it refuses to say what is registered (code {code})")
    devices = [
        TrackedDevice(key=s.key.removeprefix("server:"), address=f"{s.addr[0]}:{s.addr[1]}", device=s.device)
        for s in found.server_info
    ]
    keys = [TrackedKey(key=key, free=queue.free, waiting=queue.pending) for key, queue in found.queue_info.items()]
    return sorted(devices, key=lambda d: (d.key, d.device, d.address)), sorted(keys, key=lambda k: k.key)
