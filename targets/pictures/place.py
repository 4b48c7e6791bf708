"""Where a picture comes to lie in a model's input, and back: the arithmetic of resizing, cropping and filling up."""

from __future__ import annotations

import math
from typing import NamedTuple

from targets.base import FleetError, Preprocess

#: More than any camera on an edge board takes; at three bytes a pixel this is 192 MB of memory.
MAX_PIXELS = 64_000_000


class Place(NamedTuple):
    """A picture of ``original`` size is resized to ``resized``; from the pixel ``corner`` on, ``kept`` of it is the
    input's upper left; the input is ``canvas``. All are (width, height) or (x, y) in pixels.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    kept: tuple[int, int]
    canvas: tuple[int, int]


def place(size: tuple[int, int], preprocess: Preprocess) -> Place:
    """Where a picture of ``size`` (width, height) comes to lie.

    Raises:
        FleetError: ``bad-preprocess`` for rules that cannot be; ``bad-picture`` for a picture so much longer than wide
            that to crop its centre it would have to be made enormous.
    """
    height, width = preprocess.size
    canvas_height, canvas_width = preprocess.canvas if any(preprocess.canvas) else preprocess.size
    if min(preprocess.size) < 1 or canvas_height < height or canvas_width < width:
        raise FleetError(
            f"pictures of {height}x{width} pixels do not fit an input of {canvas_height}x{canvas_width}",
            code="bad-preprocess",
        )
    inside, canvas, corner = (width, height), (canvas_width, canvas_height), (0, 0)
    if preprocess.resize == "stretch":
        resized = inside
    elif preprocess.resize == "fit":
        # torchvision.models.detection.transform: sides rounded down.
        scale = min(width / size[0], height / size[1])
        resized = inside = max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))
    else:
        resized = _before_crop(size, inside, preprocess.crop_ratio)
        corner = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return Place(size, resized, corner, inside, canvas)


def _before_crop(size: tuple[int, int], inside: tuple[int, int], ratio: float) -> tuple[int, int]:
    """As torchvision's Resize (long side rounded down) and CenterCrop, and the same for sizes that are not square."""
    if not 0 < ratio <= 1:
        raise FleetError(f"a crop_ratio of {ratio} is not above 0 and at most 1", code="bad-preprocess")
    (width, height), (wide, high) = inside, size
    need_width, need_height = round(width / ratio), round(height / ratio)
    if need_width * high >= need_height * wide:
        resized = need_width, max(height, need_width * high // wide)
    else:
        resized = max(width, need_height * wide // high), need_height
    if resized[0] * resized[1] > MAX_PIXELS:
        raise FleetError(
            f"a picture of {wide}x{high} pixels is too long for its centre to be cut out",
            code="bad-picture",
            hint="cut it to the part that matters",
        )
    return resized
