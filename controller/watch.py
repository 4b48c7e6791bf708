"""Listening to devices for as long as somebody watches: readings, liveness, releases, log lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from agent import protocol as p
from controller.carriers import connect
from controller.connection import Connection, OnEvent
from controller.events import DeviceChanged, Message, Reading
from controller.inventory import Device
from controller.liveness import Backoff, Liveness
from controller.printable import printable
from targets.base import FleetError
from targets.defaults import HEARTBEAT_INTERVAL

if TYPE_CHECKING:
    from controller.fleet import Fleet

#: How often it is looked whether a device has become silent.
_TICK = 1.0
_GONE = ("unreachable", "connection-lost", "timeout")


async def watch(fleet: Fleet, selection: Sequence[Device]) -> None:
    """See `Fleet.watch`."""
    await asyncio.gather(*(_Watched(fleet, device).run() for device in selection))


class _Watched:
    """One device. What is told is always a change."""

    def __init__(self, fleet: Fleet, device: Device) -> None:
        self._fleet, self._device = fleet, device
        self._liveness: Liveness | None = None
        self._state = self._release = self._model = ""
        #: Why it cannot be talked to; empty while it can.
        self._failure = ""
        self._told: tuple[str, str, str] | None = None

    async def run(self) -> None:
        await asyncio.gather(self._keep_talking(), self._keep_looking())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._tell()

    async def _keep_talking(self) -> None:
        backoff = Backoff()
        while True:
            try:
                connection, _ = await connect(
                    self._device, self._fleet.keys, client=self._fleet.holder, on_event=self._on_event, start=False
                )
                try:
                    self._heard()
                    self._failed("", "connected")
                    backoff.reset()
                    await self._talk(connection)
                finally:
                    await connection.close()
            except FleetError as error:
                self._failed(error.code, error.message)
            await asyncio.sleep(backoff.next())

    async def _talk(self, connection: Connection) -> None:
        subscribed = False
        while True:
            status = await connection.request(p.GetStatus(), p.Status)
            self._heard()
            default = next((release for release in status.releases if release.slot == "default"), None)
            self._release = default.bundle if default else ""
            self._model = printable(default.model[:200]) if default else ""
            self._state = status.state
            self._tell()
            if not subscribed:
                await connection.request(p.Subscribe(telemetry=True), p.Done)
                subscribed = True
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    def _on_event(self, event: p.Message) -> None:
        self._heard()
        if isinstance(event, p.Telemetry):
            self._fleet.listener(Reading(self._device.name, event.values))
            self._state = event.state
            self._tell()
        elif isinstance(event, p.Note):
            self._fleet.listener(Message(self._device.name, printable(event.text[:1000]), event.level))

    def _heard(self) -> None:
        self._liveness = Liveness(time.monotonic())

    def _failed(self, code: str, words: str) -> None:
        if code != self._failure:
            before, self._failure = self._failure, code
            if code or before:
                self._fleet.listener(Message(self._device.name, words, "warning" if code else "info"))
        self._tell()

    def _tell(self) -> None:
        if self._failure and self._failure not in _GONE:
            state = self._failure
        elif self._liveness is None:
            state = "unreachable" if self._failure else ""
        else:
            alive = self._liveness.state(time.monotonic())
            state = self._state if alive == "online" else alive
        now = (state, self._release, self._model)
        if state and now != self._told:
            self._told = now
            self._fleet.listener(DeviceChanged(self._device.name, *now))


# --- Logs ---------------------------------------------------------------------------------------


async def logs(fleet: Fleet, selection: Sequence[Device], lines: int, follow: bool) -> AsyncIterator[tuple[str, str]]:
    """See `Fleet.logs`. A device that cannot be reached is told to the listener; if none can, its error is raised."""
    queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue(maxsize=1000)
    failures: list[FleetError] = []

    async def one(device: Device) -> None:
        try:
            if follow:
                await _follow(fleet, device, lines, queue)
            else:
                connection, _ = await connect(device, fleet.keys, client=fleet.holder)
                try:
                    found = await connection.request(p.GetLogs(lines=lines), p.Logs)
                finally:
                    await connection.close()
                for line in found.lines:
                    await queue.put((device.name, printable(line)))
        except FleetError as error:
            failures.append(error)
            fleet.listener(Message(device.name, error.message, "error"))

    async def everything() -> None:
        await asyncio.gather(*(one(device) for device in selection))
        await queue.put(None)

    work = asyncio.create_task(everything())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await work
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    if failures and len(failures) == len(selection):
        raise failures[0]


async def _follow(fleet: Fleet, device: Device, tail: int, queue: asyncio.Queue[tuple[str, str] | None]) -> None:
    """Log lines for ever. The first connection must succeed; later ones are made anew when they are cut."""
    backoff = Backoff()
    first = True
    while True:
        try:
            connection, _ = await connect(
                device, fleet.keys, client=fleet.holder, on_event=_line_listener(device.name, queue)
            )
            try:
                await connection.request(p.Subscribe(telemetry=False, logs=True, tail=tail), p.Done)
                first, tail = False, 0
                backoff.reset()
                while True:
                    await asyncio.sleep(HEARTBEAT_INTERVAL)
                    await connection.request(p.Ping(), p.Done)
            finally:
                await connection.close()
        except FleetError as error:
            if first or error.code not in _GONE:
                raise
            fleet.listener(Message(device.name, error.message, "warning"))
        await asyncio.sleep(backoff.next())


def _line_listener(name: str, queue: asyncio.Queue[tuple[str, str] | None]) -> OnEvent:
    dropped = 0

    def listen(event: p.Message) -> None:
        nonlocal dropped
        if not isinstance(event, p.LogLine):
            return
        try:
            if dropped:
                queue.put_nowait((name, f"({dropped} lines were left out: they came faster than they were read)"))
                dropped = 0
            queue.put_nowait((name, printable(event.line)))
        except asyncio.QueueFull:
            dropped += 1

    return listen
