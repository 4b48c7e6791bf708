"""Pictures with the statistics of photographs, drawn from a seed: what ImageNet's networks are calibrated and tried on.

Nobody's photographs can be committed here. These are "dead leaves" (Lee, Mumford and Huang 2001, Occlusion models for
natural images): discs of all sizes that hide one another, their number falling with the cube of the radius, each with a
shade and a grain, which gives edges, plain areas and the 1/f² spectrum of natural pictures. They show nothing that a
network could name.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE = 256
LEAVES = 1500
SMALLEST, LARGEST = 3.0, 110.0
#: Grain of a leaf, standard deviation in grey levels.
GRAIN = 9.0


def picture(seed: int, index: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    """(size, size, 3) RGB, a pure function of its arguments: RandomState's stream is frozen across NumPy versions."""
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, index))))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = random.uniform(0, 255, 3)
    # By the inverse of the cumulated density of radii, which is r^-3 between smallest and largest.
    low, high = SMALLEST**-2, LARGEST**-2
    radii = (low + random.uniform(size=LEAVES) * (high - low)) ** -0.5
    for radius in radii:
        row, column = random.uniform(-radius, size + radius, 2)
        # Of one light and a weak tint: photographs are rarely saturated.
        colour = random.uniform(10, 245) + random.normal(0, 30, 3)
        slope = random.normal(0, 0.4, 2)
        top, left = int(max(row - radius, 0)), int(max(column - radius, 0))
        part = (slice(top, max(int(row + radius) + 1, 0)), slice(left, max(int(column + radius) + 1, 0)))
        down, right = rows[part] - row, columns[part] - column
        inside = down**2 + right**2 <= radius**2
        shade = (slope[0] * down + slope[1] * right)[inside]
        canvas[part][inside] = colour + shade[:, None]
    canvas += random.normal(0, GRAIN, (size, size, 1))
    return np.clip(canvas, 0, 255).astype(np.uint8)
