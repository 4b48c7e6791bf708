"""Default boxes of `shapes-ssd`. NumPy only: whoever decodes the committed network needs no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controller.zoo.draw import SCENE_SIZE

#: Cells along a side of each feature map, and the sides in pixels of the square default boxes in each of its cells.
#: Drawn shapes are 15 to 66 pixels; a square box matches any of them with an IoU above one half.
LEVELS: tuple[tuple[int, tuple[int, int]], ...] = ((16, (17, 23)), (8, (32, 43)), (4, (54, 66)))
BOXES_PER_CELL = 2


def default_boxes() -> npt.NDArray[np.float64]:
    """(672, 4) centre-x, centre-y, width, height in 0..1, in the outputs' order: level, row, column, box."""
    boxes = [
        ((column + 0.5) / cells, (row + 0.5) / cells, side / SCENE_SIZE, side / SCENE_SIZE)
        for cells, sides in LEVELS
        for row in range(cells)
        for column in range(cells)
        for side in sides
    ]
    return np.array(boxes)
