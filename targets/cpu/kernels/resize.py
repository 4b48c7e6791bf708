"""Resizing of blocked pictures: the nearest pixel, or a mixture of four.

Where a row or column lies in the input is computed once, when the model is built, and handed to the kernel as tables:
it loads, multiplies and stores whole vectors, and rounds exactly as the framework did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, argument, kernel, splat
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.layout import ImageType

Expr = Any
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Resize:
    """``y`` is ``x`` in another height and width; the words are those of ``relax.op.image.resize2d``."""

    x: ImageType
    y: ImageType
    #: ``nearest_neighbor`` or ``linear``.
    method: str
    #: ``half_pixel``, ``pytorch_half_pixel``, ``align_corners``, ``asymmetric`` or ``tf_half_pixel_for_nn``.
    coordinates: str
    #: Of ``nearest_neighbor``: ``round``, ``round_prefer_floor``, ``round_prefer_ceil``, ``floor`` or ``ceil``; empty:
    #: ``round`` with ``align_corners``, else ``floor``.
    rounding: str = ""


def tables(spec: Resize) -> tuple[npt.NDArray[Any], ...]:
    """What the kernel reads after x: for each row and then each column of y where it lies in x, as int32.

    For ``linear`` that is two places, H + W times 2, and a table of the second one's weights follows. Raises ValueError
    for words that are not known.
    """
    axes = [_axis(x, y, spec) for x, y in zip(spec.x.shape[2:], spec.y.shape[2:], strict=True)]
    places = np.concatenate([axis[0] for axis in axes]).astype(np.int32)
    weights = np.concatenate([axis[1] for axis in axes])
    return (places, weights) if spec.method == "linear" else (places,)


def resize(spec: Resize, name: str) -> Any:
    """Arguments: x, :func:`tables`, y. Raises ValueError when y is no resized x, or for a method not known."""
    (batch, channels, _, _), lanes = spec.x.shape, spec.x.layout.block
    _, _, height, width = spec.y.shape
    if spec.y.shape[:2] != (batch, channels) or spec.y.layout.block != lanes:
        raise ValueError(f"{spec.y} is no resized {spec.x}")
    if spec.method not in ("nearest_neighbor", "linear"):
        raise ValueError(f"no kernel resizes by '{spec.method}'")
    linear = spec.method == "linear"
    blocks = spec.x.blocks
    rows = rows_per_job(spec.y, height, blocks)
    strips = height // rows

    def body() -> None:
        x = Image.argument("x", spec.x)
        places = argument("places", (height + width, 2) if linear else (height + width,), "int32")
        weights: Any = argument("weights", (height + width,)) if linear else None
        y = Image.argument("y", spec.y)

        with jobs(batch * blocks * strips, size_bytes(spec.x) + 2 * size_bytes(spec.y)) as job:
            n, block, strip = split_job(job, spec.y, blocks, strips)
            first = strip * rows

            def nearest(row: Expr) -> None:
                y_place = T.bind(places[row])
                with T.serial(0, width) as column:
                    y.put(n, block, row, column, x.vector(n, block, y_place, places[height + column]))

            def mixed(row: Expr) -> None:
                upper, lower = T.bind(places[row, 0]), T.bind(places[row, 1])
                down = T.bind(splat(weights[row], lanes))
                with T.serial(0, width) as column:
                    left, right = T.bind(places[height + column, 0]), T.bind(places[height + column, 1])
                    across = T.bind(splat(weights[height + column], lanes))

                    def mix(a: Expr, b: Expr, weight: Expr) -> Expr:
                        return T.bind(a * (splat(1.0, lanes) - weight) + b * weight)

                    over = mix(x.vector(n, block, upper, left), x.vector(n, block, upper, right), across)
                    under = mix(x.vector(n, block, lower, left), x.vector(n, block, lower, right), across)
                    y.put(n, block, row, column, mix(over, under, down))

            with T.serial(0, rows) as r:
                (mixed if linear else nearest)(first + r)
            y.clear_border(n, block, first, rows)

    return kernel(name, body)


def _axis(size: int, to: int, spec: Resize) -> tuple[npt.NDArray[np.int64], Floats]:
    """For each pixel along an axis its places in the input, and the second place's weight."""
    place = _coordinates(size, to, spec.coordinates)
    if spec.method == "linear":
        lower = np.floor(place)
        both = np.stack([lower, lower + 1], axis=1).astype(np.int64)
        return both.clip(0, size - 1), (place - lower).astype(np.float32)
    return _rounded(place, spec).astype(np.int64).clip(0, size - 1), np.zeros(0, np.float32)


def _coordinates(size: int, to: int, words: str) -> Floats:
    """Where each pixel lies among the input's pixels, in the precision and order of operations of the frameworks."""
    one, half = np.float32(1), np.float32(0.5)
    at: Floats = np.arange(to, dtype=np.float32)
    scale = np.float32(size) / np.float32(to)
    ways: dict[str, Callable[[], Floats]] = {
        "half_pixel": lambda: (at + half) * scale - half,
        "pytorch_half_pixel": lambda: (at + half) * scale - half if to > 1 else at,
        "align_corners": lambda: at * ((np.float32(size) - one) / (np.float32(to) - one)) if to > 1 else at,
        "asymmetric": lambda: at * scale,
        "tf_half_pixel_for_nn": lambda: (at + half) * scale,
    }
    if words not in ways:
        raise ValueError(f"coordinates '{words}' are not known")
    return ways[words]()


def _rounded(place: Floats, spec: Resize) -> Floats:
    half = np.float32(0.5)
    ways: dict[str, Callable[[], Floats]] = {
        # Halves away from zero.
        "round": lambda: np.copysign(np.floor(np.abs(place) + half), place),
        "round_prefer_floor": lambda: np.ceil(place - half),
        "round_prefer_ceil": lambda: np.floor(place + half),
        # A place that should be whole may be a little less, or more, in single precision.
        "floor": lambda: np.floor(place + np.float32(1e-5)),
        "ceil": lambda: np.ceil(place - np.float32(1e-5)),
    }
    rounding = spec.rounding or ("round" if spec.coordinates == "align_corners" else "floor")
    if rounding not in ways:
        raise ValueError(f"rounding '{rounding}' is not known")
    return ways[rounding]()
