"""Draws what the two small networks are trained and tested on: pictures of one shape, and scenes of several with boxes.

A picture is a pure function of (seed, index): NumPy's frozen ``RandomState`` stream, no drawing library. Pillow only
writes files. On the command line::

    python -m controller.zoo.draw picture --shape star -o star.png
    python -m controller.zoo.draw scene --seed 7 -o scene.png

`controller.datasets.shapes` makes data sets of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from controller.zoo import shapes
from controller.zoo.shapes import CLASSES, Floats
from targets.base import FleetError

Picture = npt.NDArray[np.uint8]

PICTURE_SIZE = 64
SCENE_SIZE = 128
MAX_SHAPES = 5

#: Shapes and what is behind them differ at least this much (Euclidean, channels 0..1), so a person can see each one.
_CONTRAST = 0.45


class Scene(NamedTuple):
    """``picture`` (height, width, 3) uint8; ``boxes`` (n, 4) as x0, y0, x1, y1 in pixels; ``labels`` (n,)."""

    picture: Picture
    boxes: Floats
    labels: npt.NDArray[np.int64]


def _random(seed: int, index: int, stream: int) -> np.random.RandomState:
    # RandomState's stream is frozen across NumPy versions; the newer Generator's is not.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, index, stream))))


def _grid(size: int) -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:size, 0:size]
    return x + 0.5, y + 0.5


def _smooth_noise(random: np.random.RandomState, size: int, cells: int) -> Floats:
    """Bilinear noise in -1..1, (size, size), with ``cells`` bumps along each side."""
    knots = random.uniform(-1, 1, (cells + 2, cells + 2))
    at = (np.arange(size) + 0.5) * cells / size
    low = at.astype(np.int64)
    t = at - low
    rows = knots[low] * (1 - t)[:, None] + knots[low + 1] * t[:, None]
    smooth: Floats = rows[:, low] * (1 - t) + rows[:, low + 1] * t
    return smooth


def _background(random: np.random.RandomState, size: int) -> tuple[Floats, Floats]:
    """A (size, size, 3) background and the (2, 3) colours it runs between."""
    first = random.uniform(0, 1, 3)
    ends = np.stack([first, np.clip(first + random.uniform(-0.35, 0.35, 3), 0, 1)])
    x, y = _grid(size)
    angle = random.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + ((x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)) / size, 0, 1)[..., None]
    canvas = ends[0] * (1 - ramp) + ends[1] * ramp
    texture = random.randint(4)
    strength = random.uniform(0.04, 0.16)
    if texture == 1:
        canvas += strength * _smooth_noise(random, size, random.randint(4, 17))[..., None]
    elif texture == 2:
        turn, period = random.uniform(0, np.pi), random.uniform(5, 20)
        canvas += strength * np.sin((x * np.cos(turn) + y * np.sin(turn)) * (2 * np.pi / period))[..., None]
    elif texture == 3:
        side = random.randint(4, 17)
        canvas += strength * (((x // side + y // side) % 2) - 0.5)[..., None]
    return canvas, ends


def _clutter(random: np.random.RandomState, canvas: Floats, scale: float) -> None:
    """Thin lines and specks, too small or too thin to be taken for a shape."""
    size = canvas.shape[0]
    x, y = _grid(size)
    for _ in range(random.randint(0, int(5 * scale))):
        ends = random.uniform(0, size, (2, 2))
        distance = np.abs(shapes.signed_distance((ends,), x, y)) - random.uniform(0.3, 1.0)
        _paint(canvas, distance, random.uniform(0, 1, 3), random.uniform(0.3, 0.9))
    for _ in range(random.randint(0, int(9 * scale))):
        cx, cy = random.uniform(0, size, 2)
        distance = np.hypot(x - cx, y - cy) - random.uniform(0.7, 2.2)
        _paint(canvas, distance, random.uniform(0, 1, 3), random.uniform(0.4, 1.0))


def _paint(canvas: Floats, distance: Floats, colour: Floats, strength: float = 1.0) -> None:
    """Blend ``colour`` ((3,) or per pixel) in where ``distance`` is negative, with an edge one pixel soft."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None] * strength
    canvas *= 1 - cover
    canvas += cover * colour


def _contrasting(random: np.random.RandomState, behind: Floats) -> Floats:
    """A random colour that stands out from every colour in ``behind``, (n, 3)."""
    candidates = random.uniform(0, 1, (24, 3))
    contrast = np.linalg.norm(candidates[:, None] - behind, axis=-1).min(axis=1)
    good = np.flatnonzero(contrast >= _CONTRAST)
    chosen: Floats = candidates[good[0] if good.size else int(contrast.argmax())]
    return chosen


def _draw_shape(
    random: np.random.RandomState,
    canvas: Floats,
    behind: Floats,
    label: int,
    centre: tuple[float, float],
    radius: float,
) -> tuple[float, float, float, float]:
    """Draw one shape; returns its box in pixels."""
    placed = shapes.place(CLASSES[label], centre, radius, random.uniform(0, 2 * np.pi), random.uniform(0.93, 1.07))
    box = shapes.bounds(placed)
    size = canvas.shape[0]
    x0, y0 = max(0, int(box[0]) - 2), max(0, int(box[1]) - 2)
    x1, y1 = min(size, int(box[2]) + 3), min(size, int(box[3]) + 3)
    x, y = _grid(size)
    distance = shapes.signed_distance(placed, x[y0:y1, x0:x1], y[y0:y1, x0:x1])
    colour = _contrasting(random, behind)
    fill = np.broadcast_to(colour, (*distance.shape, 3))
    if random.uniform() < 0.4:
        across = np.linspace(-0.5, 0.5, distance.shape[1])[None, :, None]
        down = np.linspace(-0.5, 0.5, distance.shape[0])[:, None, None]
        fill = fill + random.uniform(-0.3, 0.3) * across + random.uniform(-0.3, 0.3) * down
    patch = canvas[y0:y1, x0:x1]
    _paint(patch, distance, fill)
    if random.uniform() < 0.35:
        width = random.uniform(0.8, 1.6)
        edge = np.clip(colour + random.choice([-0.35, 0.35]), 0, 1)
        _paint(patch, np.abs(distance + width) - width, edge)
    return box


def _finish(random: np.random.RandomState, canvas: Floats) -> Picture:
    canvas += random.uniform(0, 0.05) * random.uniform(-1.7, 1.7, canvas.shape)
    picture: Picture = np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
    return picture


def picture(seed: int, index: int, *, size: int = PICTURE_SIZE, label: int | None = None) -> tuple[Picture, int]:
    """One shape on a varied background: ((size, size, 3) uint8, label). Labels go round unless one is asked for."""
    random = _random(seed, index, 0)
    if label is None:
        label = index % len(CLASSES)
    canvas, behind = _background(random, size)
    _clutter(random, canvas, 1.0)
    radius = random.uniform(0.19, 0.45) * size
    cx, cy = random.uniform(radius + 1, size - radius - 1, 2)
    _draw_shape(random, canvas, behind, label, (cx, cy), radius)
    return _finish(random, canvas), label


def scene(seed: int, index: int, *, size: int = SCENE_SIZE, count: int | None = None) -> Scene:
    """One to five shapes that hardly overlap; ``count`` asks for a number, which a full picture may not reach."""
    random = _random(seed, index, 1)
    canvas, behind = _background(random, size)
    _clutter(random, canvas, 2.0)
    wanted = random.randint(1, MAX_SHAPES + 1)
    if count is not None:
        wanted = count
    taken: list[tuple[float, float, float]] = []
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(12 * wanted):
        if len(taken) == wanted:
            break
        radius = random.uniform(0.085, 0.26) * size
        cx, cy = random.uniform(radius + 1, size - radius - 1, 2)
        if any(np.hypot(cx - x, cy - y) < 0.95 * (radius + r) for x, y, r in taken):
            continue
        taken.append((cx, cy, radius))
        labels.append(int(random.randint(len(CLASSES))))
        boxes.append(_draw_shape(random, canvas, behind, labels[-1], (cx, cy), radius))
    return Scene(_finish(random, canvas), np.array(boxes), np.array(labels))


def scenes(seed: int, count: int, *, start: int = 0) -> Iterator[Scene]:
    for index in range(start, start + count):
        yield scene(seed, index)


def coco_annotations(drawn: Sequence[Scene], names: Sequence[str]) -> dict[str, Any]:
    """Scenes as a COCO ground-truth document; image ids count from 1, category ids are label + 1."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (one, name) in enumerate(zip(drawn, names, strict=True), 1):
        height, width = one.picture.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
            box = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": round(box[2] * box[3], 3),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    return {"info": {}, "images": images, "annotations": boxes, "categories": categories}


def _save(pixels: Picture, path: Path) -> None:
    from PIL import Image

    from targets.pictures.draw import save

    save(Image.fromarray(pixels), path)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    number.__name__ = f"number of at least {least}"
    return number


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m controller.zoo.draw", description="Draw pictures of shapes.")
    what = parser.add_subparsers(dest="what", required=True)
    for name, text in (("picture", "one shape"), ("scene", "several shapes")):
        command = what.add_parser(name, help=text)
        command.add_argument("--seed", type=_at_least(0), default=0)
        command.add_argument("-o", "--output", type=Path, required=True)
        command.add_argument("--index", type=_at_least(0), default=0)
        size = PICTURE_SIZE if name == "picture" else SCENE_SIZE
        command.add_argument("--size", type=_at_least(32), default=size)
        if name == "picture":
            command.add_argument("--shape", choices=CLASSES)
        if name == "scene":
            command.add_argument("--count", type=_at_least(1), help="number of shapes")
    chosen = parser.parse_args(argv)
    try:
        _draw(chosen)
    except FleetError as error:
        parser.exit(1, f"{error}\n")


def _draw(chosen: argparse.Namespace) -> None:
    if chosen.what == "picture":
        label = CLASSES.index(chosen.shape) if chosen.shape else None
        _save(picture(chosen.seed, chosen.index, size=chosen.size, label=label)[0], chosen.output)
    else:
        _save(scene(chosen.seed, chosen.index, size=chosen.size, count=chosen.count).picture, chosen.output)


if __name__ == "__main__":
    main()
