"""A transposed convolution as a convolution that gives a result's pixels apart, by where they lie within a stride.

Pixels of the result whose places leave the same rest when divided by the stride are one ordinary convolution of the
input, by some of the weights. All these have a window in common, so together they are one convolution, whose channels
are the result's as often as there are rests; :mod:`targets.cpu.kernels.interleave` puts the pixels in their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.cpu.graph import Array, Convolution
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.interleave import PADDED
from targets.cpu.layout import Shape


@dataclass(frozen=True, slots=True)
class Apart:
    """``work`` gives ``shape``: the pixels of each rest, rests row by row, each with whole blocks of channels."""

    work: Convolution
    shape: Shape


def apart(
    weights: Array,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    x: Shape,
    y: Shape,
) -> Apart:
    """The convolution for a transposed one: ``weights`` are I, O, KH, KW, padding is top, left, bottom, right."""
    inputs, outputs, *kernel = weights.shape
    taps = [_taps(*each) for each in zip(kernel, stride, padding[:2], dilation, strict=True)]
    first, last = (
        [pick([0, *(offset for of_rest in each for _, offset in of_rest)]) for each in taps] for pick in (min, max)
    )
    size = (last[0] - first[0] + 1, last[1] - first[1] + 1)
    # A stride of one leaves pixels where they are: nothing is put anywhere.
    padded = outputs if stride == (1, 1) else -(-outputs // PADDED) * PADDED
    found = np.zeros((stride[0], stride[1], padded, inputs, *size), np.float32)
    for row, of_row in enumerate(taps[0]):
        for column, of_column in enumerate(taps[1]):
            for ky, at_y in of_row:
                for kx, at_x in of_column:
                    found[row, column, :outputs, :, at_y - first[0], at_x - first[1]] += weights[:, :, ky, kx].T
    rows, columns = (-(-y[2 + axis] // stride[axis]) for axis in (0, 1))
    top, left = -first[0], -first[1]
    bottom, right = max(0, rows - x[2] + last[0]), max(0, columns - x[3] + last[1])
    channels = stride[0] * stride[1] * padded
    window = Window(size, padding=(top, left, bottom, right))
    return Apart(Convolution(found.reshape(channels, inputs, *size), window), (x[0], channels, rows, columns))


def _taps(kernel: int, stride: int, before: int, dilation: int) -> list[list[tuple[int, int]]]:
    """For each rest, which weights count, and by how much their input lies further than the result's place says."""
    distances = [[(k, rest + before - k * dilation) for k in range(kernel)] for rest in range(stride)]
    return [[(k, distance // stride) for k, distance in each if distance % stride == 0] for each in distances]
