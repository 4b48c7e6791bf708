"""Which category is taken for which, as a picture: a row for what it is, a column for what the model says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from controller.printable import printable

if TYPE_CHECKING:
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Counts = npt.NDArray[np.int64]

#: Rows and columns that a picture has at most: those with the most mistakes are shown.
MOST = 100
#: Pixels that the cells take together, and the bounds of a cell.
_FIELD, _SMALLEST, _LARGEST = 1200, 12, 48
#: Cells from this size on have their count in them.
_WITH_COUNT = 26
_MARGIN, _TITLE = 16, 22
_LETTERS = 24
_GROUND, _INK, _FAINT, _FULL = (255, 255, 255), (31, 35, 40), (208, 215, 222), (8, 69, 148)
#: The name of the row of boxes on nothing, and of the column of objects without a box or with another class.
_NOTHING = "nothing"


def draw(matrix: Counts, names: Sequence[str], title: str) -> Image.Image:
    """``matrix``: as `Figures.confusion` has it, for categories ``names``. A cell's colour is its share of its row."""
    rows, columns, left_out = _chosen(matrix, len(names))
    shown = matrix[np.ix_(rows, columns)]
    cell = max(_SMALLEST, min(_LARGEST, _FIELD // max(shown.shape)))
    font, small, large = (ImageFont.load_default(size=size) for size in (min(13, cell), 11, 16))
    words = [[_name(names, index) for index in axis] for axis in (rows, columns)]
    aside = max(round(font.getlength(word)) for both in words for word in both) + 8
    left, top = _MARGIN + _TITLE + aside, _MARGIN + 2 * _TITLE
    width, height = cell * len(columns), cell * len(rows)
    picture = Image.new("RGB", (left + max(width, 360) + _MARGIN, top + height + aside + _TITLE + _MARGIN), _GROUND)
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, _MARGIN), printable(title), fill=_INK, font=large)
    counted = f"{int(matrix.sum())} in all"
    if left_out:
        counted += f"; {left_out} categories with fewer mistakes are not shown"
    pen.text((left, _MARGIN + _TITLE), counted, fill=_INK, font=small)
    share = shown / np.maximum(matrix[rows].sum(axis=1, keepdims=True), 1)
    for row in range(len(rows)):
        for column in range(len(columns)):
            corner = left + column * cell, top + row * cell
            _cell(pen, corner, cell, int(shown[row, column]), float(share[row, column]))
    for row, word in enumerate(words[0]):
        pen.text((left - 6, top + row * cell + cell / 2), word, fill=_INK, font=font, anchor="rm")
    for column, word in enumerate(words[1]):
        _upright(picture, word, (left + column * cell + cell // 2, top + height + 6), font, from_top=True)
    pen.text((left + width / 2, top + height + aside + _TITLE), "the model says", fill=_INK, font=small, anchor="ms")
    _upright(picture, "it is", (_MARGIN + _TITLE // 2, top + height // 2), small, from_top=False)
    return picture


def _chosen(matrix: Counts, count: int) -> tuple[Counts, Counts, int]:
    """Rows and columns to show, in order, and how many categories are not among them."""
    diagonal = np.diagonal(matrix)[:count]
    mistakes = matrix[:count].sum(axis=1) + matrix[:, :count].sum(axis=0) - 2 * diagonal
    best = np.sort(np.argsort(-mistakes, kind="stable")[:MOST])
    rows, columns = (np.append(best, np.arange(count, size)) for size in matrix.shape)
    return rows, columns, count - len(best)


def _name(names: Sequence[str], index: int) -> str:
    name = printable(names[index]) if index < len(names) else _NOTHING
    return name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"


def _cell(pen: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, count: int, share: float) -> None:
    x, y = corner
    # The root lets one mistake among many be seen.
    depth = share**0.5
    colour = tuple(round(empty + (full - empty) * depth) for empty, full in zip(_GROUND, _FULL, strict=True))
    pen.rectangle((x, y, x + size, y + size), fill=colour, outline=_FAINT)
    if count and size >= _WITH_COUNT:
        font = ImageFont.load_default(size=max(8, min(13, 2 * size // (len(str(count)) + 1))))
        ink = _GROUND if depth > 0.5 else _INK
        pen.text((x + size / 2, y + size / 2), str(count), fill=ink, font=font, anchor="mm")


def _upright(picture: Image.Image, text: str, at: tuple[int, int], font: Font, *, from_top: bool) -> None:
    """Text turned to the left, centred at x; it ends at y, or is centred there."""
    _, _, right, bottom = font.getbbox(text)
    strip = Image.new("RGB", (max(1, round(right)), max(1, round(bottom) + 2)), _GROUND)
    ImageDraw.Draw(strip).text((0, 0), text, fill=_INK, font=font)
    turned = strip.rotate(90, expand=True)
    picture.paste(turned, (at[0] - turned.width // 2, at[1] if from_top else at[1] - turned.height // 2))
