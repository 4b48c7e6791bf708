"""Tables for people, in one style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from rich.table import Table
from rich.text import Text

from controller.liveness import OUT_OF_REACH
from controller.printable import printable

if TYPE_CHECKING:
    from agent.protocol import LatencyStats

Cell: TypeAlias = str | Text

#: Characters of a bundle's or run's id that people see; commands take any unique prefix.
SHORT = 12
_GOOD = frozenset(
    {"VALID", "active", "unchanged", "idle", "ok", "running", "good", "provisioned", "updated", "removed"}
)
_BAD = frozenset({"INVALID", "failed", "rolled-back", "error", "dead"}) | OUT_OF_REACH


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = ()) -> Table:
    """Rows of cells below ``columns``; those named in ``right`` hold figures."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", no_wrap=column != "reason")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return result


def word(text: str) -> Text:
    """A state or verdict in the colour that it deserves."""
    return Text(printable(text), style="green" if text in _GOOD else "red" if text in _BAD else "")


def short(identifier: str) -> str:
    return identifier[:SHORT]


def latency(stats: LatencyStats | None, field: str) -> str:
    from controller.tui.figures import milliseconds

    return "—" if stats is None else milliseconds(getattr(stats, field))


def board(name: str, simulated: bool) -> str:
    """A device's name; a simulated board says that it is one."""
    return f"{name} (simulated)" if simulated else name


def labels(values: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(values.items()))
