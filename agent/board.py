"""The device itself, as the agent sees it: who may use its accelerator now, and what its sensors say."""

from __future__ import annotations

import asyncio
import logging

from agent.telemetry import Telemetry
from targets import base
from targets.defaults import TELEMETRY_INTERVAL

log = logging.getLogger("agent.board")


class Board:
    def __init__(self, target: str, simulated: bool) -> None:
        self._target = target
        self._simulated = simulated
        self._device: base.DeviceHalf | None = None
        self._own_readings = True
        self._read_at = float("-inf")
        self._readings: dict[str, float] = {}
        self._reading = asyncio.Lock()
        self.telemetry = Telemetry()
        #: Held by whoever uses the accelerator, so that two never do at once.
        self.exclusive = asyncio.Lock()

    async def read(self) -> dict[str, float]:
        """All readings, at most `TELEMETRY_INTERVAL` old. Sensors can be slow: they are read in a thread."""
        clock = asyncio.get_running_loop().time
        async with self._reading:
            if clock() - self._read_at >= TELEMETRY_INTERVAL * 0.9:
                self._readings = await asyncio.to_thread(self._read)
                self._read_at = clock()
        return dict(self._readings)

    def _read(self) -> dict[str, float]:
        readings = self.telemetry.read()
        if self._own_readings:
            try:
                if self._device is None:
                    self._device = base.device_half(self._target, self._simulated)
                readings.update(self._device.telemetry())
            except Exception:
                # A plug-in's trouble is said once, and is not the agent's.
                self._own_readings = False
                log.exception("target '%s' cannot read its own sensors; they are left out", self._target)
        return readings
