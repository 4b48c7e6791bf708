"""Registration of the device's TVM RPC listener with a TVM tracker.

A tracker hands out one-time *match keys*: whoever requested the device comes to the listener with the key that the
tracker gave him. One key is on offer while the device is free; while somebody uses it exclusively none is. A key that
was handed out but not used within a few seconds is replaced, for its holder may be gone.

Nothing a tracker does, or says, ends the agent: the registration is made again for ever, with jittered back-off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from targets.base import FleetError
from targets.defaults import RECONNECT_CAP, RECONNECT_FIRST, TRACKER_PING_INTERVAL
from targets.tvm_rpc import TrackerCode, TrackerConnection, WireError
from targets.waiting import within

log = logging.getLogger(__name__)

#: How long a key may be handed out but not used, as in TVM's own server.
UNUSED_KEY_TIMEOUT = 6.0


class Registration:
    """Keeps one listener registered; :meth:`run` never returns."""

    def __init__(self, tracker: tuple[str, int], *, key: str, port: int, address: str | None, device: str) -> None:
        """``address`` is where clients find the listener; ``None`` leaves it to what the tracker sees."""
        self._where = tracker
        self._key = key
        self._port = port
        self._address = address
        self._device = device
        self._match_key = ""
        self._exclusive = 0
        self._changed = asyncio.Event()
        #: Whether the tracker has this device at the moment.
        self.registered = False

    def take(self, key: str, *, shared: bool) -> bool:
        """Whether ``key`` is the one on offer. Taken exclusively, the device is offered again after :meth:`release`."""
        if not self._match_key or not secrets.compare_digest(key.encode(), self._match_key.encode()):
            return False
        self._match_key = ""
        if not shared:
            self._exclusive += 1
        self._changed.set()
        return True

    def release(self) -> None:
        """The session that took the device exclusively has ended."""
        self._exclusive -= 1
        self._changed.set()

    async def run(self) -> None:
        delay = RECONNECT_FIRST
        while True:
            connection = TrackerConnection(*self._where)
            try:
                await connection.open()
                await self._announce(connection)
                log.info("registered with the tracker at %s as '%s'", connection, self._key)
                self.registered = True
                delay = RECONNECT_FIRST
                await self._serve(connection)
            except (OSError, FleetError) as error:
                log.log(
                    logging.WARNING if self.registered or delay == RECONNECT_FIRST else logging.DEBUG,
                    "no registration with the tracker at %s: %s",
                    connection,
                    error or type(error).__name__,
                )
            finally:
                self.registered = False
                # Keys die with the connection they were put on.
                self._match_key = ""
                connection.close()
            await asyncio.sleep(random.uniform(0, delay))
            delay = min(2 * delay, RECONNECT_CAP)

    async def _announce(self, connection: TrackerConnection) -> None:
        info = {"key": f"server:{self._key}", "addr": [self._address, self._port], "device": self._device}
        await self._expect_success(connection, [TrackerCode.UPDATE_INFO, info])

    async def _serve(self, connection: TrackerConnection) -> None:
        unused_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            if not self._match_key and not self._exclusive:
                await self._offer(connection)
                unused_since = None
            try:
                await within(TRACKER_PING_INTERVAL, self._changed.wait())
                continue
            except asyncio.TimeoutError:
                pending = await connection.call([TrackerCode.PENDING_KEYS])
            if not isinstance(pending, list):
                raise WireError(f"the tracker at {connection} answers no list of keys")
            if not self._match_key or self._match_key in pending:
                unused_since = None
            elif unused_since is None:
                unused_since = loop.time()
            elif loop.time() - unused_since > UNUSED_KEY_TIMEOUT:
                log.info("a client of the tracker never came: offering the device again")
                self._match_key = ""

    async def _offer(self, connection: TrackerConnection) -> None:
        # The tracker finds the queue by what is before the last colon. Known before the tracker can hand it out.
        self._match_key = f"{self._key}:{secrets.token_hex(16)}"
        await self._expect_success(
            connection, [TrackerCode.PUT, self._key, [self._port, self._match_key], self._address]
        )

    async def _expect_success(self, connection: TrackerConnection, request: list[object]) -> None:
        answer = await connection.call(request)
        if answer != TrackerCode.SUCCESS:
            raise WireError(f"the tracker at {connection} refuses: {str(answer)[:200]}")
