"""A profile as a picture: the operators in the order of the network, and how each stands below the machine's roofline.

The SVG needs nothing but itself, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from controller.printable import printable
from controller.reports import OperatorReport, ProfileReport
from controller.roofline import roof, shape, title
from controller.svg import STYLE, Scale, text
from controller.tui.figures import milliseconds

_WIDTH = 1160
#: Where the bars begin, how long the longest is, and what a row takes.
_LEFT, _BAR, _ROW = 330, 500, 20
_TOP = 100
#: The roofline's field.
_FIELD_HEIGHT, _FIELD_TOP = 300, 60
#: Characters that fit before the bars.
_TITLE = 34
#: From which share of the peak on, colour, words. The hues differ in brightness too.
_BANDS = (
    (0.75, "#1a9850", "75 % of the peak or more"),
    (0.5, "#91c45f", "50 to 75 %"),
    (0.25, "#f0a64b", "25 to 50 %"),
    (0.0, "#d4443b", "below 25 %"),
)
_MEMORY = ("#5b8fd6", "bound by memory")
_NOTHING = ("#9aa0a6", "nothing multiplied")


def picture(report: ProfileReport) -> str:
    """The whole SVG document."""
    return "\n".join(_document(report)) + "\n"


def _document(report: ProfileReport) -> Iterator[str]:
    rows_end = _TOP + len(report.operators) * _ROW
    height = rows_end + 40 + _FIELD_TOP + _FIELD_HEIGHT + 60
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
    )
    yield f"<style>{STYLE}</style>"
    yield '<rect class="ground" width="100%" height="100%"/>'
    board = f"{report.device} (simulated)" if report.simulated else report.device
    yield text(16, 28, f"{report.model} on {board}: {milliseconds(report.query_ms)} ms a query", "title")
    facts = f"{report.target}, {report.threads} threads; this machine's measured peak is {report.peak_gflops:.0f} "
    facts += f"GFLOP/s, its memory's {report.memory_gbytes_per_second:.1f} GB/s"
    yield text(16, 48, facts, "faint")
    yield from _legend(16, 70)
    yield from _bars(report)
    yield from _roofline(report, rows_end + 40)
    yield "</svg>"


def _legend(x: float, y: float) -> Iterator[str]:
    for colour, words in (*((colour, words) for _, colour, words in _BANDS), _MEMORY, _NOTHING):
        yield f'<rect x="{x:.0f}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
        yield text(x + 17, y, words, "faint")
        x += 40 + 6.6 * len(words)


def _bars(report: ProfileReport) -> Iterator[str]:
    longest = max((one.ms for one in report.operators), default=0.0) or 1.0
    for number, one in enumerate(report.operators):
        y = _TOP + number * _ROW
        width = max(one.ms / longest * _BAR, 0.5)
        yield f"<g>{_hover(one)}"
        yield text(40, y + 14, str(number + 1), "faint", "end")
        name = title(one)
        yield text(50, y + 14, name if len(name) <= _TITLE else name[: _TITLE - 1] + "…")
        yield text(_LEFT - 8, y + 14, shape(one), "faint", "end")
        yield f'<rect x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" fill="{_colour(one)}"/>'
        figures = f"{milliseconds(one.ms)} ms, {one.share:.1%}"
        figures += f"; {one.gflops:.0f} GFLOP/s, {one.peak_share:.0%}" if one.flops else ""
        figures += "" if one.bound == "compute" else f"; {one.gbytes_per_second:.1f} GB/s"
        yield text(_LEFT + width + 6, y + 14, figures, "faint")
        yield "</g>"


def _roofline(report: ProfileReport, top: int) -> Iterator[str]:
    """Operators that multiply, by operations a byte and GFLOP/s, both logarithmic, below what the machine can do."""
    yield text(16, top + 20, "Against the roofline", "title")
    points = [one for one in report.operators if one.flops and one.bytes and one.gflops > 0]
    ridge = report.peak_gflops / report.memory_gbytes_per_second
    across = Scale([ridge, *(one.flops / one.bytes for one in points)], 60, _WIDTH - 80)
    y0, y1 = top + _FIELD_TOP + _FIELD_HEIGHT, top + _FIELD_TOP
    up = Scale([report.peak_gflops, *(one.gflops for one in points)], y0, y1)
    for value in across.decades:
        x = across(value)
        yield f'<path class="line" d="M{x:.1f} {y0}V{y1}"/>'
        yield text(x, y0 + 16, f"{value:g}", "faint", "middle")
    for value in up.decades:
        y = up(value)
        yield f'<path class="line" d="M60 {y:.1f}H{_WIDTH - 80}"/>'
        yield text(54, y + 4, f"{value:g}", "faint", "end")
    yield text(_WIDTH - 80, y0 + 34, "floating-point operations a byte", "faint", "end")
    yield text(16, y1 - 14, "GFLOP/s", "faint")
    # The roof's corners, as far as they are in the field: memory's slope begins where it crosses the lower edge.
    start = max(across.low, up.low / report.memory_gbytes_per_second)
    corners = [(x, roof(x, report)) for x in (start, max(ridge, start), across.high)]
    path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in corners)
    yield f'<path class="roof" d="M{path}"/>'
    yield text(_WIDTH - 84, up(report.peak_gflops) - 6, f"peak {report.peak_gflops:.0f} GFLOP/s", "", "end")
    most = max((one.ms for one in points), default=0.0) or 1.0
    # Large ones first, so that they hide none.
    for one in sorted(points, key=lambda one: -one.ms):
        radius = 3 + 11 * math.sqrt(one.ms / most)
        yield (
            f'<circle cx="{across(one.flops / one.bytes):.1f}" cy="{up(one.gflops):.1f}" r="{radius:.1f}" '
            f'fill="{_colour(one)}" fill-opacity="0.75">{_hover(one)}</circle>'
        )


def _colour(one: OperatorReport) -> str:
    if not one.flops:
        return _NOTHING[0]
    if one.bound == "memory":
        return _MEMORY[0]
    return next(colour for least, colour, _ in _BANDS if one.peak_share >= least)


def _hover(one: OperatorReport) -> str:
    words = f"{one.kernel}: {title(one)}, {shape(one)}; {one.choice or 'no choice is known'}"
    return f"<title>{escape(printable(words))}</title>"
