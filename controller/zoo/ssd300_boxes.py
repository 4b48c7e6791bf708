"""Default boxes of the SSD300 networks (Liu et al. 2016, arXiv:1512.02325). NumPy only: decoding needs no torch."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SIZE = 300


class Level(NamedTuple):
    """A feature map: ``cells`` along a side, ``step`` pixels apart; sides of its own square boxes and of the next
    level's in pixels; and which aspect ratios there are besides 1, each of them lying and standing."""

    cells: int
    step: int
    side: int
    next_side: int
    ratios: tuple[int, ...]

    @property
    def boxes(self) -> int:
        """Default boxes in each cell."""
        return 2 + 2 * len(self.ratios)


#: The levels of SSD300 for COCO; MLPerf, NVIDIA and torchvision have the same.
LEVELS = (
    Level(38, 8, 21, 45, (2,)),
    Level(19, 16, 45, 99, (2, 3)),
    Level(10, 32, 99, 153, (2, 3)),
    Level(5, 64, 153, 207, (2, 3)),
    Level(3, 100, 207, 261, (2,)),
    Level(1, 300, 261, 315, (2,)),
)


def dboxes300_coco() -> Floats:
    """(8732, 4) centre-x, centre-y, width, height in 0..1, in MLPerf's and NVIDIA's order: level, shape, row, column.

    All four are clamped: the last cells of the third level have their centres outside the picture.
    """
    return np.clip(_every([_grid(level) for level in LEVELS]), 0, 1)


def torchvision_boxes() -> Floats:
    """(8732, 4) the same boxes in torchvision's order: level, row, column, shape. Only sizes are clamped."""
    boxes = _every([_grid(level).transpose(1, 2, 0, 3) for level in LEVELS])
    boxes[:, 2:] = np.clip(boxes[:, 2:], 0, 1)
    return boxes


def _every(grids: list[Floats]) -> Floats:
    return np.concatenate([grid.reshape(-1, 4) for grid in grids])


def _grid(level: Level) -> Floats:
    """(shapes, rows, columns, 4)"""
    side, middle = level.side / SIZE, math.sqrt(level.side * level.next_side) / SIZE
    shapes = [(side, side), (middle, middle)]
    for ratio in level.ratios:
        longer, shorter = side * math.sqrt(ratio), side / math.sqrt(ratio)
        shapes += [(longer, shorter), (shorter, longer)]
    centres = (np.arange(level.cells) + 0.5) * level.step / SIZE
    grid = np.empty((level.boxes, level.cells, level.cells, 4))
    grid[..., 0] = centres
    grid[..., 1] = centres[:, None]
    grid[..., 2:] = np.array(shapes)[:, None, None]
    return grid
