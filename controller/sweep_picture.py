"""A batch sweep as a picture: items a second over batch size, both logarithmic, measured and published lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from controller.printable import printable
from controller.reports import Sweep
from controller.svg import STYLE, Scale, text
from controller.sweep import series
from controller.tui.figures import rate

_WIDTH, _FIELD, _TOP = 900, 360, 70
_LEFT, _RIGHT = 70, 690
#: Measured, then published ones, which are dashed: nobody needs colours to tell them apart.
_COLOURS = ("#1a7f37", "#d4443b", "#5b8fd6", "#f0a64b", "#9aa0a6")


def picture(sweeps: Sequence[Sweep]) -> str:
    """The whole SVG document, one field below the other. There must be a sweep."""
    return "\n".join(_document(sweeps)) + "\n"


def _document(sweeps: Sequence[Sweep]) -> Iterator[str]:
    each = _TOP + _FIELD + 80
    height = each * len(sweeps)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
    )
    yield f"<style>{STYLE}</style>"
    yield '<rect class="ground" width="100%" height="100%"/>'
    for number, sweep in enumerate(sweeps):
        yield f'<g transform="translate(0 {number * each})">'
        yield from _field(sweep)
        yield "</g>"
    yield "</svg>"


def _field(sweep: Sweep) -> Iterator[str]:
    board = f"{sweep.device} (simulated)" if sweep.simulated else sweep.device
    yield text(16, 28, f"{sweep.model} on {board}: items a second by batch", "title")
    facts = f"{sweep.target}, {sweep.engine}"
    if sweep.published:
        facts += f"; dashed: published by {sweep.published.source}, on another machine"
    yield text(16, 48, facts, "faint")
    lines = series(sweep)
    bottom = _TOP + _FIELD
    up = Scale([value for line in lines.values() for value in line.values()], bottom, _TOP)
    batches = sorted({batch for line in lines.values() for batch in line})
    across = Scale([float(batch) for batch in batches], _LEFT, _RIGHT)
    for value in up.decades:
        yield f'<path class="line" d="M{_LEFT} {up(value):.1f}H{_RIGHT}"/>'
        yield text(_LEFT - 6, up(value) + 4, f"{value:g}", "faint", "end")
    for batch in batches:
        yield f'<path class="line" d="M{across(batch):.1f} {bottom}V{_TOP}"/>'
        yield text(across(batch), bottom + 16, str(batch), "faint", "middle")
    yield text(_RIGHT, bottom + 36, "batch", "faint", "end")
    free: list[float] = []
    for (name, line), colour in zip(lines.items(), _repeated(len(lines)), strict=True):
        points = [(across(batch), up(value), batch, value) for batch, value in sorted(line.items())]
        dash = "" if name == "measured" else ' stroke-dasharray="5 4"'
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for x, y, batch, value in points:
            hover = f"<title>{escape(printable(f'{name}, batch {batch}: {rate(value)} a second'))}</title>"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{hover}</circle>'
        # Names beside the ends of their lines, moved down where they would lie on one another.
        place = points[-1][1] + 4
        while any(abs(place - other) < 15 for other in free):
            place += 15
        free.append(place)
        yield text(_RIGHT + 12, place, f"{name}: {rate(points[-1][3])}/s at {points[-1][2]}")


def _repeated(count: int) -> list[str]:
    return [_COLOURS[0], *(_COLOURS[1 + number % (len(_COLOURS) - 1)] for number in range(count - 1))]
