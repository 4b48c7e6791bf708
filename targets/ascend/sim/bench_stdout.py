"""Two writers on one standard output, as in the real tool: Python, and a C++ library with a buffer of its own.

Through a pipe the library's lines come when its buffer is full or the process ends, so their order says nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import time

#: What the C library buffers for a pipe.
BUFFER = 4096
_FULL_BLOCK = "█"
_PARTS = (" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_WIDTH = 10
_INTERVAL = 0.1


class Library:
    """Standard output of the C++ half."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._waiting = b""

    def say(self, level: str, text: str) -> None:
        self.write(f"[{level}] {text}\n")

    def write(self, text: str) -> None:
        self._waiting += text.encode("utf-8", "replace")
        if self._live:
            self.flush()
        while len(self._waiting) >= BUFFER:
            self._put(self._waiting[:BUFFER])
            self._waiting = self._waiting[BUFFER:]

    def flush(self) -> None:
        self._put(self._waiting)
        self._waiting = b""

    def _put(self, data: bytes) -> None:
        sys.stdout.flush()
        while data:
            data = data[os.write(1, data) :]


def set_up_logging(debug: bool = False) -> None:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(levelname)s] %(message)s", force=True)
    logging.getLogger("ais_bench").setLevel(logging.DEBUG if debug else logging.INFO)


class Progress:
    """The progress bar of tqdm, ten characters wide, on standard output."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._shown = self._start
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self._blocks = encoding == "utf8"
        self._show()

    def advance(self) -> None:
        self._done += 1
        if time.monotonic() - self._shown >= _INTERVAL and self._done < self._total:
            self._show()

    def close(self) -> None:
        self._show()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _show(self) -> None:
        self._shown = time.monotonic()
        sys.stdout.write("\r" + self.line(self._shown - self._start))
        sys.stdout.flush()

    def line(self, elapsed: float) -> str:
        """The bar's text after ``elapsed`` seconds."""
        share = self._done / self._total if self._total else 1.0
        rate = self._done / elapsed if elapsed > 0 and self._done else 0.0
        left = _clock((self._total - self._done) / rate) if rate else "?"
        speed = "?it/s" if not rate else f"{rate:5.2f}it/s" if rate >= 1 else f"{1 / rate:5.2f}s/it"
        counts = f"{self._done}/{self._total}"
        return f"{self._what}: {share:4.0%}|{self._bar(share)}| {counts} [{_clock(elapsed)}<{left}, {speed}]"

    def _bar(self, share: float) -> str:
        parts = len(_PARTS) if self._blocks else 10
        full, rest = divmod(int(share * _WIDTH * parts), parts)
        bar = (_FULL_BLOCK if self._blocks else "#") * full
        if full < _WIDTH:
            bar += _PARTS[rest] if self._blocks else " 123456789"[rest]
        return bar.ljust(_WIDTH)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
