"""Data sets in their formats, and what is wrong with wrong ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask

from controller.datasets import Dataset, load
from controller.datasets.coco import _expanded
from controller.datasets.shapes import write
from targets.base import FleetError

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "deep/b.png", "width": 20, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 5, "name": "traffic light"}],
}


def coco(root: Path, document: object = DOCUMENT, *, pictures: bool = True) -> Path:
    """A data set in COCO's usual folders."""
    for name, size in (("a.png", (40, 30)), ("deep/b.png", (20, 20))) if pictures else ():
        path = root / "val2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def refused(path: Path | str, code: str = "bad-dataset", **more: Any) -> str:
    with pytest.raises(FleetError) as error:
        load(path, **more)
    assert error.value.code == code
    return f"{error.value.message} / {error.value.hint}"


# --- COCO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_folder", [True, False])
def test_coco(tmp_path: Path, by_folder: bool) -> None:
    file = coco(tmp_path)
    found = load(tmp_path if by_folder else file)
    assert (found.kind, found.categories) == ("coco", ("traffic light", "dog"))
    assert [(p.name, p.size, p.path) for p in found.pictures] == [
        ("a.png", (40, 30), tmp_path / "val2017" / "a.png"),
        ("deep/b.png", (20, 20), tmp_path / "val2017" / "deep/b.png"),
    ]
    first, second = found.objects
    assert first.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 40, 30]]
    assert (first.labels.tolist(), first.ignored.tolist()) == ([1, 0], [False, True])
    assert first.areas.tolist() == [150.5, 1200.0]
    assert second.boxes.shape == (0, 4) and not found.has_outlines


def test_the_digest_is_of_the_truth_and_the_pictures(tmp_path: Path) -> None:
    first = load(coco(tmp_path / "one"))
    assert load(coco(tmp_path / "two")).digest == first.digest
    assert first.first(1).digest != first.digest and first.first(2) is first
    other = copy.deepcopy(DOCUMENT)
    other["annotations"][0]["bbox"][0] = 2
    assert load(coco(tmp_path / "three", other)).digest != first.digest
    Image.new("RGB", (40, 30), "red").save(tmp_path / "two" / "val2017" / "a.png", compress_level=0)
    assert load(tmp_path / "two").digest != first.digest


def test_missing_pictures_are_told_and_counted(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["images"] += [{"id": 100 + i, "file_name": f"m{i}.png", "width": 8, "height": 8} for i in range(9)]
    file = coco(tmp_path, document)
    text = refused(file)
    assert "9 of 11 pictures are missing: m0.png, m1.png, m2.png and 6 more" in text
    assert str(tmp_path / "val2017") in text and "--skip-bad" in text
    found = load(file, skip_missing=True)
    assert len(found.pictures) == len(found.objects) == 2 and len(found.missing) == 9
    assert "there is no picture" in refused(coco(tmp_path / "bare", pictures=False), skip_missing=True)


def test_another_folder_of_pictures(tmp_path: Path) -> None:
    file = coco(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    assert "2 of 2 pictures are missing" in refused(file)
    assert len(load(file, images=tmp_path / "elsewhere").pictures) == 2


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["images"].append(d["images"][0]), "ids of pictures given more than once: 7"),
        (lambda d: d["images"].append({**d["images"][0], "id": 8}), "names of pictures given more than once: a.png"),
        (lambda d: d["annotations"].append(d["annotations"][1]), "ids of annotations given more than once: 2"),
        (lambda d: d["categories"].append({"id": 5, "name": "cat"}), "ids of categories given more than once: 5"),
        (lambda d: d["categories"].append({"id": 6, "name": "dog"}), "names of categories given more than once: dog"),
        (lambda d: d["annotations"][0].update(category_id=99), "annotation 1 has the category 99, which is not listed"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 1 is of picture 99, which is not listed"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]), r"1 wrong boxes: that of annotation 1"),
        (lambda d: d["annotations"][0].update(bbox=[30, 2, 13, 4]), "is not within the picture of 40x30"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "$.annotations[0].bbox"),
        (lambda d: d["annotations"][0].update(area=-1), "has the area -1"),
        (lambda d: d["images"][0].update(file_name="../a.png"), "lead out of their folder: '../a.png'"),
        (lambda d: d["images"][0].update(file_name="/etc/passwd"), "lead out of their folder"),
        (lambda d: d["images"][0].update(width=0), "$.images[0].width"),
        (lambda d: d["images"][0].update(width="40"), "$.images[0].width"),
        (lambda d: d.pop("categories"), "missing required field `categories`"),
        (lambda d: d.update(categories=[]), "$.categories"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3]]), "has a polygon of 3 numbers"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 1e9]]), "leaves the picture"),
        (
            lambda d: d["annotations"][0].update(segmentation={"size": [30, 40], "counts": [5, -5, 1200]}),
            "run lengths that do not fill the picture",
        ),
        (
            lambda d: d["annotations"][0].update(segmentation={"size": [30, 40], "counts": "~~~"}),
            "run lengths that do not fill the picture",
        ),
        (lambda d: d["annotations"][0].update(segmentation={"size": [9, 9], "counts": [81]}), "is of 9x9 pixels"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    assert words in refused(coco(tmp_path, edited(change)))


def test_no_json_and_half_of_it(tmp_path: Path) -> None:
    text = json.dumps(DOCUMENT)
    assert "not a whole JSON file" in refused(coco(tmp_path, text[: len(text) // 2]))
    assert "not a whole JSON file" in refused(coco(tmp_path, '{"x": ' + "[" * 200_000))
    assert "not COCO annotations" in refused(coco(tmp_path, "[]"))
    huge = json.dumps(DOCUMENT).replace("[1, 2, 10, 20]", "[1, 2, 1e999, 20]")
    assert "Number out of range" in refused(coco(tmp_path, huge))


def test_several_files_of_annotations(tmp_path: Path) -> None:
    file = coco(tmp_path)
    (file.parent / "instances_train2017.json").write_text("{}")
    assert load(tmp_path).path == str(file)
    (file.parent / "instances_val2014.json").write_text("{}")
    assert "several files of annotations: instances_train2017.json" in refused(tmp_path)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_compressed_run_lengths_are_read_as_pycocotools_does(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < 0.4
    written = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"].decode()
    runs = _expanded(written)
    assert runs is not None
    down = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert (pixels == down.reshape(width, height).T).all()


@given(st.text(max_size=40))
def test_any_text_as_run_lengths_is_numbers_or_none(text: str) -> None:
    runs = _expanded(text)
    assert runs is None or all(isinstance(run, int) for run in runs)


# --- VOC ----------------------------------------------------------------------------------------

XML = """<annotation><filename>x.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>
<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></part></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>11</xmin><ymin>5</ymin><xmax>20</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def voc(root: Path, xml: str = XML, listed: str = "000001\n", name: str = "test") -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / "000001.xml").write_text(xml)
    Image.new("RGB", (50, 40)).save(root / "JPEGImages" / "000001.jpg")
    (root / "ImageSets" / "Main" / f"{name}.txt").write_text(listed)
    return root


def test_voc(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOCdevkit" / "VOC2007")
    for path in (root, tmp_path, tmp_path / "VOCdevkit", root / "ImageSets" / "Main" / "test.txt"):
        found = load(path)
        assert (found.kind, found.categories) == ("voc", ("cat", "dog"))
        (objects,) = found.objects
        # Pixels count from 1 and the last one belongs to the box.
        assert objects.boxes.tolist() == [[0, 0, 50, 40], [10, 4, 20, 9]]
        assert (objects.labels.tolist(), objects.ignored.tolist()) == ([1, 0], [False, True])
        assert found.pictures[0].size == (50, 40) and found.pictures[0].path.name == "000001.jpg"


def test_voc_lists(tmp_path: Path) -> None:
    root = voc(tmp_path, listed="000001  1\n\n", name="dog_val")
    assert len(load(root / "ImageSets" / "Main" / "dog_val.txt").pictures) == 1
    # Without a list for tests or validation all that is annotated is taken.
    assert len(load(root).pictures) == 1
    assert "given more than once: 000001" in refused(voc(tmp_path / "b", listed="000001\n000001\n"))
    assert "is no name of a picture" in refused(voc(tmp_path / "c", listed="../../etc/passwd\n"))
    assert "there is no such annotation" in refused(voc(tmp_path / "d", listed="000002\n"))
    (root / "JPEGImages" / "000001.jpg").unlink()
    assert "1 of 1 pictures are missing: 000001" in refused(root)


ENTITIES = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>' + XML.replace("dog", "&y;")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (ENTITIES, "it has a document type"),
        (XML[:200], "not well-formed XML"),
        ("<a>" * 1000, "nested too deeply"),
        (XML.replace("<xmax>20<", "<xmax>2000<"), "[11.0, 5.0, 2000.0, 9.0] in 000001.xml is not within the picture"),
        (XML.replace("<xmax>20<", "<xmax>2<"), "ends before it begins"),
        (XML.replace("<xmax>20<", "<xmax>nan<"), "is not made of numbers"),
        (XML.replace("<xmax>20<", "<xmax>many<"), "'many' is no number for xmax"),
        (XML.replace("<name>cat</name>", ""), "has no name or no box"),
        (XML.replace("<width>50</width>", "<width>0</width>"), "no width of 0 pixels"),
        ("<annotation/>", "does not give the picture's size"),
        ("x" * (5 << 20), "more than"),
    ],
)
def test_wrong_xml_is_refused(tmp_path: Path, xml: str, words: str) -> None:
    assert words in refused(voc(tmp_path, xml))


# --- Folders ------------------------------------------------------------------------------------


def test_folders_take_turns(tmp_path: Path) -> None:
    for name, count in (("cat", 3), ("dog", 1), ("empty", 0)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{index}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    found = load(tmp_path)
    assert (found.kind, found.categories, found.labels) == ("folders", ("cat", "dog"), (0, 1, 0, 0))
    assert [picture.name for picture in found.pictures] == ["cat/0.png", "dog/0.png", "cat/1.png", "cat/2.png"]


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_text("x")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file.bin", tmp_path / "none.json"):
        assert "data set" in refused(path)
    (tmp_path / "list.txt").write_text("x")
    assert "ImageSets/Main" in refused(tmp_path / "list.txt")


# --- Shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "of"), [("detection", "coco"), ("classification", "folders")])
def test_shapes_are_the_same_for_the_same_seed(tmp_path: Path, kind: Any, of: str) -> None:
    def drawn(name: str, seed: int) -> tuple[Dataset, dict[str, bytes]]:
        folder = write(tmp_path / name, kind=kind, count=5, seed=seed)
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        return load(folder), {str(file.relative_to(folder)): file.read_bytes() for file in files}

    one, files = drawn("one", 4)
    again, same = drawn("again", 4)
    other, different = drawn("other", 5)
    assert files == same and one.digest == again.digest
    assert files != different and one.digest != other.digest
    assert one.kind == of and len(one.pictures) == 5
    with pytest.raises(FleetError) as error:
        write(tmp_path / "one", kind=kind, count=5, seed=4)
    assert error.value.code == "exists"
