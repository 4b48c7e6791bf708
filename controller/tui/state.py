"""What the live view knows: events in, figures out. No terminal, no clock of its own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from controller.events import DeviceChanged, Event, Message, Progress, Reading, SampleBatch
from controller.liveness import OUT_OF_REACH
from controller.printable import printable

Level = Literal["info", "warning", "error"]

#: Samples kept for the running percentiles of one device; when there are more, every other one is dropped.
MAX_SAMPLES = 8192
#: Points of a sparkline; each is the median of one batch.
TREND_POINTS = 64
LOG_LINES = 200

#: States in which a device does something worth a look, so that it is shown first when not all fit.
BUSY = frozenset({"leased", "activating", "benching"})
#: Last stages of a build, as `controller.build` names them.
BUILD_ENDS = frozenset({"done", "cached", "failed"})
GONE = OUT_OF_REACH | {"suspect"}


class Latencies:
    """Percentiles of a growing series in bounded memory: past `MAX_SAMPLES` an even selection is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._total_ms = 0.0
        self._kept: list[float] = []
        self._stride = 1
        self._sorted: list[float] | None = None

    def add(self, values: Iterable[float]) -> None:
        """``values`` in milliseconds."""
        for value in values:
            if self.count % self._stride == 0:
                self._kept.append(value)
                if len(self._kept) >= MAX_SAMPLES:
                    del self._kept[1::2]
                    self._stride *= 2
            self.count += 1
            self._total_ms += value
        self._sorted = None

    def percentile(self, share: float) -> float | None:
        """The nearest-rank percentile in milliseconds, ``share`` in 0..1; None without samples."""
        if not self._kept:
            return None
        if self._sorted is None:
            self._sorted = sorted(self._kept)
        rank = math.ceil(share * len(self._sorted) - 1e-9)
        return self._sorted[max(0, rank - 1)]

    @property
    def rate(self) -> float | None:
        """Queries per second, back to back; None without samples."""
        return 1e3 * self.count / self._total_ms if self._total_ms > 0 else None


@dataclass(slots=True)
class Task:
    """Something with a beginning and an end: a build, or a stage on a device."""

    stage: str
    share: float = 0.0
    detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(slots=True)
class Row:
    """One device as the view shows it."""

    name: str
    target: str = ""
    simulated: bool = False
    state: str = ""
    release: str = ""
    model: str = ""
    task: Task | None = None
    #: The bundle and model that the figures are of; another one starts them anew.
    measured: str = ""
    measured_model: str = ""
    latencies: Latencies = field(default_factory=Latencies)
    trend: deque[float] = field(default_factory=lambda: deque(maxlen=TREND_POINTS))
    readings: dict[str, float] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        return self.state in BUSY or (self.task is not None and self.task.share < 1)

    def forget_figures(self) -> None:
        self.measured = self.measured_model = ""
        self.latencies = Latencies()
        self.trend.clear()


@dataclass(frozen=True, slots=True)
class LogEntry:
    #: Seconds since the epoch.
    at: float
    device: str
    text: str
    level: Level = "info"


class ViewState:
    """Everything on the screen. Feed it with :meth:`apply`; not thread-safe."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, Row] = {}
        #: Builds, by what is built.
        self.builds: dict[str, Task] = {}
        self.log: deque[LogEntry] = deque(maxlen=LOG_LINES)

    def add_device(self, name: str, target: str, *, simulated: bool, model: str = "") -> None:
        row = self._row(name)
        row.target, row.simulated, row.model = target, simulated, model

    def apply(self, event: Event, at: float) -> LogEntry | None:
        """Take in one event that came at ``at`` (seconds since the epoch).

        Returns what is worth a line in a log, if anything: the view's own log has it already.
        """
        entry: LogEntry | None = None
        if isinstance(event, DeviceChanged):
            entry = self._changed(event, at)
        elif isinstance(event, Progress):
            entry = self._progressed(event, at)
        elif isinstance(event, SampleBatch):
            self._measured(event)
        elif isinstance(event, Reading):
            self._row(event.device).readings = dict(event.values)
        elif isinstance(event, Message):
            entry = LogEntry(at, event.device, printable(event.text), event.level)
            if event.level == "error" and event.device:
                # What failed is not under way any more.
                self._row(event.device).task = None
        if entry is not None:
            self.log.append(entry)
        return entry

    def _row(self, name: str) -> Row:
        if name not in self.rows:
            self.rows[name] = Row(name)
        return self.rows[name]

    def _changed(self, event: DeviceChanged, at: float) -> LogEntry | None:
        row = self._row(event.device)
        before = (row.state, row.release)
        row.state = printable(event.state)
        if event.release:
            if row.release and event.release != row.release:
                row.forget_figures()
            row.release, row.model = printable(event.release), printable(event.model) or row.model
        if event.state not in BUSY:
            row.task = None
        if event.state in GONE:
            # Old readings would look like news.
            row.readings = {}
        if (row.state, row.release) == before:
            return None
        text = row.state
        if row.release and row.release != before[1]:
            text += f", runs {row.model or 'release'} {row.release[:12]}"
        return LogEntry(at, event.device, text, "warning" if event.state in GONE else "info")

    def _progressed(self, event: Progress, at: float) -> LogEntry | None:
        task = Task(printable(event.stage), event.share, printable(event.detail), event.bytes_done, event.bytes_total)
        if event.device:
            row = self._row(event.device)
            before = row.task
            row.task = task
        else:
            # A build says "MODEL for TARGET: STAGE".
            name, _, stage = (task.detail or task.stage).partition(": ")
            task.stage, task.detail = stage or task.stage, name
            before = self.builds.get(name)
            self.builds[name] = task
            return self._built(task, before, at)
        started = before is None or before.stage != task.stage
        finished = task.share >= 1 and (before is None or before.stage != task.stage or before.share < 1)
        if not started and not finished:
            return None
        words = [task.stage]
        if task.detail:
            words.append(task.detail)
        if finished:
            words.append("done")
        return LogEntry(at, event.device, " ".join(words))

    def _built(self, task: Task, before: Task | None, at: float) -> LogEntry | None:
        """A build's beginning and end are news; its stages are for the progress bar."""
        ended = task.share >= 1 and task.stage in BUILD_ENDS
        if before is None and not ended:
            return LogEntry(at, "", f"build {task.detail}")
        if ended and (before is None or before.stage != task.stage):
            level: Level = "error" if task.stage == "failed" else "info"
            return LogEntry(at, "", f"build {task.detail} {task.stage}", level)
        return None

    def _measured(self, event: SampleBatch) -> None:
        row = self._row(event.device)
        if row.measured != printable(event.bundle):
            row.forget_figures()
            row.measured, row.measured_model = printable(event.bundle), printable(event.model)
        if event.values:
            row.latencies.add(event.values)
            row.trend.append(median(event.values))
        if row.task is None or row.task.stage != "measure":
            row.task = Task("measure")
        row.task.share = event.share

    @property
    def done(self) -> int:
        """Devices whose current task has come to its end or that never had one since."""
        return sum(not row.busy for row in self.rows.values())
