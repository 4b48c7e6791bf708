"""What a board can tell about itself: load, memory, temperature, clocks, throttling, power.

Files are found once; a reading opens only those and takes well under 2 ms. What a board does not have is absent from
the reading, never zero. The roots of sysfs and procfs are parameters, so recorded trees can be read too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from targets import sensors
from targets.sensors import number, text

SYSFS = Path("/sys")
PROCFS = Path("/proc")

#: Clock readings taken at most: on many-core machines each one interrupts a core.
MAX_POLICIES = 16
#: /proc/stat counts in these.
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class LoadMark:
    """CPU seconds until now: of everybody (``busy``, with stolen time), ours, and with idle time (``total``)."""

    busy: float
    total: float
    own: float
    steal: float


@dataclass(frozen=True, slots=True)
class _CpuTimes:
    busy: float
    total: float
    steal: float


class Telemetry:
    """Reads one board. Not thread-safe: loads and power are differences from the reading before."""

    def __init__(self, sysfs: Path = SYSFS, procfs: Path = PROCFS) -> None:
        self._procfs = procfs
        cpu = sysfs / "devices/system/cpu"
        self._policies = sorted((cpu / "cpufreq").glob("policy*"))[:MAX_POLICIES]
        self._thermometer = sensors.processor(sysfs)
        self._limit = sensors.slows_at(self._thermometer)
        self._throttling = sensors.Throttling(sysfs)
        self._rails = sensors.Rails(sysfs)
        self._joules = next(iter(sorted(sysfs.glob("class/powercap/*-rapl:0/energy_uj"))), None)
        self._last_cpu = self._cpu_times()
        #: Of the last two readings that were at least a tick apart.
        self._cpu_percent = 0.0
        self._last_energy = (time.monotonic(), number(self._joules))

    def read(self) -> dict[str, float]:
        """The readings that this board has.

        ``cpu_percent`` (of all cores, since the reading before), ``memory_bytes`` (used), ``memory_percent``,
        ``load1``, ``temperature_c``, ``temperature_limit_c`` (where the board slows down), ``cpu_mhz`` and
        ``cpu_max_mhz`` (highest of all cores), ``throttled`` (1 while it is), ``throttle_events`` (since the system
        started), ``power_w`` (of the whole board or module, or of its one sensor), ``power_<rail>_w``.
        """
        memory = psutil.virtual_memory()
        found = {"memory_bytes": float(memory.total - memory.available), "memory_percent": memory.percent}
        found.update(self._load())
        found.update(self._clocks())
        found.update(self._heat())
        found.update(self._throttling.read())
        found.update(self._power())
        return found

    def governor(self) -> str:
        """Names of the clock governors in use, ``performance`` or ``performance+schedutil``; empty if unknown."""
        return "+".join(sorted({text(policy / "scaling_governor") for policy in self._policies} - {""}))

    def mark(self, own: Iterable[int]) -> LoadMark:
        """A mark for :func:`other_load`; ``own`` are the roots of the process trees that count as ours."""
        own_seconds = _tree_seconds(own)
        times = self._cpu_times()
        return LoadMark(times.busy, times.total, own_seconds, times.steal)

    def _cpu_times(self) -> _CpuTimes:
        """From the first line of /proc/stat; guest time is part of user time there."""
        try:
            with (self._procfs / "stat").open() as file:
                fields = [int(word) * TICK for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            fields = []
        user, nice, system, idle, iowait, irq, softirq, steal = (*fields, *[0.0] * (8 - len(fields)))
        busy = user + nice + system + irq + softirq + steal
        return _CpuTimes(busy, busy + idle + iowait, steal)

    def _load(self) -> dict[str, float]:
        now, last = self._cpu_times(), self._last_cpu
        if now.total > last.total:
            self._last_cpu = now
            self._cpu_percent = min(max(100 * (now.busy - last.busy) / (now.total - last.total), 0.0), 100.0)
        found = {"cpu_percent": self._cpu_percent} if now.total > 0 else {}
        if (load := number(self._procfs / "loadavg")) is not None:
            found["load1"] = load
        return found

    def _clocks(self) -> dict[str, float]:
        found = {}
        for name, file in (("cpu_mhz", "scaling_cur_freq"), ("cpu_max_mhz", "scaling_max_freq")):
            readings = [value for policy in self._policies if (value := number(policy / file)) is not None]
            if readings:
                found[name] = max(readings) / 1e3
        return found

    def _heat(self) -> dict[str, float]:
        celsius = self._thermometer.celsius() if self._thermometer is not None else None
        if celsius is None:
            return {}
        return {"temperature_c": celsius, **({"temperature_limit_c": self._limit} if self._limit is not None else {})}

    def _power(self) -> dict[str, float]:
        found = self._rails.read()
        if "power_w" in found:
            return found
        at, joules = time.monotonic(), number(self._joules)
        before, last = self._last_energy
        self._last_energy = (at, joules)
        # The counter wraps around: a reading that went back says nothing.
        if joules is None or last is None or joules < last or at <= before:
            return found
        return {**found, "power_w": (joules - last) / 1e6 / (at - before)}


def other_load(start: LoadMark, end: LoadMark) -> float:
    """Share of the machine's CPU, 0..1, that others used between two marks; time stolen from a VM is others'."""
    total = end.total - start.total
    if total <= 0:
        return 0.0
    return min(max((end.busy - start.busy - (end.own - start.own)) / total, 0.0), 1.0)


def steal(start: LoadMark, end: LoadMark) -> float:
    """Share of the machine's CPU, 0..1, that the host of a virtual machine gave to somebody else between two marks."""
    total = end.total - start.total
    return min(max((end.steal - start.steal) / total, 0.0), 1.0) if total > 0 else 0.0


def _tree_seconds(roots: Iterable[int]) -> float:
    """CPU seconds of these processes, their living descendants and the dead ones that were waited for."""
    seen: set[int] = set()
    seconds = 0.0
    for root in roots:
        try:
            process = psutil.Process(root)
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        for member in family:
            if member.pid in seen:
                continue
            seen.add(member.pid)
            try:
                seconds += sum(member.cpu_times()[:4])
            except psutil.Error:
                continue
    return seconds
