"""A model's inputs, made of pictures as its `Preprocess` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from targets.base import FleetError, Preprocess, TensorSpec
from targets.pictures import bilinear
from targets.pictures.place import Place, place

if TYPE_CHECKING:
    from targets.base import Array

Floats = npt.NDArray[np.float32]
#: Name of the input that is told the pictures' sizes.
SIZES = "sizes"


def batch_size(specs: Sequence[TensorSpec], preprocess: Preprocess | None, name: str) -> int:
    """How many pictures the model ``name`` with these inputs takes at once.

    Raises FleetError: ``no-picture-model``, or ``no-preprocess`` when nothing says how it wants them.
    """
    first, others = specs[:1], specs[1:]
    if not first or len(first[0].shape) != 4 or len(others) > 1 or any(spec.name != SIZES for spec in others):
        raise FleetError(f"'{name}' does not take a picture as its one input", code="no-picture-model")
    if preprocess is None:
        raise FleetError(
            f"nothing says how '{name}' wants its pictures",
            code="no-preprocess",
            hint="give `preprocess` for it under `models:` in the inventory, and deploy it again",
        )
    return max(1, first[0].shape[0])


def batch(images: Sequence[Image.Image], preprocess: Preprocess, specs: Sequence[TensorSpec]) -> list[Array]:
    """All inputs for one to ``batch_size`` pictures; a batch that is not full is filled up with the last of them.

    ``specs`` are the model's inputs: the pictures, and maybe ``sizes``. Raises FleetError ``bad-preprocess`` when what
    is prepared would not have their shapes, ``bad-dtype`` for types that pictures cannot have.
    """
    count = specs[0].shape[0]
    places = [place(image.size, preprocess) for image in images]
    shapes = {"": (count, *shape(preprocess)), SIZES: (count, 2)}
    for spec in specs:
        wanted = shapes[SIZES if spec is not specs[0] else ""]
        if spec.shape != wanted:
            raise FleetError(
                f"prepared pictures have the shape {wanted}, '{spec.name}' takes {spec.shape}",
                code="bad-preprocess",
                hint="correct `preprocess` for it under `models:` in the inventory",
            )
    pictures = np.empty(specs[0].shape, _dtype(specs[0]))
    for row, image in enumerate(images):
        values = prepare(image, preprocess)[0]
        # Bytes are what they were before they became shares of 255.
        pictures[row] = values if pictures.dtype.kind == "f" else np.rint(values)
    pictures[len(images) :] = pictures[len(images) - 1]
    if len(specs) == 1:
        return [pictures]
    inside = [sizes(one) for one in [*places, *places[-1:] * (count - len(places))]]
    return [pictures, np.array(inside, _dtype(specs[1]))]


def sizes(where: Place) -> tuple[int, int]:
    """Height and width of the picture inside the input: a row of the input ``sizes``."""
    return where.kept[1], where.kept[0]


def shape(preprocess: Preprocess) -> tuple[int, int, int]:
    """Shape of one prepared picture: (channels, height, width), or (height, width, channels)."""
    height, width = preprocess.canvas if any(preprocess.canvas) else preprocess.size
    channels = 1 if preprocess.colour == "L" else 3
    return (channels, height, width) if preprocess.layout == "NCHW" else (height, width, channels)


def prepare(image: Image.Image, preprocess: Preprocess) -> Floats:
    """The model's first input for one picture: float32, (1, channels, height, width) or (1, height, width, channels).

    Raises FleetError ``bad-preprocess``, ``bad-picture`` as :func:`targets.pictures.place.place` does.
    """
    where = place(image.size, preprocess)
    values = _resized(image.convert("L" if preprocess.colour == "L" else "RGB"), where, preprocess)
    if preprocess.colour == "BGR":
        values = values[::-1]
    channels = len(values)
    if not len(preprocess.mean) == len(preprocess.std) == channels or 0.0 in preprocess.std:
        raise FleetError(
            f"mean {preprocess.mean} and std {preprocess.std} must have a number for each of {channels} colours,"
            " and std no zero",
            code="bad-preprocess",
        )
    prepared = np.zeros((1, *shape(preprocess)), np.float32)
    planes = prepared[0] if preprocess.layout == "NCHW" else prepared[0].transpose(2, 0, 1)
    for plane, plain, mean, std in zip(planes, values, preprocess.mean, preprocess.std, strict=True):
        plain /= np.float32(255)
        plain -= np.float32(mean)
        plain /= np.float32(std)
        plane[: where.kept[1], : where.kept[0]] = plain
    return prepared


def _resized(image: Image.Image, where: Place, preprocess: Preprocess) -> Floats:
    """The part of the picture that is kept, 0..255: (channels, height, width)."""
    left, top = where.corner
    width, height = where.kept
    if preprocess.filter == "bilinear":
        window = (top, top + height), (left, left + width)
        resized = bilinear.resize(np.asarray(image), where.resized[::-1], *window)
    else:
        if image.size != where.resized:
            # Bilinear with a support that grows when shrinking, which is what torchvision trains classifiers with.
            image = image.resize(where.resized, Image.Resampling.BILINEAR)
        resized = np.array(image.crop((left, top, left + width, top + height)), np.float32)
        resized = resized.transpose(2, 0, 1) if resized.ndim == 3 else resized
    return resized if resized.ndim == 3 else resized[None]


def _dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise FleetError(
            f"'{spec.name}' has the type {spec.dtype}, which pictures cannot have", code="bad-dtype"
        ) from None
