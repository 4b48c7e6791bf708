"""The picture of a :class:`~controller.tui.state.ViewState` at a given width and height: a pure function."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.tui import figures
from controller.tui.state import BUSY, GONE, LogEntry, Row, Task, ViewState

_GAP = 1
#: Lines of the log that devices do not take away, unless the terminal is very low.
_LEAST_LOG = 3
_WIDE_TREND = 32
_WIDE_RELEASE = 36
_LEVEL_STYLE = {"info": "", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, slots=True)
class Look:
    """What can be drawn on."""

    width: int
    height: int
    ascii_only: bool = False
    #: Most lines of the event log.
    log_lines: int = 8

    @property
    def unknown(self) -> str:
        return "-" if self.ascii_only else "—"


def render(state: ViewState, look: Look, *, elapsed: float, first: int = 0) -> RenderableType:
    """Title, what is being done, devices from the ``first`` on, log: at most ``look.height`` lines of ``look.width``.

    When not all devices fit, those at work come first, unless the reader has scrolled.
    """
    doing = [_build(name, task, look) for name, task in state.builds.items() if task.share < 1]
    doing += [_doing(row.name, row.task, look) for row in state.rows.values() if row.task and row.task.detail]
    doing = doing[: max(1, look.height // 4)]
    free = max(1, look.height - 2 - len(doing))
    kept_for_log = min(len(state.log), _LEAST_LOG) + 1 if state.log and free >= 2 * _LEAST_LOG else 0
    rows, hidden = _visible(list(state.rows.values()), max(1, free - kept_for_log), first)
    used = 2 + len(doing) + len(rows) + (hidden > 0)
    parts: list[RenderableType] = [_title(state, look, elapsed), *doing]
    parts.append(_table(rows, look))
    if hidden:
        parts.append(_line(look, (f"+{hidden} more", "dim")))
    lines = min(len(state.log), look.log_lines, look.height - used - 1)
    if kept_for_log and lines > 0:
        parts.append(Text(("-" if look.ascii_only else "─") * look.width, style="dim", no_wrap=True))
        parts += [_entry(entry, look) for entry in list(state.log)[-lines:]]
    return Group(*parts)


def _visible(rows: list[Row], space: int, first: int) -> tuple[list[Row], int]:
    """The rows that fit into ``space`` lines, one of which says how many do not."""
    if len(rows) <= space:
        return rows, 0
    count = max(1, space - 1)
    if first:
        first = min(first, len(rows) - count)
        return rows[first : first + count], len(rows) - count
    shown = sorted(rows, key=lambda row: not row.busy)[:count]
    return shown, len(rows) - count


def _line(look: Look, *pieces: tuple[str, str] | str) -> Text:
    """One line that never wraps."""
    text = Text.assemble(*pieces, no_wrap=True, overflow="crop" if look.ascii_only else "ellipsis")
    text.truncate(look.width, overflow=text.overflow)
    return text


def _title(state: ViewState, look: Look, elapsed: float) -> Text:
    count = len(state.rows)
    simulated = sum(row.simulated for row in state.rows.values())
    boards = f"{count} board" + ("" if count == 1 else "s")
    if simulated:
        boards += " (simulated)" if simulated == count else f" ({simulated} simulated)"
    busy = sum(row.busy for row in state.rows.values())
    return _line(look, (state.title, "bold"), f"  {boards}  {busy} busy  ", (figures.duration(elapsed), "dim"))


def _build(name: str, task: Task, look: Look) -> Text:
    done, rest = figures.bar(task.share, 20, ascii_only=look.ascii_only)
    return _line(
        look, ("build ", "bold"), f"{name} ", (done, "cyan"), (rest, "dim"), f" {task.share:4.0%} {task.stage}"
    )


def _doing(device: str, task: Task, look: Look) -> Text:
    return _line(look, (f"{device} ", "cyan"), (f"{task.stage} ", "bold"), task.detail)


def _entry(entry: LogEntry, look: Look) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(entry.at))
    device = f"{entry.device} " if entry.device else ""
    return _line(look, (f"{clock} ", "dim"), (device, "cyan"), (entry.text, _LEVEL_STYLE.get(entry.level, "")))


# --- The table of devices -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: its ``width`` in characters, and ``rank``: the highest is dropped first, 0 never."""

    title: str
    width: int
    rank: int
    cell: Callable[[Row, Look, int], Text | str]
    justify: Literal["left", "right"] = "right"
    #: The reading that a board must have for the column to be there at all.
    needs: str = ""


def _state(row: Row, look: Look, width: int) -> Text:
    style = "green" if row.state in BUSY else "red" if row.state in GONE else ""
    return Text(row.state or look.unknown, style=style)


def _progress(row: Row, look: Look, width: int) -> Text | str:
    if row.task is None:
        return ""
    stage = row.task.stage[:8]
    done, rest = figures.bar(row.task.share, width - 9, ascii_only=look.ascii_only)
    return Text.assemble(f"{stage:<8} ", (done, "cyan"), (rest, "dim"))


def _model(row: Row, look: Look, width: int) -> Text | str:
    # While there are figures, what they are of; it need not be the release.
    model, bundle = (row.measured_model, row.measured) if row.measured else (row.model, row.release)
    if not bundle:
        return model or look.unknown
    return Text.assemble(model[: max(1, width - 9)], (f" {bundle[:8]}", "dim"))


def _percentile(share: float) -> Callable[[Row, Look, int], str]:
    def cell(row: Row, look: Look, width: int) -> str:
        value = row.latencies.percentile(share)
        return look.unknown if value is None else figures.milliseconds(value)

    return cell


def _rate(row: Row, look: Look, width: int) -> str:
    value = row.latencies.rate
    return look.unknown if value is None else figures.rate(value)


def _trend(row: Row, look: Look, width: int) -> Text:
    return Text(figures.sparkline(row.trend, width, ascii_only=look.ascii_only), style="magenta")


def _reading(name: str, form: Callable[[float], str]) -> Callable[[Row, Look, int], str]:
    def cell(row: Row, look: Look, width: int) -> str:
        value = row.readings.get(name)
        if value is None:
            return look.unknown
        return form(value).replace("°", "") if look.ascii_only else form(value)

    return cell


def _target(row: Row, look: Look, width: int) -> str:
    return row.target + (" sim" if row.simulated else "")


_COLUMNS = (
    _Column("device", 14, 0, lambda row, look, width: row.name, "left"),
    _Column("target", 10, 10, _target, "left"),
    _Column("state", 11, 0, _state, "left"),
    _Column("progress", 16, 3, _progress, "left"),
    _Column("release", 22, 4, _model, "left"),
    _Column("p50 ms", 6, 1, _percentile(0.5)),
    _Column("p99 ms", 6, 2, _percentile(0.99)),
    _Column("q/s", 6, 6, _rate),
    _Column("latency", 10, 5, _trend, "left"),
    _Column("cpu", 4, 7, _reading("cpu_percent", lambda value: f"{value:.0f}%")),
    _Column("memory", 7, 8, _reading("memory_bytes", figures.size)),
    _Column("temp", 5, 9, _reading("temperature_c", lambda value: f"{value:.0f}°C")),
    _Column("gpu", 7, 12, _reading("gpu_mhz", lambda value: f"{value:.0f}MHz"), needs="gpu_mhz"),
    _Column("power", 6, 11, _reading("power_w", lambda value: f"{value:.1f}W")),
)


def _fitting(width: int, rows: list[Row]) -> list[tuple[_Column, int]]:
    """The columns that fit into ``width`` with their widths; what is left over goes where it says most."""
    told = {name for row in rows for name in row.readings}
    longest_name = max((len(row.name) for row in rows), default=0)
    chosen = sorted((one for one in _COLUMNS if not one.needs or one.needs in told), key=lambda column: column.rank)
    while len(chosen) > 1 and sum(column.width for column in chosen) + _GAP * (len(chosen) - 1) > width:
        chosen.pop()
    spare = max(0, width - sum(column.width for column in chosen) - _GAP * (len(chosen) - 1))
    widths = {column.title: min(width, column.width) for column in chosen}
    for title, wanted in (("device", longest_name), ("release", _WIDE_RELEASE), ("latency", _WIDE_TREND)):
        if title in widths:
            extra = min(spare, max(0, wanted - widths[title]))
            widths[title] += extra
            spare -= extra
    return [(column, widths[column.title]) for column in _COLUMNS if column.title in widths]


def _table(rows: list[Row], look: Look) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold dim", collapse_padding=True)
    columns = _fitting(look.width, rows)
    overflow: Literal["crop", "ellipsis"] = "crop" if look.ascii_only else "ellipsis"
    for column, width in columns:
        table.add_column(column.title, width=width, justify=column.justify, no_wrap=True, overflow=overflow)
    for row in rows:
        table.add_row(*(column.cell(row, look, width) for column, width in columns))
    return table
