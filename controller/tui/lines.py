"""What happens as plain lines, for files, pipes and CI: one line per change, never a flood."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import TextIO

from controller.events import Event, Progress, SampleBatch
from controller.printable import printable
from controller.tui import figures
from controller.tui.state import LogEntry, ViewState

#: Seconds between two lines about the running figures of one device.
FIGURES_INTERVAL = 5.0
#: Lines about one device in `BURST_WINDOW` seconds; what is more is counted and left out. Errors always come through.
BURST = 10
BURST_WINDOW = 5.0


class PlainLines:
    """A listener that writes ``HH:MM:SS device text`` lines. Events may come from any thread."""

    def __init__(self, state: ViewState, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self.state = state
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._next_figures: dict[str, float] = {}
        self._windows: dict[str, tuple[float, int]] = {}
        self._left_out: dict[str, int] = {}

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held open; what was left out is said."""
        with self._lock:
            for device in [device for device, count in self._left_out.items() if count]:
                self._write(self._clock(), device, "")

    def __call__(self, event: Event) -> None:
        with self._lock:
            now = self._clock()
            entry = self.state.apply(event, now)
            if entry is not None:
                self._changed(entry)
            elif isinstance(event, SampleBatch | Progress) and now >= self._next_figures.get(event.device, 0.0):
                self._next_figures[event.device] = now + FIGURES_INTERVAL
                self._write(now, event.device, self._figures(event))

    def _changed(self, entry: LogEntry) -> None:
        start, count = self._windows.get(entry.device, (entry.at, 0))
        if entry.at - start >= BURST_WINDOW:
            start, count = entry.at, 0
        self._windows[entry.device] = (start, count + 1)
        # What just changed needs no figures at once.
        self._next_figures[entry.device] = entry.at + FIGURES_INTERVAL
        if count >= BURST and entry.level != "error":
            self._left_out[entry.device] = self._left_out.get(entry.device, 0) + 1
            return
        level = "" if entry.level == "info" else f"{entry.level}: "
        self._write(entry.at, entry.device, level + entry.text)

    def _figures(self, event: SampleBatch | Progress) -> str:
        if isinstance(event, Progress):
            text = f"{event.stage if event.device else f'build {event.detail}'} {event.share:.0%}"
            if event.device and event.detail:
                text += f", {printable(event.detail)}"
            if event.bytes_total:
                text += f", {figures.size(event.bytes_done)} of {figures.size(event.bytes_total)}"
            return text
        latencies = self.state.rows[event.device].latencies
        p50, p99 = latencies.percentile(0.5), latencies.percentile(0.99)
        text = f"measure {event.share:.0%}, {latencies.count} queries"
        if p50 is not None and p99 is not None:
            text += f", p50 {figures.milliseconds(p50)} ms, p99 {figures.milliseconds(p99)} ms"
        return text

    def _write(self, at: float, device: str, text: str) -> None:
        left_out = self._left_out.pop(device, 0)
        words = [time.strftime("%H:%M:%S", time.localtime(at)), device, text]
        if left_out:
            words.append(f"({left_out} lines left out)")
        try:
            print(" ".join(word for word in words if word), file=self._stream, flush=True)
        except OSError:
            # Nobody reads any more: that is no reason for a deployment to fail.
            self._stream = io.StringIO()
