"""The agent's log: a file that rotates, the last lines of it in memory, and those who follow it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

_FILE_BYTES = 1 << 20
_FILES = 3
#: Lines kept in memory, and the length at which one is cut.
_LINES = 2000
_LINE_LENGTH = 2000


class LogBook(logging.Handler):
    """Keeps the last lines for whoever asks, and tells followers of each new one.

    Followers are called in the thread that logs, so they must only hand the line on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._followers: list[Callable[[str], None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)[:_LINE_LENGTH]
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line)
        for follower in self._followers:
            follower(line)

    def seed(self, file: Path) -> None:
        """Start with the last lines of a log file that an earlier agent left."""
        try:
            with file.open("rb") as handle:
                handle.seek(max(0, file.stat().st_size - 256 * 1024))
                text = handle.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return
        self._lines.extend(line[:_LINE_LENGTH] for line in text.splitlines()[-_LINES:])

    def tail(self, lines: int) -> list[str]:
        """The last ``lines`` lines, oldest first."""
        return list(self._lines)[-lines:] if lines > 0 else []

    def follow(self, follower: Callable[[str], None]) -> None:
        self._followers.append(follower)

    def unfollow(self, follower: Callable[[str], None]) -> None:
        if follower in self._followers:
            self._followers.remove(follower)


def set_up(file: Path) -> LogBook:
    """Send everything that is logged to ``file`` and to the book that is returned."""
    book = LogBook()
    book.seed(file)
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for each in (handler, book):
        each.setFormatter(formatter)
        root.addHandler(each)
    # ZeroMQ's authentication logs each key it turns away at debug level, and asyncio each slow callback.
    logging.getLogger("agent.zap").setLevel(logging.WARNING)
    return book
