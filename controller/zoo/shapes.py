"""The twelve shapes that the two small networks tell apart, as outlines, and how an outline becomes pixels.

NumPy computes it all from an analytic signed distance: pictures do not depend on a drawing library's version.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CLASSES = (
    "circle",
    "square",
    "triangle",
    "pentagon",
    "hexagon",
    "star",
    "cross",
    "arrow",
    "diamond",
    "heart",
    "crescent",
    "ring",
)

#: Sides of the polygon that stands for a round edge: at a radius of 32 pixels it is off by 0.07 pixels.
_ROUND = 48


def _on_circle(angles: npt.NDArray[Any], radius: float | Floats = 1.0) -> Floats:
    return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=-1)


def _regular(sides: int) -> Floats:
    return _on_circle(np.arange(sides) * (2 * np.pi / sides))


def _star() -> Floats:
    return _on_circle(np.arange(10) * (np.pi / 5), np.where(np.arange(10) % 2 == 0, 1.0, 0.45))


def _cross() -> Floats:
    a, b = 0.95, 0.3
    return np.array(
        [(a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b), (-b, -a), (b, -a), (b, -b)]
    )


def _arrow() -> Floats:
    return np.array([(1, 0), (0.15, 0.75), (0.15, 0.28), (-0.95, 0.28), (-0.95, -0.28), (0.15, -0.28), (0.15, -0.75)])


def _heart() -> Floats:
    t = np.arange(_ROUND) * (2 * np.pi / _ROUND)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -(y + 2.5)], axis=-1) / 17.0


def _crescent() -> Floats:
    """The unit circle less a circle of radius 0.85 whose centre is 0.5 to the right; between the two crossings."""
    shift, radius = 0.5, 0.85
    x = (1 + shift**2 - radius**2) / (2 * shift)
    outer = np.arccos(x)
    inner = np.arctan2(np.sqrt(1 - x * x), x - shift)
    back = _on_circle(np.linspace(outer, 2 * np.pi - outer, _ROUND))
    front = _on_circle(np.linspace(2 * np.pi - inner, inner, _ROUND // 2), radius)
    front[:, 0] += shift
    return np.concatenate([back, front[1:-1]])


@cache
def contours(name: str) -> tuple[Floats, ...]:
    """Closed contours of a shape inside the unit circle, each (points, 2) as x, y; a second contour is a hole."""
    if name == "ring":
        return _regular(_ROUND), _regular(_ROUND) * 0.58
    one: Floats = {
        "circle": lambda: _regular(_ROUND),
        "square": lambda: _regular(4),
        "triangle": lambda: _regular(3),
        "pentagon": lambda: _regular(5),
        "hexagon": lambda: _regular(6),
        "star": _star,
        "cross": _cross,
        "arrow": _arrow,
        "diamond": lambda: _regular(4) * (1.0, 0.5),
        "heart": _heart,
        "crescent": _crescent,
    }[name]()
    return (one,)


def place(name: str, centre: tuple[float, float], radius: float, angle: float, stretch: float) -> tuple[Floats, ...]:
    """Contours in pixels: stretched along the shape's own x axis, turned by ``angle`` radians, scaled and moved."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([(c, s), (-s, c)]) * radius
    return tuple((points * (stretch, 1 / stretch)) @ turn + centre for points in contours(name))


def bounds(placed: tuple[Floats, ...]) -> tuple[float, float, float, float]:
    """The tight box around placed contours: x0, y0, x1, y1 in pixels."""
    x0, y0 = placed[0].min(axis=0)
    x1, y1 = placed[0].max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def signed_distance(placed: tuple[Floats, ...], x: Floats, y: Floats) -> Floats:
    """Distance in pixels of the points (``x``, ``y``) to the nearest edge, negative inside (even-odd rule)."""
    start = np.concatenate(placed)
    end = np.concatenate([np.roll(points, -1, axis=0) for points in placed])
    ax, ay = start[:, 0, None], start[:, 1, None]
    ex, ey = end[:, 0, None] - ax, end[:, 1, None] - ay
    shape = x.shape
    px, py = x.ravel()[None, :] - ax, y.ravel()[None, :] - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    squared = np.square(px - along * ex) + np.square(py - along * ey)
    crosses = ((py >= 0) != (py - ey >= 0)) & ((px * ey < ex * py) == (ey > 0))
    inside = crosses.sum(axis=0) % 2 == 1
    distance = np.sqrt(squared.min(axis=0))
    result: Floats = np.where(inside, -distance, distance).reshape(shape)
    return result
