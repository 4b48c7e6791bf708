"""Runs beside one another, for people: engines of a target, batch sizes, and what others published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from controller.cli.tables import Cell, board, short, table, word
from controller.printable import printable
from controller.sweep import series
from controller.tui.figures import bar, milliseconds, rate

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from controller.reports import EngineComparison, EngineReport, Sweep
    from targets.published import Published

_NONE = "—"
_BAR = 40
#: NumPy's names of what people call a precision.
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "tfloat32": "tf32"}


def engine_tables(comparison: EngineComparison) -> Iterator[RenderableType]:
    """One comparison: a row for each engine, with the published figures beside where there are some."""
    where = board(comparison.device, comparison.simulated)
    head = f"{comparison.model} on {where}, batch {comparison.batch}, protocol {comparison.protocol}"
    yield Text(printable(head), style="bold")
    columns = ["engine", "run", "ran", "mean ms", "p50 ms", "images/s", "speed-up", "output error", "verdict"]
    beside = [] if comparison.published is None else ["published ms", "published speed-up"]
    rows: list[list[Cell]] = []
    for one in comparison.engines:
        row: list[Cell] = [
            f"{one.engine} {one.precision}".strip() or one.ran,
            short(one.run) or _NONE,
            ran(one),
            _NONE if one.mean_ms is None else milliseconds(one.mean_ms),
            _NONE if one.p50_ms is None else milliseconds(one.p50_ms),
            _NONE if one.throughput is None else rate(one.throughput),
            _speed_up(one),
            _NONE if one.output_error is None else f"{one.output_error:.2g}",
            word(one.verdict if one.run else "not there"),
        ]
        if beside:
            row.append(_NONE if one.published_ms is None else milliseconds(one.published_ms))
            row.append(_NONE if one.published_speed_up is None else f"{one.published_speed_up:.2f}")
        rows.append([*row, one.reason])
    yield table([*columns, *beside, "reason"], rows, right=[*columns[3:8], *beside])
    baseline = next((one for one in comparison.engines if one.baseline), None)
    if baseline is None or baseline.run == "":
        yield "no speed-ups: the engine that they are against was not measured"
    else:
        means = "means" if comparison.protocol == "notebook" else "medians"
        name = f"{baseline.engine} {baseline.precision}".strip() or baseline.ran
        yield f"speed-ups are ratios of {means} against {name}; none is given where outputs are wrong"
    if comparison.published is not None:
        yield _source(comparison.published)


def ran(one: EngineReport) -> str:
    """What measured, and in which precision the weights and inputs were."""
    if not one.run:
        return _NONE
    types = [_PRECISIONS.get(name, name) for name in (one.weight_dtype, one.input_dtype) if name]
    precision = types[0] if len(set(types)) == 1 else f"{types[0]}, inputs {types[1]}" if types else "precision unknown"
    return f"{one.ran} {precision}"


def _speed_up(one: EngineReport) -> str:
    if one.speed_up is None:
        return _NONE
    if one.speed_up_ci is None:
        return f"{one.speed_up:.2f}"
    low, high = one.speed_up_ci
    return f"{one.speed_up:.2f} ({low:.2f} to {high:.2f})"


def _source(published: Published) -> str:
    batches = sorted({row.batch for row in published.rows})
    words = f"batch {batches[0]}" if len(batches) == 1 else f"batch {batches[0]} to {batches[-1]}"
    machine = published.machine or "another machine"
    return f"published figures: {published.source}; {words}, on {machine}; they were not measured here"


def sweep_tables(sweep: Sweep) -> Iterator[RenderableType]:
    """One sweep: a row for each batch, then bars."""
    lines = series(sweep)
    others = [name for name in lines if name != "measured"]
    yield Text(printable(f"{sweep.model} on {board(sweep.device, sweep.simulated)}, {sweep.engine}"), style="bold")
    rows: list[list[Cell]] = [
        [
            str(row.batch),
            milliseconds(row.p50_ms),
            rate(row.throughput),
            word(row.verdict),
            *(_rate(lines[name], row.batch) for name in others),
        ]
        for row in sweep.rows
    ]
    beside = [f"{name} published" for name in others]
    columns = ["batch", "p50 ms", "images/s", "verdict", *beside]
    yield table(columns, rows, right=[*columns[:3], *beside])
    yield Bars(lines)
    if sweep.published is not None:
        yield _source(sweep.published)


def _rate(line: Mapping[int, float], batch: int) -> str:
    return rate(line[batch]) if batch in line else _NONE


class Bars:
    """Items a second by batch as bars, each line of them relative to its own best: it is shapes that are compared."""

    def __init__(self, lines: Mapping[str, Mapping[int, float]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for name, line in self._lines.items():
            best = max(line.values())
            yield Text(printable(f"images/s by batch, {name}"))
            for batch, value in sorted(line.items()):
                full, rest = bar(value / best, _BAR, ascii_only=options.ascii_only)
                colour = "green" if name == "measured" else "blue"
                yield Text.assemble(f"{batch:>6} ", (full, colour), (rest, "dim"), f" {rate(value)}")
