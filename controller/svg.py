"""What the SVG pictures have in common: one style that follows the reader's choice of light or dark, text, an axis."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from controller.printable import printable

STYLE = """
text { font-family: sans-serif; font-size: 12px; fill: #1f2328; }
text.title { font-size: 16px; font-weight: bold; }
text.faint { fill: #656d76; }
.ground { fill: #ffffff; }
.line { stroke: #d0d7de; fill: none; }
.roof { stroke: #1f2328; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  text.faint { fill: #8d96a0; }
  .ground { fill: #0d1117; }
  .line { stroke: #30363d; }
  .roof { stroke: #e6edf3; }
}
"""


class Scale:
    """A logarithmic axis of whole decades that holds ``values``, from one place of the picture to another."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self._first = math.floor(math.log10(min(values)))
        self._last = max(math.ceil(math.log10(max(values) * 1.05)), self._first + 1)
        self._start, self._end = start, end

    @property
    def low(self) -> float:
        return 10.0**self._first

    @property
    def high(self) -> float:
        return 10.0**self._last

    @property
    def decades(self) -> list[float]:
        return [10.0**power for power in range(self._first, self._last + 1)]

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._first) / (self._last - self._first)
        return self._start + share * (self._end - self._start)


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    attributes = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(printable(words))}</text>'
