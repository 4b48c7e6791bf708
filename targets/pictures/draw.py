"""Boxes, labels and masks laid over a picture, readable on any background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from targets.pictures.answers import Detections, name
from targets.pictures.masks import Patch
from targets.pictures.read import bad_picture

#: Colours that differ in hue and brightness, so that classes are told apart.
_PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#ffe119",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
    "#469990",
    "#dcbeff",
    "#9a6324",
    "#fffac8",
    "#800000",
    "#aaffc3",
    "#808000",
    "#ffd8b1",
    "#000075",
    "#ffffff",
)
#: Of a mask's colour over the picture.
_OPACITY = 0.45
#: Of pictures that lose something when they are written.
_QUALITY = 95

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Pixels = npt.NDArray[np.uint8]


class _Rectangle(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: _Rectangle) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class _Pen(NamedTuple):
    """What is drawn with: of a width that fits the picture's size, each line between two dark ones."""

    draw: ImageDraw.ImageDraw
    size: tuple[int, int]
    width: int
    font: Font


def draw(image: Image.Image, found: Detections, labels: Sequence[str]) -> Image.Image:
    """A copy of the original picture with what was found in it; the best lies on top. Colours stand for classes."""
    short = min(image.size)
    width = max(1, round(short / 250))
    words = [f"{name(labels, label)} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True)]
    colours = [_PALETTE[label % len(_PALETTE)] for label in found.labels]
    image = image.convert("RGB")
    worst_first = range(len(found) - 1, -1, -1)
    if found.masks is not None:
        pixels = np.array(image)
        for index in worst_first:
            _mask(pixels, found.patch(index), colours[index], width)
        image = Image.fromarray(pixels)
    pen = _Pen(ImageDraw.Draw(image), image.size, width, ImageFont.load_default(size=max(10, round(short / 32))))
    rectangles = [_Rectangle(*(round(edge) for edge in box)) for box in found.boxes.tolist()]
    for index in worst_first:
        x0, y0, x1, y1 = rectangles[index]
        if x1 >= x0 and y1 >= y0:
            pen.draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=width + 2)
            pen.draw.rectangle((x0, y0, x1, y1), outline=colours[index], width=width)
    taken: list[_Rectangle] = []
    for rectangle, text in zip(rectangles, words, strict=True):
        taken.append(_room(pen, rectangle, text, taken))
    for index in worst_first:
        _label(pen, taken[index], words[index], colours[index])
    return image


def save(image: Image.Image, path: Path | str) -> None:
    """Write a picture in the format its suffix names. Raises :class:`FleetError` (``bad-picture``) when it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=_QUALITY)
    except ValueError:
        raise bad_picture(path, "no picture format has this suffix", "use .png or .jpg") from None
    except OSError as error:
        raise bad_picture(path, f"cannot be written: {error.strerror or error}") from None


def _mask(pixels: Pixels, patch: Patch, colour: str, width: int) -> None:
    """Colour what belongs to a mask, and draw its contour: coloured inside, dark around."""
    tall, wide = patch.on.shape
    if not patch.on.any():
        return
    # A rim around the patch, as far as there is picture.
    x0, y0 = max(patch.left - 1, 0), max(patch.top - 1, 0)
    part = pixels[y0 : patch.top + tall + 1, x0 : patch.left + wide + 1]
    on = np.zeros(part.shape[:2], np.bool_)
    on[patch.top - y0 :, patch.left - x0 :][:tall, :wide] = patch.on
    ink = np.array(ImageColor.getrgb(colour), np.float32)
    part[on] = np.rint(part[on] * (1 - _OPACITY) + ink * _OPACITY).astype(np.uint8)
    inner = on
    for _ in range(width):
        inner = ~_grown(~inner)
    part[on & ~inner] = ink.astype(np.uint8)
    part[_grown(on) & ~on] = 0


def _grown(on: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """With the four neighbours of each pixel."""
    grown: npt.NDArray[np.bool_] = on.copy()
    grown[1:] |= on[:-1]
    grown[:-1] |= on[1:]
    grown[:, 1:] |= on[:, :-1]
    grown[:, :-1] |= on[:, 1:]
    return grown


def _room(pen: _Pen, box: _Rectangle, text: str, taken: Sequence[_Rectangle]) -> _Rectangle:
    """Where a box's label goes: where it covers no better box's if there is such a place."""
    left, top, right, bottom = pen.draw.textbbox((0, 0), text, font=pen.font)
    wide, high = round(right - left) + 4, round(bottom - top) + 4
    places = list(_places(pen.size, box, wide, high))
    return next((one for one in places if not any(one.meets(other) for other in taken)), places[0])


def _places(size: tuple[int, int], box: _Rectangle, wide: int, high: int) -> Iterator[_Rectangle]:
    """Above the box, inside of it at the top, below, and inside at the bottom, as far as that is in the picture."""

    def at(x: int, y: int) -> _Rectangle:
        x, y = max(0, min(x, size[0] - wide)), max(0, min(y, size[1] - high))
        return _Rectangle(x, y, x + wide, y + high)

    for x in (box.left, box.right - wide):
        if box.top >= high:
            yield at(x, box.top - high)
        yield at(x, box.top)
        if box.bottom + high <= size[1]:
            yield at(x, box.bottom)
        yield at(x, box.bottom - high)


def _label(pen: _Pen, where: _Rectangle, text: str, colour: str) -> None:
    left, top, *_ = pen.draw.textbbox((0, 0), text, font=pen.font)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
    pen.draw.rectangle(where, fill=colour, outline="black")
    pen.draw.text((where.left + 2 - left, where.top + 2 - top), text, fill=ink, font=pen.font)
