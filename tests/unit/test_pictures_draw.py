"""Drawings: what is found can be seen on any background, and the picture given is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controller.drawings import Drawings
from targets.base import FleetError, Preprocess
from targets.pictures.answers import Detections
from targets.pictures.draw import draw, save
from targets.pictures.place import place
from targets.pictures.read import load


def _found(
    size: tuple[int, int], boxes: Sequence[tuple[float, ...]], scores: Sequence[float], masks: Any = None
) -> Detections:
    return Detections(
        place(size, Preprocess(size=size[::-1])),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.arange(len(scores)),
        masks,
    )


@pytest.mark.parametrize("ground", ["black", "white", "#e6194b", "#808080"])
@pytest.mark.parametrize("size", [(64, 64), (640, 480)])
def test_boxes_show_on_any_background(ground: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, ground)
    width, height = size
    found = _found(size, [(width * 0.3, height * 0.5, width * 0.7, height * 0.9)], [0.93])
    before = np.asarray(image).copy()
    drawn = np.asarray(draw(image, found, ["star"]))
    assert np.array_equal(np.asarray(image), before), "the picture given is left alone"
    changed = (drawn != before).any(-1)
    # Every side of the box can be seen, and above it the label.
    assert (
        changed[:, round(width * 0.3) - 2 : round(width * 0.3) + 3][round(height * 0.6) : round(height * 0.8)]
        .any(1)
        .all()
    )
    assert (
        changed[round(height * 0.9) - 3 : round(height * 0.9) + 3, round(width * 0.4) : round(width * 0.6)].any(0).all()
    )
    label = drawn[: round(height * 0.5) - 1]
    assert np.ptp(label.astype(int).sum(-1)) > 250, "text and its ground differ"


@pytest.mark.parametrize("ground", ["black", "white", "#e6194b", "#808080"])
@pytest.mark.parametrize("whole", [False, True])
def test_masks_show_on_any_background(ground: str, whole: bool) -> None:
    image = Image.new("RGB", (200, 150), ground)
    if whole:
        masks: Any = np.zeros((1, 150, 200), np.uint8)
        masks[0, 60:120, 50:150] = 255
    else:
        masks = np.ones((1, 28, 28), np.float32)
    found = _found((200, 150), [(50, 60, 150, 120)], [0.9], masks)
    before = np.asarray(image).astype(int)
    drawn = np.asarray(draw(image, found, ["star"])).astype(int)
    inside = drawn[90, 100]
    if ground != "#e6194b":
        # The class's own colour: there the line alone tells.
        assert np.abs(inside - before[90, 100]).max() > 15, "its area is coloured"
    assert np.abs(drawn[140, 20] - before[140, 20]).max() == 0, "and nothing else is"
    # Between the middle and the outside there is a line that differs from both.
    line = drawn[90, 40:60]
    assert max(min(np.abs(p - inside).max(), np.abs(p - before[0, 0]).max()) for p in line) > 60


def test_what_is_at_and_beyond_the_edge_is_drawn() -> None:
    boxes = [(0.0, 0.0, 50.0, 40.0), (50.0, 40.0, 50.0, 40.0), (30.0, 30.0, 10.0, 10.0)]
    found = _found((50, 40), boxes, [1.0, 0.5, 0.0], np.ones((3, 7, 7), np.float32))
    labels = ["a very long label indeed that is wider than the picture", "", "inside out"]
    assert draw(Image.new("RGB", (50, 40)), found, labels).size == (50, 40)
    assert draw(Image.new("RGB", (1, 1)), _found((1, 1), [(0, 0, 1, 1)], [1.0], np.ones((1, 7, 7))), []).size == (1, 1)
    blank = Image.new("L", (50, 40), 7)
    assert np.array_equal(draw(blank, _found((50, 40), [], []), []), blank.convert("RGB"))


def test_labels_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    box = (60.0, 80.0, 240.0, 200.0)
    one = draw(Image.new("RGB", (300, 300)), _found((300, 300), [box], [0.9]), ["first"])
    two = draw(Image.new("RGB", (300, 300)), _found((300, 300), [box, box], [0.9, 0.8]), ["first", "second"])
    label = np.asarray(one)[60:80, 60:100]
    assert label.any() and np.array_equal(np.asarray(two)[60:79, 60:100], label[:19]), "the best one is where it was"
    assert (np.asarray(two) != np.asarray(one)).any(), "and the other is there, too"


def test_saving_says_what_is_wrong(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    save(image, tmp_path / "new" / "out.png")
    assert np.array_equal(np.asarray(load(tmp_path / "new" / "out.png")), np.asarray(image))
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "out.xyz", "suffix"), (tmp_path / "file" / "out.png", "cannot be written")):
        with pytest.raises(FleetError, match=words) as caught:
            save(image, path)
        assert caught.value.code == "bad-picture"


# --- Where drawings go ---------------------------------------------------------------------------


def test_one_drawing_is_the_file_and_several_have_the_pictures_names(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "frame1.jpg", tmp_path / "b" / "frame1.jpg"
    odd = tmp_path / "a" / "no suffix"
    assert Drawings("out.png", [one], ["sim-1"]).path(0, "sim-1") == Path("out.png")
    many = Drawings(str(tmp_path / "out"), [one, two, odd], ["sim-1"])
    assert [many.path(n, "sim-1").name for n in range(3)] == ["frame1.jpg", "frame1-2.jpg", "no suffix.png"]
    boards = Drawings(str(tmp_path / "out"), [one], ["sim-1", "sim-2"])
    assert [boards.path(0, name).name for name in ("sim-1", "sim-2")] == ["frame1.sim-1.jpg", "frame1.sim-2.jpg"]
    assert Drawings(str(tmp_path), [one], ["sim-1"]).path(0, "sim-1") == tmp_path / "frame1.jpg"


def test_a_picture_is_never_written_over(tmp_path: Path) -> None:
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    for path in (one, two):
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "link").symlink_to(tmp_path)
    for given, pictures in (
        (one, [one]),
        (tmp_path, [one, two]),
        (tmp_path / "link", [one]),
        (two, [one, two]),
        (tmp_path / "out.xyz", [one]),
        (tmp_path / "out", [one]),
    ):
        with pytest.raises(FleetError) as caught:
            Drawings(str(given), pictures, ["sim-1"])
        assert caught.value.code == "usage"
