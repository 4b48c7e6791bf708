"""One session with one agent: requests and their replies, events, and the heartbeat that finds a dead peer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent import protocol as p
from controller.links.base import Link
from controller.printable import printable
from targets.base import FleetError
from targets.defaults import HEARTBEAT_INTERVAL, OFFLINE_AFTER, REQUEST_TIMEOUT
from targets.waiting import done_within, within

_EVENTS = (p.Stage, p.Samples, p.Telemetry, p.LogLine, p.Note)
#: How long a run that is being cancelled may take to end before we stop waiting for it.
_CANCEL_PATIENCE = 10.0
_SEND_PATIENCE = 1.0
#: Longest that a device's words may be.
_MAX_WORDS = 4000

OnEvent = Callable[[p.Message], None]
M = TypeVar("M", bound=p.Message)


@dataclass(slots=True)
class _Pending:
    reply: asyncio.Future[tuple[p.Message, bytes]]
    on_event: OnEvent | None


class Connection:
    """An open session. Every error is a FleetError; after ``connection-lost`` it is of no more use."""

    def __init__(self, link: Link, *, name: str, on_event: OnEvent | None = None) -> None:
        """``on_event`` gets what was subscribed to."""
        self.link = link
        self.name = name
        self.welcome: p.Welcome
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: FleetError | None = None
        self._heard = time.monotonic()
        self._said = 0.0

    @classmethod
    async def open(cls, link: Link, *, name: str, client: str, on_event: OnEvent | None = None) -> Connection:
        """Connect and greet. Raises FleetError ``unreachable``, ``wrong-key``, ``protocol-version``, …"""
        await link.open()
        self = cls(link, name=name, on_event=on_event)
        self._tasks.append(asyncio.create_task(self._read()))
        try:
            self.welcome = await self.request(p.Hello(client=client), p.Welcome)
            p.check_version(self.welcome.major, self.welcome.minor, f"the agent of {name}")
            self._tasks.append(asyncio.create_task(self._beat()))
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def heard(self) -> float:
        """When something last came from the agent, on the monotonic clock."""
        return self._heard

    async def request(
        self, message: p.Message, reply: type[M], payload: bytes = b"", *, timeout: float | None = REQUEST_TIMEOUT
    ) -> M:
        """Send a request and return its reply, which must be a ``reply``. Raises FleetError with the agent's words."""
        return (await self.exchange(message, reply, payload, timeout=timeout))[0]

    async def exchange(
        self,
        message: p.Message,
        reply: type[M],
        payload: bytes = b"",
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        on_event: OnEvent | None = None,
    ) -> tuple[M, bytes]:
        """As `request`, with the reply's payload. ``on_event`` gets the events that belong to this request.

        Without a ``timeout`` it lasts as long as the agent gives signs of life. When it is given up, by a
        cancellation or the timeout, the agent is told to stop what it started.
        """
        message.id = next(self._numbers)
        future = await self._send(message, payload, on_event)
        try:
            answered = await done_within(timeout, future)
            if not answered:
                await self._cancel(message.id, future, patience=0.0)
        except asyncio.CancelledError:
            await self._cancel(message.id, future, patience=_CANCEL_PATIENCE)
            raise
        finally:
            self._pending.pop(message.id, None)
        if not answered:
            what = type(message).__struct_config__.tag
            raise FleetError(
                f"{self.name} did not answer '{what}' within {timeout:.0f} s",
                code="timeout",
                hint="its log may say why: `fleet logs`",
            )
        answer, data = future.result()
        if not isinstance(answer, reply):
            raise p.ProtocolError(
                f"{self.name} answered '{type(answer).__name__}' where '{reply.__name__}' was expected"
            )
        return answer, data

    async def start(self, message: p.Message, payload: bytes = b"") -> asyncio.Future[tuple[p.Message, bytes]]:
        """Send a request without waiting; the future gives its reply. For many requests in flight."""
        message.id = number = next(self._numbers)
        future = await self._send(message, payload, None)
        future.add_done_callback(lambda _: self._pending.pop(number, None))
        return future

    async def close(self) -> None:
        self._fail(FleetError(f"the connection to {self.name} was closed", code="connection-lost"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()

    # --- Inside ---------------------------------------------------------------------------------

    async def _send(
        self, message: p.Message, payload: bytes, on_event: OnEvent | None
    ) -> asyncio.Future[tuple[p.Message, bytes]]:
        if self._lost is not None:
            raise self._lost
        future: asyncio.Future[tuple[p.Message, bytes]] = asyncio.get_running_loop().create_future()
        self._pending[message.id] = _Pending(future, on_event)
        self._said = time.monotonic()
        try:
            await self.link.send(p.encode(message), payload)
        except BaseException:
            self._pending.pop(message.id, None)
            raise
        return future

    async def _cancel(self, number: int, future: asyncio.Future[tuple[p.Message, bytes]], *, patience: float) -> None:
        """Tell the agent to stop a request, and give it a moment to do so."""
        with contextlib.suppress(FleetError, asyncio.TimeoutError):
            stop = p.Cancel(request=number)
            stop.id = next(self._numbers)
            await within(_SEND_PATIENCE, self.link.send(p.encode(stop)))
            if patience:
                await done_within(patience, future)
        # Nobody asks for it any more, so that a failure in it must not be reported as never retrieved.
        if future.done():
            future.exception()
        else:
            future.cancel()

    async def _read(self) -> None:
        try:
            while True:
                header, payload = await self.link.receive()
                self._heard = time.monotonic()
                message = p.decode_reply(header)
                pending = self._pending.get(message.id)
                if isinstance(message, _EVENTS):
                    listener = pending.on_event if pending else self._on_event
                    if listener is not None:
                        listener(message)
                elif pending is not None and not pending.reply.done():
                    if isinstance(message, p.Failure):
                        pending.reply.set_exception(
                            FleetError(
                                printable(message.message[:_MAX_WORDS]),
                                code=message.code,
                                hint=printable(message.hint[:_MAX_WORDS]),
                            )
                        )
                    else:
                        pending.reply.set_result((message, payload))
        except FleetError as error:
            self._fail(error)

    async def _beat(self) -> None:
        """Give signs of life while there is nothing else to say, and notice when the agent gives none."""
        while self._lost is None:
            now = time.monotonic()
            if now - self._heard > OFFLINE_AFTER:
                return self._fail(
                    FleetError(
                        f"{self.name} has given no sign of life for {now - self._heard:.0f} s", code="connection-lost"
                    )
                )
            if now - self._said >= HEARTBEAT_INTERVAL * 0.9:
                with contextlib.suppress(FleetError, asyncio.TimeoutError):
                    ping = await within(HEARTBEAT_INTERVAL, self.start(p.Ping()))
                    ping.add_done_callback(_ignore)
            await asyncio.sleep(HEARTBEAT_INTERVAL / 2)

    def _fail(self, error: FleetError) -> None:
        if self._lost is None:
            self._lost = error
        for pending in list(self._pending.values()):
            if not pending.reply.done():
                pending.reply.set_exception(self._lost)
                # Whoever waits gets it; when nobody does any more, that is no fault.
                pending.reply.exception()
        self._pending.clear()


def results_of(payload: bytes) -> list[p.RunResult]:
    """The bench results in a reply's payload. Raises ProtocolError."""
    try:
        return p.results_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise p.ProtocolError(f"cannot understand a device's results: {error}") from None


def _ignore(future: asyncio.Future[tuple[p.Message, bytes]]) -> None:
    if not future.cancelled():
        future.exception()


def narrow(answer: p.Message, kind: type[M]) -> M:
    """``answer`` as a ``kind``. Raises ProtocolError."""
    if not isinstance(answer, kind):
        raise p.ProtocolError(f"a device answered '{type(answer).__name__}' where '{kind.__name__}' was expected")
    return answer
