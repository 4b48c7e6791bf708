"""Puts the live view on a terminal: redraws when something happened, a bounded number of times a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live

from controller.events import Event
from controller.tui.render import Look, render
from controller.tui.state import ViewState
from targets.defaults import REDRAW_PER_SECOND

#: With nothing happening the picture is still redrawn this often, for the clock in its title.
_IDLE_REDRAW = 1.0


class LiveView:
    """A listener that draws. Use as a context manager; the last picture stays, unless it had the whole screen.

    Events may come from any thread. Drawing happens in one of its own, so that a busy caller still shows progress.
    """

    def __init__(
        self, state: ViewState, console: Console, *, full_screen: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.state = state
        #: Index of the first device shown, when not all fit.
        self.first = 0
        self._console = console
        self._full_screen = full_screen
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._gone = False
        self._size = console.size
        self._live = self._new_live()
        self._thread = threading.Thread(target=self._redraw, name="live view", daemon=True)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.state.apply(event, self._clock())
        self._dirty.set()

    def scroll(self, by: int) -> None:
        """Move the window on the devices by so many rows."""
        with self._lock:
            self.first = max(0, min(self.first + by, len(self.state.rows) - 1))
        self._dirty.set()

    def __enter__(self) -> LiveView:
        self._live.start()
        self._draw()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._dirty.set()
        self._thread.join()
        self._live.transient = False
        self._draw()
        with contextlib.suppress(OSError):
            # Fails when the terminal is gone, and then there is nothing to put back.
            self._live.stop()

    def _new_live(self) -> Live:
        # Standard output is the command's answer, never ours to touch.
        return Live(
            console=self._console,
            auto_refresh=False,
            screen=self._full_screen,
            transient=not self._full_screen,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def _redraw(self) -> None:
        drawn = time.monotonic()
        while not self._closing.is_set():
            # The period bounds the rate, and is how soon a resize is noticed.
            self._closing.wait(1 / REDRAW_PER_SECOND)
            resized = self._console.size != self._size
            if self._closing.is_set():
                return
            if self._dirty.is_set() or resized or time.monotonic() - drawn >= _IDLE_REDRAW:
                self._dirty.clear()
                if resized and not self._gone:
                    self._start_over()
                self._draw()
                drawn = time.monotonic()

    def _start_over(self) -> None:
        """After a resize the terminal has wrapped our lines in its own way: clear it and draw anew."""
        self._size = self._console.size
        if self._full_screen:
            self._console.clear()
            return
        with contextlib.suppress(OSError):
            self._live.stop()
            self._console.clear()
        self._live = self._new_live()
        self._live.start()

    def _draw(self) -> None:
        if self._gone:
            return
        try:
            self._show()
        except OSError:
            # The terminal was closed. The work goes on, or is told to end by a signal.
            self._gone = True

    def _show(self) -> None:
        width, height = self._console.size
        look = Look(
            width,
            # One line less than there are: the cursor's own must not scroll the picture.
            height - (0 if self._full_screen else 1),
            ascii_only=self._console.options.ascii_only,
            log_lines=height if self._full_screen else 8,
        )
        with self._lock:
            picture = render(self.state, look, elapsed=self._clock() - self._started, first=self.first)
        self._live.update(picture, refresh=True)
