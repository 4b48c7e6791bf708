"""What the modules do when, as a picture and as a trace for ``chrome://tracing`` or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import msgspec

from targets.vta.isa import Module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from targets.vta.cycles import CycleReport, Span

_WIDTH, _LEFT, _LANE, _GAP = 1400, 90, 46, 12
_TOP = 58
#: Closer than this, in pixels, two pieces of one kind are drawn as one.
_JOIN = 0.3
_COLOURS = {
    "LOAD INP": "#3b76af",
    "LOAD WGT": "#84b4dc",
    "LOAD UOP": "#b39ddb",
    "LOAD ACC": "#7e57c2",
    "GEMM": "#2e7d32",
    "GEMM reset": "#a5d6a7",
    "ALU": "#ef8e19",
    "STORE": "#c62828",
    "FINISH": "#555555",
}
_OTHER = "#999999"


def svg(report: CycleReport, path: Path) -> None:
    """A picture: one lane a module, and the layers above. Its text says that it is a prediction."""
    path.write_text("\n".join(_picture(report)) + "\n", encoding="utf-8")


def chrome_trace(report: CycleReport, path: Path) -> None:
    """Every instruction and layer as an event; times in microseconds at the board's clock."""
    layers_lane = len(Module)
    events: list[dict[str, object]] = [
        _named("process_name", 0, f"VTA on {report.board}, predicted"),
        *(_named("thread_name", module, module.name.lower()) for module in Module),
        _named("thread_name", layers_lane, "layers"),
    ]
    events += [
        _event(span.title, span.module, span.start, span.end, report.clock_mhz, {"instruction": span.instruction})
        for span in report.spans
    ]
    # Layers overlap, which complete events of one lane must not: each is a pair of asynchronous ones.
    for number, layer in enumerate(report.layers):
        for phase, at in (("b", layer.start), ("e", layer.end)):
            events.append(
                {
                    **{"name": layer.name, "cat": layer.operator, "ph": phase, "id": number},
                    **{"pid": 0, "tid": layers_lane, "ts": at / report.clock_mhz},
                }
            )
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"board": report.board, "cycles": report.cycles, "predicted_ms": report.predicted_ms},
    }
    path.write_bytes(msgspec.json.encode(document))


def _named(kind: str, lane: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": 0, "tid": int(lane), "args": {"name": name}}


def _event(name: str, lane: int, start: int, end: int, clock_mhz: float, args: dict[str, int]) -> dict[str, object]:
    times = {"ts": start / clock_mhz, "dur": (end - start) / clock_mhz}
    return {"name": name, "ph": "X", "pid": 0, "tid": int(lane), **times, "args": args}


def _picture(report: CycleReport) -> Iterator[str]:
    layers_height = 16 * (1 + max((number for number, _ in _layer_rows(report)), default=-1))
    height = _TOP + layers_height + _GAP + len(Module) * (_LANE + _GAP) + 56
    scale = _WIDTH / max(report.cycles, 1)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    yield '<rect width="100%" height="100%" fill="white"/>'
    yield (
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(report.board)}, predicted: {report.cycles:,} cycles, '
        f"{report.predicted_ms:.2f} ms at {report.clock_mhz:g} MHz</text>"
    )
    yield (
        f'<text x="{_LEFT}" y="42" fill="#555555">alone: GEMM {report.gemm_cycles:,}, ALU {report.alu_cycles:,}, '
        f"memory read {report.read_cycles:,}, written {report.write_cycles:,} cycles</text>"
    )
    for row, number in _layer_rows(report):
        layer = report.layers[number]
        x, y, width = _LEFT + layer.start * scale, _TOP + 16 * row, max(layer.cycles * scale, 0.5)
        yield f"<g><title>{escape(layer.name)} ({escape(layer.operator)}): {layer.cycles:,} cycles</title>"
        yield (
            f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="14" fill="#eceff1" stroke="#90a4ae" '
            'stroke-width="0.5"/>'
        )
        fitting = int(width / 6.5)
        if fitting >= 4:
            yield f'<text x="{x + 3:.2f}" y="{y + 11}" font-size="10">{escape(layer.name[:fitting])}</text>'
        yield "</g>"
    top = _TOP + layers_height + _GAP
    for module, figures in zip(Module, report.modules, strict=True):
        y = top + module * (_LANE + _GAP)
        yield f'<text x="8" y="{y + 18}">{figures.name}</text>'
        yield f'<text x="8" y="{y + 34}" fill="#555555">{figures.utilisation:.1%}</text>'
        yield f'<rect x="{_LEFT}" y="{y}" width="{_WIDTH}" height="{_LANE}" fill="#f7f7f7"/>'
        for kind, start, end in _pieces([span for span in report.spans if span.module == module], scale):
            colour = _COLOURS.get(kind, _OTHER)
            yield (
                f'<rect x="{_LEFT + start:.2f}" y="{y}" width="{max(end - start, 0.1):.2f}" height="{_LANE}" '
                f'fill="{colour}"/>'
            )
    yield from _axis(report, top + len(Module) * (_LANE + _GAP), scale)
    yield "</svg>"


def _axis(report: CycleReport, y: int, scale: float) -> Iterator[str]:
    """Ten marks of time, and what the colours mean."""
    for mark in range(11):
        x = _LEFT + _WIDTH * mark / 10
        milliseconds = report.predicted_ms * mark / 10
        anchor = "end" if mark == 10 else "start" if mark == 0 else "middle"
        yield f'<text x="{x:.0f}" y="{y + 8}" font-size="10" text-anchor="{anchor}">{milliseconds:.2f} ms</text>'
    x = _LEFT
    used = {_kind(span.title) for span in report.spans}
    for kind, colour in _COLOURS.items():
        if kind in used:
            yield f'<rect x="{x}" y="{y + 22}" width="12" height="12" fill="{colour}"/>'
            yield f'<text x="{x + 16}" y="{y + 32}">{kind}</text>'
            x += 110


def _kind(title: str) -> str:
    return "ALU" if title.startswith("ALU ") else title


def _pieces(spans: Sequence[Span], scale: float) -> Iterator[tuple[str, float, float]]:
    """Kind, start and end in pixels; pieces of one kind that touch are one."""
    current: tuple[str, float, float] | None = None
    for span in spans:
        if span.end == span.start:
            continue
        kind, start, end = _kind(span.title), span.start * scale, span.end * scale
        if current is not None and current[0] == kind and start - current[2] < _JOIN:
            current = (kind, current[1], end)
            continue
        if current is not None:
            yield current
        current = (kind, start, end)
    if current is not None:
        yield current


def _layer_rows(report: CycleReport) -> list[tuple[int, int]]:
    """``(row, layer)``: each layer in the first row in which it overlaps no other."""
    rows: list[int] = []
    placed = []
    for number, layer in enumerate(report.layers):
        row = next((row for row, end in enumerate(rows) if end <= layer.start), len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] = layer.end
        placed.append((row, number))
    return placed
