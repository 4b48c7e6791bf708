"""Softmax, log-softmax and layer norm of plain tensors: vectors along what lies next to each other in memory.

Along the last axis a row is one thread's, and its vectors are reduced at the end; along another axis every lane has a
row of its own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, flat, kernel, ramp, registers, splat
from targets.cpu.kernels.jobs import jobs
from targets.cpu.kernels.program import OPERATORS

Expr = Any
#: Vectors beside each other: a sum waits for the one before, and a line of the cache may be four vectors.
ABREAST = 4
LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax of a plain float32 tensor along ``axis`` (from the front), or its logarithm."""

    shape: tuple[int, ...]
    axis: int
    lanes: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift`` of a plain float32 tensor over its last axes.

    ``axes`` is how many; scale and shift have their shape.
    """

    shape: tuple[int, ...]
    axes: int
    epsilon: float
    lanes: int


def softmax(spec: Softmax, name: str) -> Any:
    """Arguments: x, y."""
    along_rows = math.prod(spec.shape[spec.axis + 1 :]) == 1
    return kernel(name, lambda: _along_rows(spec) if along_rows else _across_rows(spec))


def _exp(value: Expr, lanes: int) -> Expr:
    return OPERATORS["exp"]([value], lanes)


def _along_rows(spec: Softmax) -> None:
    length = spec.shape[spec.axis]
    count = math.prod(spec.shape[: spec.axis])
    x, y = flat(argument("x", spec.shape), argument("y", spec.shape))
    vectors = _Row(length, spec.lanes)
    with jobs(count, 8 * count * length) as row:

        def at(start: Expr, lanes: int) -> Expr:
            return ramp(row * length + start, lanes)

        def power(start: Expr, lanes: int) -> Expr:
            value = T.bind(_exp(x[at(start, lanes)] - splat(highest, lanes), lanes))
            if not spec.log:
                T.buffer_store(y, value, [at(start, lanes)])
            return value

        def finish(start: Expr, lanes: int, _: int) -> None:
            value = x[at(start, lanes)] - splat(last, lanes) if spec.log else y[at(start, lanes)] * splat(last, lanes)
            T.buffer_store(y, value, [at(start, lanes)])

        highest = vectors.fold(tirx.max, LOWEST, lambda start, lanes: x[at(start, lanes)])
        total = vectors.fold(operator.add, 0.0, power)
        last = T.bind(highest + T.log(total) if spec.log else splat(1.0, 1) / total)
        vectors.each(finish)


def _across_rows(spec: Softmax) -> None:
    length, inner = spec.shape[spec.axis], math.prod(spec.shape[spec.axis + 1 :])
    outer = math.prod(spec.shape[: spec.axis])
    lanes = min(spec.lanes, 1 << inner.bit_length() - 1)
    vectors = min(ABREAST, inner // lanes)
    strips = -(-inner // (vectors * lanes))
    x, y = flat(argument("x", spec.shape), argument("y", spec.shape))
    with jobs(outer * strips, 8 * outer * length * inner) as job:
        # The last strip is moved back so that it ends with the tensor.
        first = job // strips * (length * inner) + tirx.min(job % strips * (vectors * lanes), inner - vectors * lanes)
        whole = ramp(0, lanes)
        highest, total = registers(vectors, lanes), registers(vectors, lanes)

        def each(step: Callable[[int, Expr], None]) -> None:
            with T.serial(0, length) as position:
                for vector in range(vectors):
                    step(vector, ramp(first + position * inner + vector * lanes, lanes))

        def raise_highest(vector: int, at: Expr) -> None:
            T.buffer_store(highest[vector], tirx.max(highest[vector][whole], x[at]), [whole])

        def power(vector: int, at: Expr) -> None:
            value = T.bind(_exp(x[at] - highest[vector][whole], lanes))
            if not spec.log:
                T.buffer_store(y, value, [at])
            T.buffer_store(total[vector], total[vector][whole] + value, [whole])

        def finish(vector: int, at: Expr) -> None:
            last = total[vector][whole]
            T.buffer_store(y, x[at] - last if spec.log else y[at] * last, [at])

        for vector in range(vectors):
            T.buffer_store(highest[vector], splat(LOWEST, lanes), [whole])
            T.buffer_store(total[vector], splat(0.0, lanes), [whole])
        each(raise_highest)
        each(power)
        for vector in range(vectors):
            top, sums = highest[vector][whole], total[vector][whole]
            T.buffer_store(total[vector], top + T.log(sums) if spec.log else splat(1.0, lanes) / sums, [whole])
        each(finish)


def layer_norm(spec: LayerNorm, name: str) -> Any:
    """Arguments: x, scale, shift, y."""
    split = len(spec.shape) - spec.axes
    length, count = math.prod(spec.shape[split:]), math.prod(spec.shape[:split])

    def body() -> None:
        shapes = {"x": spec.shape, "scale": spec.shape[split:], "shift": spec.shape[split:], "y": spec.shape}
        x, scale, shift, y = flat(*(argument(*item) for item in shapes.items()))
        vectors = _Row(length, spec.lanes)
        with jobs(count, 8 * count * length) as row:

            def centred(start: Expr, lanes: int) -> Expr:
                return x[ramp(row * length + start, lanes)] - splat(mean, lanes)

            def square(start: Expr, lanes: int) -> Expr:
                return centred(start, lanes) * centred(start, lanes)

            def finish(start: Expr, lanes: int, _: int) -> None:
                here = ramp(start, lanes)
                value = centred(start, lanes) * splat(factor, lanes) * scale[here] + shift[here]
                T.buffer_store(y, value, [ramp(row * length + start, lanes)])

            total = vectors.fold(operator.add, 0.0, lambda start, lanes: x[ramp(row * length + start, lanes)])
            mean = T.bind(total / splat(float(length), 1))
            # In two passes: a mean of squares less a squared mean loses what they have in common.
            variance = vectors.fold(operator.add, 0.0, square) / splat(float(length), 1)
            factor = T.bind(splat(1.0, 1) / T.sqrt(variance + splat(spec.epsilon, 1)))
            vectors.each(finish)

    return kernel(name, body)


class _Row:
    """So many numbers in vectors: several abreast, then single ones, then ever shorter ones."""

    def __init__(self, length: int, lanes: int) -> None:
        self._length = length
        self._lanes = lanes

    def each(self, step: Callable[[Expr, int, int], None]) -> None:
        """Build ``step(start, lanes, place)`` for all vectors, in a loop where there are many.

        Whole vectors have the places 0 to `ABREAST` - 1, shorter ones the next.
        """
        lanes = self._lanes
        wide, single = divmod(self._length // lanes, ABREAST)
        if wide:
            with T.serial(0, wide) as index:
                for place in range(ABREAST):
                    step((index * ABREAST + place) * lanes, lanes, place)
        done = wide * ABREAST * lanes
        for place in range(single):
            step(done + place * lanes, lanes, place)
        done += single * lanes
        while done < self._length:
            lanes //= 2
            if self._length - done >= lanes:
                step(done, lanes, ABREAST)
                done += lanes

    def fold(self, join: Callable[[Expr, Expr], Expr], neutral: float, value: Callable[[Expr, int], Expr]) -> Expr:
        """All numbers joined to one; ``value(start, lanes)`` is a vector of them."""
        width = self._lanes
        places = registers(ABREAST + 1, width)
        for place in places:
            T.buffer_store(place, splat(neutral, width), [ramp(0, width)])

        def step(start: Expr, lanes: int, place: int) -> None:
            at = ramp(0, lanes)
            T.buffer_store(places[place], join(places[place][at], value(start, lanes)), [at])

        self.each(step)
        result = functools.reduce(join, (place[ramp(0, width)] for place in places))
        while width > 1:
            result = T.bind(result)
            width //= 2
            low, high = (tirx.Shuffle([result], list(range(first, first + width))) for first in (0, width))
            result = join(low, high)
        return T.bind(result)
