"""What is found in a picture, as it is told: plain structs that JSON documents are made of."""

from __future__ import annotations

import msgspec


class TopLabel(msgspec.Struct, kw_only=True):
    """A class, its number among the model's labels, and how probable it is."""

    label: str
    index: int
    score: float


class Mask(msgspec.Struct, kw_only=True):
    """A mask as COCO writes one: run lengths of pixels that are off, on, off, …, down the columns of the picture."""

    #: Height and width of the picture.
    size: tuple[int, int]
    counts: list[int]


class Box(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``xyxy`` in pixels of the original picture, which ``mask`` covers as a whole; None where a model has none."""

    label: str
    score: float
    xyxy: tuple[float, float, float, float]
    mask: Mask | None = None
