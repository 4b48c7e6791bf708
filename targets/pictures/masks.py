"""Masks, brought from a network's output to the pixels of the original picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from targets.pictures import bilinear
from targets.pictures.bilinear import Floats
from targets.pictures.found import Mask
from targets.pictures.place import Place

#: A pixel belongs to a mask when that is more probable than not.
THRESHOLD = 0.5


class Patch(NamedTuple):
    """``on`` (height, width): the part of a picture from the pixel (``left``, ``top``) on; outside of it all is off."""

    left: int
    top: int
    on: npt.NDArray[np.bool_]


class Pasted(NamedTuple):
    """As `Patch`, with probabilities."""

    left: int
    top: int
    values: Floats


def paste(mask: Floats, box: npt.NDArray[np.float64], size: tuple[int, int]) -> Pasted:
    """A mask (S, S) within a box (4,) in pixels, where it lies in a picture of ``size`` (width, height).

    As torchvision.models.detection.roi_heads.paste_masks_in_image, which computes in float32.
    """
    cells = mask.shape[-1]
    x0, y0, x1, y1 = _expanded(box.astype(np.float32), np.float32((cells + 2) / cells))
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, size[0]), min(y1 + 1, size[1])
    if left >= right or top >= bottom:
        return Pasted(0, 0, np.zeros((0, 0), np.float32))
    whole = y1 - y0 + 1, x1 - x0 + 1
    values = bilinear.resize(np.pad(mask, 1), whole, (top - y0, bottom - y0), (left - x0, right - x0))
    return Pasted(left, top, values)


def _expanded(box: Floats, scale: np.float32) -> tuple[int, int, int, int]:
    half = np.float32(0.5)
    centre, extent = (box[2:] + box[:2]) * half, (box[2:] - box[:2]) * half * scale
    x0, y0 = (centre - extent).astype(np.int64).tolist()
    x1, y1 = (centre + extent).astype(np.int64).tolist()
    return x0, y0, x1, y1


def within_box(mask: Floats, box: npt.NDArray[np.float64], size: tuple[int, int]) -> Patch:
    """The pixels of a mask (S, S) of probabilities within a box, in a picture of ``size`` (width, height)."""
    left, top, values = paste(mask, box, size)
    return Patch(left, top, values > THRESHOLD)


def of_input(mask: npt.NDArray[np.uint8], where: Place) -> Patch:
    """The pixels of a mask (H, W) of a model's whole input, probability times 256 rounded down, in the original."""
    kept = mask[: where.kept[1], : where.kept[0]]
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    if where.kept != where.resized:
        left, top = where.corner
        kept = np.pad(kept, ((top, where.resized[1] - top - len(kept)), (left, where.resized[0] - left - len(kept[0]))))
        rows, columns = rows + top, columns + left
    (y0, y1), (x0, x1) = (
        # A pixel reaches half-way into its neighbours.
        (max(0, int((near[0] - 1) * new / old)), min(new, -int(-(near[-1] + 2) * new // old)))
        for near, old, new in zip((rows, columns), where.resized[::-1], where.original[::-1], strict=True)
    )
    values = bilinear.resize(kept, where.original[::-1], (y0, y1), (x0, x1))
    # What was rounded down was half a step more on average.
    return Patch(x0, y0, values > 256 * THRESHOLD - 0.5)


def encode(patch: Patch, size: tuple[int, int]) -> Mask:
    """A mask in a picture of ``size`` (width, height) as COCO's uncompressed run lengths."""
    width, height = size
    framed = np.pad(patch.on.astype(np.int8), ((1, 1), (0, 0)))
    changes = np.diff(framed, axis=0).T
    # Both in the order of columns: the n-th run that begins is the n-th that ends.
    starts, ends = (
        (patch.left + column) * height + patch.top + row
        for column, row in (np.nonzero(changes == way) for way in (1, -1))
    )
    # Runs that go on in the next column are one.
    apart = starts[1:] != ends[:-1]
    begin, end = starts[np.r_[True, apart]] if len(starts) else starts, ends[np.r_[apart, True]] if len(ends) else ends
    edges = np.empty(2 * len(begin) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, begin, end, width * height
    counts = np.diff(edges)
    return Mask(size=(height, width), counts=(counts if counts[-1] or len(counts) == 1 else counts[:-1]).tolist())


def decode(mask: Mask) -> npt.NDArray[np.bool_]:
    """(height, width) of which pixels belong to the mask. Raises ValueError for runs that are not of its size."""
    height, width = mask.size
    counts = np.array(mask.counts, np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"run lengths of {int(counts.sum())} pixels, the mask has {height * width}")
    down = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    on: npt.NDArray[np.bool_] = down.reshape(width, height).T
    return on
