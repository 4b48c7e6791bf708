"""The agent's socket: one ZeroMQ ROUTER with CURVE, and what waits to be sent to whom.

What must arrive is queued for a reader that is slow, up to a bound after which the reader is given up; what may be lost
(`offer`) is dropped and counted as soon as the reader's pipe is full. So nobody's slowness is another's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from agent.admission import Admission
from targets.base import FleetError
from targets.defaults import HEARTBEAT_INTERVAL, MAX_MANIFEST, MAX_MESSAGE, SUSPECT_AFTER

log = logging.getLogger("agent.router")

#: Messages that wait in a peer's pipe before it counts as full.
_PIPE = 100
#: Bytes queued for one reader after which it is given up.
_MAX_BACKLOG = 64 << 20
_DOMAIN = "fleet"
_RETRY_FIRST, _RETRY_CAP = 0.01, 0.2
#: Frame size at which libzmq itself cuts the connection; what lies between is refused by name.
_MAX_FRAME = MAX_MESSAGE + MAX_MANIFEST

#: Session, client key, header and payload of a message that came.
OnMessage = Callable[[bytes, str, memoryview, memoryview], None]


@dataclass(slots=True)
class _Outbox:
    """What waits for one slow reader, and its bytes."""

    messages: deque[tuple[bytes, ...]] = field(default_factory=deque)
    size: int = 0


class Router:
    def __init__(
        self,
        *,
        public: bytes,
        secret: bytes,
        admission: Admission,
        on_message: OnMessage,
        on_gone: Callable[[bytes], None],
    ) -> None:
        """``on_gone`` is called for a session that was given up."""
        self._public, self._secret = public, secret
        self._admission = admission
        self._on_message, self._on_gone = on_message, on_gone
        self._context = zmq.asyncio.Context()
        self._authenticator = AsyncioAuthenticator(self._context)
        # Not a parameter everywhere: Debian 12 has pyzmq 24.
        self._authenticator.log = logging.getLogger("agent.zap")
        self._socket: zmq.asyncio.Socket | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._endpoint = ""
        self._outbox: dict[bytes, _Outbox] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._retry_after = _RETRY_FIRST
        self.dropped = 0

    @property
    def endpoint(self) -> str:
        """Where it listens, with the port that was picked."""
        return self._endpoint

    @property
    def port(self) -> int:
        return int(self._endpoint.rpartition(":")[2])

    async def start(self, listen: str) -> None:
        """Raises :class:`FleetError` (``cannot-listen``)."""
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_DOMAIN, credentials_provider=self._admission)
        try:
            self._open(listen)
        except zmq.ZMQError as error:
            await self.stop()
            raise FleetError(f"cannot listen on {listen}: {error}", code="cannot-listen") from None

    async def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._receiving is not None:
            self._receiving.cancel()
        if self._socket is not None:
            # What was answered last still goes out.
            self._socket.close(linger=1000)
            self._socket = None
        self._authenticator.stop()
        await asyncio.to_thread(self._context.term)

    async def cut(self) -> None:
        """Cut all connections and listen again on the same port, as a network that fails for a moment does."""
        assert self._socket is not None and self._receiving is not None
        self._receiving.cancel()
        self._socket.close(linger=0)
        for session in list(self._outbox):
            self.forget(session)
        deadline = asyncio.get_running_loop().time() + 5
        while True:
            try:
                # The old listener is closed by ZeroMQ's own thread, a moment later.
                return self._open(self._endpoint)
            except zmq.ZMQError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.02)

    def _open(self, listen: str) -> None:
        socket = self._context.socket(zmq.ROUTER)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.zap_domain = _DOMAIN.encode()
        socket.router_mandatory = True
        socket.sndhwm = socket.rcvhwm = _PIPE
        socket.maxmsgsize = _MAX_FRAME
        socket.ipv6 = "[" in listen
        # Finds peers whose machine has gone without closing; costs nothing while nobody is connected.
        socket.heartbeat_ivl = int(HEARTBEAT_INTERVAL * 1000)
        socket.heartbeat_timeout = int(SUSPECT_AFTER * 1000)
        try:
            socket.bind(f"{listen[:-1]}*" if listen.endswith(":0") else listen)
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        self._endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self._socket = socket
        self._receiving = asyncio.get_running_loop().create_task(self._receive(socket), name="router")

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart(copy=False)
            try:
                session = frames[0].bytes
                key = str(frames[0].get("User-Id") if len(frames) == 1 else frames[1].get("User-Id"))
                header = frames[1].buffer if len(frames) > 1 else memoryview(b"")
                payload = frames[2].buffer if len(frames) > 2 else memoryview(b"")
                self._on_message(session, key, header, payload if len(frames) < 4 else memoryview(b""))
            except Exception:
                log.exception("a message could not be handled")
            # A flood from one peer must not keep the loop from everything else.
            await asyncio.sleep(0)

    def send(self, session: bytes, header: bytes, payload: bytes = b"") -> None:
        """Send what must arrive; a reader that is too far behind is given up (`on_gone`)."""
        frames = (session, header, payload) if payload else (session, header)
        waiting = self._outbox.get(session)
        if waiting is None:
            if self._try(frames):
                return
            waiting = self._outbox[session] = _Outbox()
        waiting.messages.append(frames)
        waiting.size += sum(map(len, frames))
        if waiting.size > _MAX_BACKLOG:
            log.warning("a session does not read what it asked for: it is closed")
            self.forget(session)
            self._on_gone(session)
            return
        self._retry_later()

    def offer(self, session: bytes, header: bytes) -> None:
        """Send what may be lost: dropped and counted when the reader is behind."""
        if session in self._outbox or not self._try((session, header)):
            self.dropped += 1

    def forget(self, session: bytes) -> None:
        """Drop what waits for a session."""
        self._outbox.pop(session, None)

    def _try(self, frames: tuple[bytes, ...]) -> bool:
        """Whether the message is off the caller's hands: sent, or for nobody."""
        if self._socket is None:
            return True
        try:
            # With NOBLOCK this is done when it returns: sent, or refused.
            sent = cast("asyncio.Future[object]", self._socket.send_multipart(list(frames), flags=zmq.NOBLOCK))
            error = sent.exception()
        except zmq.ZMQError as raised:
            error = raised
        if error is None:
            return True
        # Any other error is a connection that has gone; its peer says hello anew when it comes back. Until its session
        # times out, what it started goes on: a bench that ends meanwhile is in the journal.
        return not isinstance(error, zmq.Again)

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(self._retry_after, self._drain)

    def _drain(self) -> None:
        self._retry = None
        progress = False
        for session, waiting in list(self._outbox.items()):
            while waiting.messages and self._try(waiting.messages[0]):
                progress = True
                waiting.size -= sum(map(len, waiting.messages.popleft()))
            if not waiting.messages:
                self.forget(session)
        self._retry_after = _RETRY_FIRST if progress else min(self._retry_after * 2, _RETRY_CAP)
        if self._outbox:
            self._retry_later()
