"""The drawing script: the same everywhere, boxes that are tight, files that others can read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controller.zoo import draw, shapes
from controller.zoo.shapes import CLASSES


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def test_a_picture_is_a_function_of_its_seed_and_index() -> None:
    # Fixed: training, tests and the demo must draw the same on every machine and with every version.
    assert _digest(*(draw.picture(1, index)[0] for index in range(24))) == "df4748d030c41699"
    assert _digest(*(draw.scene(1, index).picture for index in range(8))) == "b3fffae3705efddd"
    first, again, other = draw.picture(4, 5)[0], draw.picture(4, 5)[0], draw.picture(5, 4)[0]
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_drawing_leaves_numpys_own_random_state_alone() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    draw.scene(0, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_labels_go_round_and_can_be_asked_for() -> None:
    assert [draw.picture(0, index)[1] for index in range(len(CLASSES))] == list(range(len(CLASSES)))
    pixels, label = draw.picture(0, 0, size=96, label=7)
    assert (pixels.shape, pixels.dtype, label) == ((96, 96, 3), np.uint8, 7)


@pytest.mark.parametrize("name", CLASSES)
def test_a_shape_fills_its_box_and_nothing_else(name: str) -> None:
    y, x = np.mgrid[0:80, 0:80] + 0.5
    for angle in (0.0, 0.7, 2.0):
        placed = shapes.place(name, (40.0, 38.0), 30.0, angle, 1.05)
        inside = shapes.signed_distance(placed, x, y) < 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        covered = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        # A point is thinner than a pixel, so the box may reach a little further than the pixels that are covered.
        assert np.abs(np.array(shapes.bounds(placed)) - covered).max() < 2.5
        assert 0.1 < inside.sum() / ((covered[2] - covered[0]) * (covered[3] - covered[1])) < 1.0


def test_distance_is_euclidean_and_holes_are_outside() -> None:
    ring = shapes.place("ring", (0.0, 0.0), 10.0, 0.0, 1.0)
    x = np.array([0.0, 8.0, 12.0])
    np.testing.assert_allclose(shapes.signed_distance(ring, x, np.zeros(3)), [5.8, -2.0, 2.0], atol=0.05)


def test_scenes_hold_one_to_five_shapes_apart_from_each_other() -> None:
    counts = set()
    for one in draw.scenes(11, 40):
        counts.add(len(one.boxes))
        assert one.boxes.shape == (len(one.labels), 4)
        assert (one.boxes >= 0).all() and (one.boxes <= draw.SCENE_SIZE).all()
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        assert (sides > 5).all() and (sides < 72).all()
    assert counts == {1, 2, 3, 4, 5}
    assert len(draw.scene(0, 0, count=3).boxes) == 3


def test_pictures_show_their_shape() -> None:
    """What is inside the shape's outline differs from what is around it in every scene."""
    y, x = np.mgrid[0 : draw.SCENE_SIZE, 0 : draw.SCENE_SIZE] + 0.5
    for one in draw.scenes(12, 20):
        for x0, y0, x1, y1 in one.boxes:
            around = (x > x0 - 4) & (x < x1 + 4) & (y > y0 - 4) & (y < y1 + 4)
            within = (x > x0) & (x < x1) & (y > y0) & (y < y1)
            pixels = one.picture.astype(float)
            assert np.linalg.norm(pixels[within].mean(0) - pixels[around & ~within].mean(0)) > 12


def test_coco_annotations_say_where_what_is() -> None:
    drawn = list(draw.scenes(2, 3))
    document = draw.coco_annotations(drawn, ["a.png", "b.png", "c.png"])
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.png", "c.png"]
    assert len(document["annotations"]) == sum(len(one.boxes) for one in drawn)
    first, box = document["annotations"][0], drawn[0].boxes[0]
    assert first["category_id"] == drawn[0].labels[0] + 1
    np.testing.assert_allclose(first["bbox"], [box[0], box[1], box[2] - box[0], box[3] - box[1]], atol=1e-3)
    assert {c["name"] for c in document["categories"]} == set(CLASSES)


def test_command_line(tmp_path: Path) -> None:
    draw.main(["picture", "--shape", "star", "--seed", "9", "-o", str(tmp_path / "star.png")])
    wanted = draw.picture(9, 0, label=CLASSES.index("star"))[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "star.png")), wanted)
    draw.main(["scene", "--count", "4", "-o", str(tmp_path / "scene.png")])
    assert Image.open(tmp_path / "scene.png").size == (draw.SCENE_SIZE, draw.SCENE_SIZE)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["picture", "--seed", "-1"], 2, "at least 0"),
        (["picture", "--size", "8"], 2, "at least 32"),
        (["picture", "--shape", "blob"], 2, "circle"),
        (["scene", "--count", "0"], 2, "at least 1"),
        (["picture"], 1, "suffix"),
    ],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], status: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        draw.main([*arguments, "-o", str(tmp_path / "out.what")])
    assert caught.value.code == status
    assert words in capsys.readouterr().err
