"""The listener's side of a TVM RPC session: starts its process, watches it, and ends all that came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE, STDOUT, Process

import msgspec
import psutil

from agent.rpc_session import Order
from targets.base import FleetError
from targets.cores import usable
from targets.defaults import RPC_SESSION_DEADLINE, WORKER_START_DEADLINE
from targets.tvm_rpc import exception
from targets.waiting import within

log = logging.getLogger(__name__)

IDLE_CHECK_INTERVAL = 60.0
#: Lines of a session's output that go to the agent's log.
MAX_OUTPUT_LINES = 200
#: A client that lost its power is noticed after 40 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))


class SessionProcess:
    """One session for the client behind ``connection``; ``timeout`` is what the client asked for, 0 for none."""

    def __init__(self, connection: socket.socket, peer: str, timeout: float) -> None:
        self._connection = connection
        self._peer = peer
        self._timeout = timeout
        self._lines = 0

    async def run(self, order: Order, greeting: bytes) -> None:
        """From start to end. The client gets ``greeting`` once the session is ready to serve it.

        Raises :class:`FleetError` (code ``rpc-session``) when the session cannot start.
        """
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            self._connection.setsockopt(socket.IPPROTO_TCP, option, value)
        process = await self._spawn(order)
        output: asyncio.Task[None] | None = None
        try:
            await self._started(process, order)
            send_now(self._connection, greeting)
            log.info("TVM RPC: session %d for %s", process.pid, self._peer)
            output = asyncio.create_task(self._log_output(process))
            reason = await self._until_end(process)
        finally:
            # The whole group: the client may have started processes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if output is not None:
                await asyncio.wait({output}, timeout=1)
                output.cancel()
        if reason:
            log.warning("TVM RPC: session %d ended: %s", process.pid, reason)
            # TVM's clients know this prefix and raise an error of its own kind.
            send_now(self._connection, exception(f"RPCSessionTimeoutError: {reason}"))
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        elif process.returncode:
            log.warning("TVM RPC: session %d of %s %s", process.pid, self._peer, _how_it_ended(process.returncode))
        else:
            log.info("TVM RPC: session %d ended", process.pid)

    async def _spawn(self, order: Order) -> Process:
        cores = usable()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent.rpc_session",
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            pass_fds=(order.fd,),
            cwd=order.workdir,
            # On its own TVM takes half of what a machine shows as processors, and its first ones.
            env={"TVM_NUM_THREADS": str(cores.default), "TVM_BIND_THREADS": str(int(cores.whole)), **os.environ},
            start_new_session=True,
        )
        assert process.stdin is not None
        # The one-time secret goes where no other user of the device can read it.
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        return process

    async def _started(self, process: Process, order: Order) -> None:
        assert process.stdout is not None
        said: list[str] = []
        try:
            while not (said and said[-1].startswith("ready")):
                line = await within(WORKER_START_DEADLINE, process.stdout.readline())
                if not line:
                    raise FleetError(
                        f"a TVM RPC session does not start: {said[-1] if said else 'it says nothing'}",
                        code="rpc-session",
                        hint="is apache-tvm installed in the agent's environment?",
                    )
                said.append(line.decode(errors="replace").rstrip())
        except asyncio.TimeoutError:
            raise FleetError(
                f"a TVM RPC session does not start within {WORKER_START_DEADLINE:g} s", code="rpc-session"
            ) from None

    async def _until_end(self, process: Process) -> str:
        """Wait. Returns why the session is to be ended, or nothing when it has ended itself."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout if self._timeout else float("inf")
        ended = asyncio.ensure_future(process.wait())
        try:
            last_moved, last_cpu = loop.time(), -1.0
            while True:
                now = loop.time()
                cpu = _cpu_seconds(process.pid)
                if cpu - last_cpu > 0.05 or _seconds_since_data(self._connection) < IDLE_CHECK_INTERVAL:
                    last_moved = now
                last_cpu = cpu
                if now >= deadline:
                    return f'Your {self._timeout:g}s session has expired, try to increase the "session_timeout" value.'
                if now - last_moved > RPC_SESSION_DEADLINE:
                    return f"nothing happened in it for {RPC_SESSION_DEADLINE:g} s"
                await asyncio.wait({ended}, timeout=min(IDLE_CHECK_INTERVAL, deadline - now))
                if ended.done():
                    return ""
        finally:
            ended.cancel()

    async def _log_output(self, process: Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than a line should be: the reader has dropped it
                continue
            if not line:
                return
            self._lines += 1
            if self._lines <= MAX_OUTPUT_LINES:
                log.info("[rpc %d] %s", process.pid, line.decode(errors="replace").rstrip())
            elif self._lines == MAX_OUTPUT_LINES + 1:
                log.info("[rpc %d] … no more of its output is kept", process.pid)


def send_now(connection: socket.socket, data: bytes) -> None:
    """Send a few bytes, which fit the socket's buffer, or give up."""
    with contextlib.suppress(OSError):
        connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _seconds_since_data(connection: socket.socket) -> float:
    """How long ago the connection last carried data either way, as the kernel knows it (``struct tcp_info``)."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        sent, _, received = struct.unpack_from("=III", info, 44)
    except (OSError, struct.error):
        return float("inf")
    return float(min(sent, received)) / 1000


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
