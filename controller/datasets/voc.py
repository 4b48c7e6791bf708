"""PASCAL VOC's format: an XML file for each picture, and lists of pictures (the development kit's documentation)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from controller.datasets.base import (
    MAX_PICTURES,
    Dataset,
    Objects,
    Picture,
    bad,
    refuse_duplicates,
    refuse_wrong,
    wrong_box,
)
from targets.files import read_bounded

_MAX_XML = 4 << 20
_MAX_LIST = 256 << 20
_MAX_DEPTH = 16
_MAX_SIDE = 100_000
#: Lists by the order in which they are meant for measuring.
_LISTS = ("test", "val")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def root_in(folder: Path) -> Path | None:
    """The folder with ``Annotations`` and ``JPEGImages``: this one, or the one year's below it; None without any."""

    def is_root(each: Path) -> bool:
        return (each / "Annotations").is_dir() and (each / "JPEGImages").is_dir()

    if is_root(folder):
        return folder
    years = [each for base in (folder, folder / "VOCdevkit") for each in sorted(base.glob("VOC*")) if is_root(each)]
    if len(years) > 1:
        raise bad(folder, f"it has several years: {', '.join(year.name for year in years)}", "name one of them")
    return years[0] if years else None


def load(path: Path) -> Dataset:
    """``path``: a root as of `root_in`, of which the test list is taken, else that for validation, else all that is
    annotated; or a list in its ``ImageSets/Main``. Whether the pictures are there is not looked at."""
    root = path if path.is_dir() else path.parent.parent.parent
    if not (root / "Annotations").is_dir():
        raise bad(path, "a list of VOC pictures lies in ImageSets/Main, beside Annotations and JPEGImages")
    names = _names(path, root)
    refuse_duplicates(path, "pictures", names)
    if len(names) > MAX_PICTURES:
        raise bad(path, f"it lists more than {MAX_PICTURES} pictures")
    read = [_Annotation(root, name) for name in names]

    def boxes() -> Iterator[str]:
        for one in read:
            for box in one.boxes:
                if reason := wrong_box(box, one.size):
                    # As they stand in the file: counted from 1, with the last pixel.
                    written = [box[0] + 1, box[1] + 1, box[2], box[3]]
                    yield f"{[round(edge, 2) for edge in written]} in {one.path.name} {reason}"

    refuse_wrong(path, boxes(), "wrong boxes")
    categories = tuple(sorted({label for one in read for label in one.labels}))
    if not categories:
        raise bad(path, "no object is annotated in it")
    indices = {name: index for index, name in enumerate(categories)}
    return Dataset(
        kind="voc",
        path=str(path),
        categories=categories,
        pictures=tuple(Picture(name, _picture(root, name), one.size) for name, one in zip(names, read, strict=True)),
        objects=tuple(one.objects(indices) for one in read),
    )


def _names(path: Path, root: Path) -> list[str]:
    listed = path if path.is_file() else None
    lists = root / "ImageSets" / "Main"
    if listed is None:
        listed = next((file for name in _LISTS if (file := lists / f"{name}.txt").is_file()), None)
    if listed is None:
        return sorted(file.stem for file in (root / "Annotations").glob("*.xml"))
    text = read_bounded(listed, _MAX_LIST, lambda reason: bad(listed, reason)).decode("utf-8", "replace")
    # Lists for one class say behind each name whether the class is there.
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            raise bad(listed, f"{name!r} is no name of a picture")
    return names


def _picture(root: Path, name: str) -> Path:
    folder = root / "JPEGImages"
    return next(
        (file for suffix in _SUFFIXES if (file := folder / f"{name}{suffix}").is_file()), folder / f"{name}.jpg"
    )


class _Annotation:
    """One XML file: ``size`` (width, height), and ``boxes``, ``labels`` and ``difficult`` of its objects."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "Annotations" / f"{name}.xml"
        if not self.path.is_file():
            raise bad(self.path, "there is no such annotation, although the picture is listed")
        tree = _parse(self.path)
        size = tree.find("size")
        if size is None:
            raise bad(self.path, "it does not give the picture's size")
        self.size = self._side(size, "width"), self._side(size, "height")
        self.boxes: list[tuple[float, float, float, float]] = []
        self.labels: list[str] = []
        self.difficult: list[bool] = []
        for each in tree.findall("object"):
            box = each.find("bndbox")
            label = (each.findtext("name") or "").strip()
            if box is None or not label:
                raise bad(self.path, "an object has no name or no box")
            x0, y0, x1, y1 = (self._number(box, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
            # Pixels are counted from 1, and the last one belongs to the box.
            self.boxes.append((x0 - 1, y0 - 1, x1, y1))
            self.labels.append(label)
            self.difficult.append((each.findtext("difficult") or "0").strip() not in ("0", ""))

    def objects(self, indices: dict[str, int]) -> Objects:
        boxes = np.array(self.boxes, np.float64).reshape(-1, 4)
        return Objects(
            boxes=boxes,
            labels=np.array([indices[label] for label in self.labels], np.int64),
            ignored=np.array(self.difficult, np.bool_),
            areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        )

    def _number(self, parent: Element, name: str) -> float:
        text = (parent.findtext(name) or "").strip()
        try:
            return float(text)
        except ValueError:
            raise bad(self.path, f"'{text[:40]}' is no number for {name}") from None

    def _side(self, parent: Element, name: str) -> int:
        value = self._number(parent, name)
        if not 1 <= value <= _MAX_SIDE:
            raise bad(self.path, f"a picture has no {name} of {value:g} pixels")
        return int(value)


def _parse(path: Path) -> Element:
    """The tree of an XML file that has no document type, hence no entities, and is neither large nor deep."""
    data = read_bounded(path, _MAX_XML, lambda reason: bad(path, reason))
    parser, builder = expat.ParserCreate(), TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise bad(path, "its elements are nested too deeply")
        builder.start(name, {})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def document_type(*_: object) -> None:
        raise bad(path, "it has a document type, with which XML can grow without bounds", "remove its <!DOCTYPE …>")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise bad(path, f"not well-formed XML: {error}") from None
    return builder.close()
