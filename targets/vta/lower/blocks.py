"""Weights as the accelerator wants them: blocks of output × input channels, those that are all zero left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def weight_blocks(weight: npt.NDArray[np.int8], groups: int, block: int) -> npt.NDArray[np.int8]:
    """(O, I/groups, kh, kw) as (O/block, I/block, kh, kw, block, block): zeros where channels do not meet."""
    outputs, per_group, kh, kw = weight.shape
    inputs = per_group * groups
    co, ci = -(-outputs // block), -(-inputs // block)
    whole = np.zeros((co * block, ci * block, kh, kw), np.int8)
    step = outputs // groups
    for group in range(groups):
        whole[group * step : (group + 1) * step, group * per_group : (group + 1) * per_group] = weight[
            group * step : (group + 1) * step
        ]
    return np.ascontiguousarray(whole.reshape(co, block, ci, block, kh, kw).transpose(0, 2, 4, 5, 1, 3))


def block_mask(outputs: int, inputs: int, groups: int, block: int) -> bytes:
    """Which pairs of an output and an input block share a group, row by row of output blocks, one byte each."""
    co, ci = -(-outputs // block), -(-inputs // block)
    mask = np.zeros((co, ci), np.uint8)
    for group in range(groups):
        rows = slice(group * outputs // groups // block, -(-(group + 1) * outputs // groups // block))
        columns = slice(group * inputs // groups // block, -(-(group + 1) * inputs // groups // block))
        mask[rows, columns] = 1
    return mask.tobytes()


def identity_block(block: int, value: int) -> npt.NDArray[np.int8]:
    """A weight block that multiplies each channel with ``value``."""
    return np.diag(np.full(block, value, np.int8))
