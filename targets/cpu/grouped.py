"""Grouped convolutions with groups too narrow for vectors become ones with fewer, wider groups."""

from __future__ import annotations

import math

import numpy as np

from targets.cpu.graph import Array


def widen(weights: Array, groups: int, inputs_step: int, outputs_step: int) -> tuple[Array, int]:
    """Join neighbouring groups until each has whole steps of input and output channels.

    ``weights`` are O, I / groups, KH, KW. Joined groups see each other's inputs through zeros. All groups joined are
    an ordinary convolution, of any number of channels.
    """
    if groups == 1:
        return weights, 1
    outputs, per_group = len(weights) // groups, weights.shape[1]
    joined = math.lcm(inputs_step // math.gcd(inputs_step, per_group), outputs_step // math.gcd(outputs_step, outputs))
    joined = joined if groups % joined == 0 else groups
    if joined == 1:
        return weights, groups
    wide = np.zeros((len(weights), per_group * joined, *weights.shape[2:]), weights.dtype)
    for group in range(groups):
        rows, start = slice(group * outputs, (group + 1) * outputs), group % joined * per_group
        wide[rows, start : start + per_group] = weights[rows]
    return wide, groups // joined
