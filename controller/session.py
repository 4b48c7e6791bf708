"""A device in use: its connection and, if one was asked for, its lease; both come back after a cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType

from agent import protocol as p
from controller.carriers import connect
from controller.connection import Connection, OnEvent
from controller.events import Listener, Message
from controller.inventory import Device
from controller.liveness import Backoff
from targets.base import FleetError
from targets.defaults import LEASE_RENEW_INTERVAL, OFFLINE_AFTER, REQUEST_TIMEOUT
from targets.keys import Keys

#: Failures after which the same request may well succeed over a new connection.
CUT = ("connection-lost", "timeout", "no-session")
#: Longest that giving back a lease may hold up the end of a command.
_GOODBYE = 5.0


class Session:
    """Used as ``async with``. Entering connects, and takes the lease if one is wanted; leaving gives it back.

    Raises FleetError ``unreachable``, ``wrong-key``, ``leased``, ``protocol-version``.
    """

    def __init__(
        self,
        device: Device,
        keys: Keys,
        *,
        holder: str,
        lease: bool = False,
        lease_wait: float = 0.0,
        listener: Listener,
        on_event: OnEvent | None = None,
    ) -> None:
        """``lease_wait``: seconds to queue for a device that somebody else holds."""
        self.device = device
        #: ``socket``, ``rpc`` or ``tracker``.
        self.carrier = ""
        self.connection: Connection
        #: Of the lease; empty without one.
        self.token = ""
        self._keys, self._holder = keys, holder
        self._wants_lease, self._lease_wait = lease, lease_wait
        self._listener, self._on_event = listener, on_event
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Session:
        await self._connect()
        try:
            if self._wants_lease:
                await self._queue()
                self._renewing = asyncio.create_task(self._renew())
        except BaseException:
            await self.connection.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self.token:
            # When that fails, the lease runs out by itself.
            with contextlib.suppress(FleetError):
                await self.connection.request(p.ReleaseLease(token=self.token), p.Done, timeout=_GOODBYE)
        await self.connection.close()

    async def restore(self, patience: float = OFFLINE_AFTER) -> None:
        """Connect anew after a cut, trying for ``patience`` seconds. Raises the last failure when that is over."""
        self._listener(Message(self.device.name, "connection lost; trying to get it back", "warning"))
        await self.connection.close()
        backoff = Backoff()
        deadline = time.monotonic() + patience
        while True:
            try:
                await self._connect()
                if self._wants_lease:
                    await self._acquire(REQUEST_TIMEOUT)
                break
            except FleetError as error:
                pause = backoff.next()
                # An agent that is just ending accepts a connection and breaks it off, as one with another key does;
                # this one had the right key a moment ago.
                if error.code not in (*CUT, "unreachable", "wrong-key") or time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
        self._listener(Message(self.device.name, "connected again"))

    async def settled(self, patience: float) -> p.Status:
        """The device's status once no run is in progress on it. Raises FleetError ``busy`` after ``patience``."""
        deadline = time.monotonic() + patience
        while True:
            status = await self.connection.request(p.GetStatus(), p.Status)
            if status.state not in ("activating", "benching"):
                return status
            if time.monotonic() > deadline:
                raise FleetError(f"{self.device.name} is still {status.state}", code="busy")
            await asyncio.sleep(0.2)

    async def _connect(self) -> None:
        self.connection, self.carrier = await connect(
            self.device, self._keys, client=self._holder, on_event=self._on_event
        )

    async def _queue(self) -> None:
        """Take the lease, and say so if that means to wait."""
        try:
            await self._acquire(0.0)
        except FleetError as error:
            if error.code != "leased" or not self._lease_wait:
                raise
            self._listener(Message(self.device.name, f"waiting: {error.message}"))
            await self._acquire(self._lease_wait)

    async def _acquire(self, wait: float) -> None:
        # With the device's name: one board that is in the inventory twice is not used by both entries at once.
        asked = p.AcquireLease(holder=f"{self._holder}/{self.device.name}", wait=wait)
        lease = await self.connection.request(asked, p.Lease, timeout=wait + REQUEST_TIMEOUT)
        self.token = lease.token

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_RENEW_INTERVAL)
            try:
                await self.connection.request(p.RenewLease(token=self.token), p.Lease)
            except FleetError as error:
                # A lost connection is for whoever uses it to restore; a lost lease is asked for again.
                if error.code == "no-lease":
                    with contextlib.suppress(FleetError):
                        await self._acquire(0.0)
