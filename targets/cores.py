"""Processors that this process may use, and which of them the threads of a model should take.

Both bounds that Linux knows count: the affinity (cpusets, taskset) says which processors, the quota of the control
groups (``docker --cpus``, ``CPUQuota=``) says how much of their time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from targets.base import FleetError

#: Cores this much slower than the fastest would make the others wait, who get equal shares of the work.
_SLOW = 2 / 3


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may use."""

    #: Linux's numbers of the logical processors, in the order in which threads should take them.
    processors: tuple[int, ...]
    #: How many of the first of them are cores of their own that are about as fast as the fastest.
    good: int
    #: Seconds of processor time per second; None when no control group limits it.
    quota: float | None = None

    @property
    def default(self) -> int:
        """Threads to start when nobody says how many: as many as never wait for each other or for the quota."""
        return self.good if self.quota is None else max(1, min(self.good, math.floor(self.quota)))

    @property
    def whole(self) -> bool:
        """Whether all of the machine may be used, all of the time."""
        return self.quota is None and len(self.processors) == os.cpu_count()

    @property
    def most(self) -> int:
        """Threads that may be asked for."""
        return len(self.processors) if self.quota is None else min(len(self.processors), max(1, math.ceil(self.quota)))

    def threads(self, asked: int) -> int:
        """How many threads to start for an option that says ``asked``, 0 for the default.

        Raises :class:`FleetError` (``too-many-threads``) for more than can run at a time.
        """
        if why := self.lacking(asked):
            raise FleetError(why, code="too-many-threads", hint="ask for fewer, or for none to take what there is")
        return asked or self.default

    def lacking(self, asked: int) -> str:
        """Why so many threads cannot run here, in words; empty when they can."""
        if asked <= self.most:
            return ""
        count = len(self.processors)
        bound = f"{count} processor{'s' if count > 1 else ''}" if self.quota is None else f"a quota of {self.quota:g}"
        return f"{asked} threads are asked for, and models may use {bound} here"

    def pinned(self, threads: int) -> tuple[int, ...]:
        """One processor for each of so many threads; none under a quota, for then they are shared with others."""
        return () if self.quota is not None else self.processors[:threads]


def usable(root: Path = Path("/"), allowed: Collection[int] | None = None) -> Cores:
    """What the process may use now. ``root`` is where /sys and /proc are, ``allowed`` the affinity."""
    allowed = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    cpus = root / "sys/devices/system/cpu"
    speed = {cpu: _number(cpus / f"cpu{cpu}/cpu_capacity") or 1 for cpu in allowed}
    # 0 for the first of the logical processors that share a core, 1 for the second.
    sibling = {cpu: [other for other in _siblings(cpus, cpu) if other in speed].index(cpu) for cpu in allowed}
    # The first processor is the one that serves most interrupts: when not all are needed, it is left to them.
    order = sorted(allowed, key=lambda cpu: (sibling[cpu], -speed[cpu], -cpu))
    fast = max(speed.values()) * _SLOW
    good = sum(sibling[cpu] == 0 and speed[cpu] >= fast for cpu in allowed)
    quota = min(_quotas(root), default=math.inf)
    return Cores(tuple(order), good, quota if quota < len(allowed) else None)


def _siblings(cpus: Path, cpu: int) -> list[int]:
    """The logical processors of this one's core: itself where the kernel does not say."""
    try:
        return cpu_list((cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text())
    except OSError:
        return [cpu]


def cpu_list(text: str) -> list[int]:
    """Numbers of a list as the kernel writes it: ``0-2,8`` is 0, 1, 2, 8."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _quotas(root: Path) -> Iterator[float]:
    """Quotas of the process's control group and all above it, in processors, in both versions of control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container sees its own group as the root of what is mounted, and yet the whole path here.
        for group in (Path(path), *Path(path).parents):
            below = group.relative_to("/")
            if not controllers:
                quota, period = _pair(base / below / "cpu.max")
            else:
                folder = base / "cpu" / below
                quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota > 0 and period > 0:
                yield quota / period


def _pair(path: Path) -> tuple[int, int]:
    """Quota and period in microseconds; zeros where there is no file, or it says ``max``."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return 0, 0
    return (int(quota), int(period)) if quota.isdigit() and period.isdigit() else (0, 0)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
