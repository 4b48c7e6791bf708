"""The transforms of Winograd's minimal filtering F(m, 3) in one dimension, written with the fewest operations.

Lavin and Gray 2016 (arXiv:1509.09308): m outputs of a 3-tap filter take m + 2 multiplications of transformed inputs
with transformed weights. The points are 0, ±1 (and ±2 for m = 4) and infinity. Even and odd terms are shared between
the two signs of a point, so most of each transform is additions.

They work on anything that adds and multiplies: vectors of a kernel, numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Value = Any
Transform = Callable[[Sequence[Value]], list[Value]]
#: Gives a name to an intermediate value that is used more than once, so that it is computed once.
Keep = Callable[[Value], Value]


def inputs(m: int, d: Sequence[Value], keep: Keep = lambda value: value) -> list[Value]:
    """m + 2 neighbouring inputs to m + 2 transformed ones."""
    if m == 2:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    even, odd = keep(d[4] - d[2] * 4.0), keep(d[3] - d[1] * 4.0)
    even2, odd2 = keep(d[4] - d[2]), keep((d[3] - d[1]) * 2.0)
    return [
        d[0] * 4.0 - d[2] * 5.0 + d[4],
        even + odd,
        even - odd,
        even2 + odd2,
        even2 - odd2,
        d[1] * 4.0 - d[3] * 5.0 + d[5],
    ]


def weights(m: int, g: Sequence[Value], keep: Keep = lambda value: value) -> list[Value]:
    """Three weights to m + 2 transformed ones."""
    if m == 2:
        even, odd = keep((g[0] + g[2]) * 0.5), keep(g[1] * 0.5)
        return [g[0], even + odd, even - odd, g[2]]
    even, odd = keep((g[0] + g[2]) * (-1 / 6)), keep(g[1] * (1 / 6))
    even2, odd2 = keep(g[0] * (1 / 24) + g[2] * (1 / 6)), keep(g[1] * (1 / 12))
    return [g[0] * 0.25, even - odd, even + odd, even2 + odd2, even2 - odd2, g[2]]


def outputs(m: int, p: Sequence[Value], keep: Keep = lambda value: value) -> list[Value]:
    """m + 2 products to m outputs."""
    if m == 2:
        return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
    sum1, difference1 = keep(p[1] + p[2]), keep(p[1] - p[2])
    sum2, difference2 = keep(p[3] + p[4]), keep(p[3] - p[4])
    return [
        p[0] + sum1 + sum2,
        difference1 + difference2 * 2.0,
        sum1 + sum2 * 4.0,
        difference1 + difference2 * 8.0 + p[5],
    ]
