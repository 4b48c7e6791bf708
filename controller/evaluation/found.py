"""What a model said of one picture, as it is kept until all pictures are through."""

from __future__ import annotations

import msgspec


class Found(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Classes are the model's own numbers, so that another map of classes needs no new run."""

    #: Of the picture in its data set.
    index: int
    #: Best first: of a classifier the first five, of a detector one for each object found.
    labels: list[int] = []
    scores: list[float] = []
    #: Left, top, right, bottom in pixels of the picture.
    boxes: list[tuple[float, float, float, float]] = []
    #: COCO's compressed run lengths, for the whole picture.
    masks: list[str] = []
    #: Why the picture could not be used; it is left out then.
    bad: str = ""
