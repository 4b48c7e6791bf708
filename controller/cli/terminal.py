"""What the process is connected to, so that no command has to ask twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of a table that goes into a file or a pipe: wide enough that nothing is cut, so that `grep` finds it.
PIPE_WIDTH = 200


def on_ci(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a CI service runs us: all the known ones set ``CI``."""
    return environ.get("CI", "").lower() not in ("", "0", "false")


def is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        # Closed.
        return False


def is_live(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a picture that redraws itself makes sense on ``stream``."""
    return is_terminal(stream) and environ.get("TERM", "") not in ("", "dumb") and not on_ci(environ)


def has_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """As https://no-color.org says, and not for dumb terminals or files."""
    return is_terminal(stream) and not environ.get("NO_COLOR") and environ.get("TERM", "") != "dumb"


def console(stream: TextIO | None = None) -> Console:
    """A rich console for standard output or the stream given."""
    from rich.console import Console

    class PlainPipe(Console):
        """Leaves it to the command what happens when nobody reads any more; rich would end the program."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = stream or sys.stdout
    piped = not is_terminal(stream)
    width = int(os.environ.get("COLUMNS") or PIPE_WIDTH) if piped else None
    return PlainPipe(file=stream, width=width, no_color=None if has_colour(stream) else True, highlight=False)
