"""COCO's format of annotated objects (https://cocodataset.org/#format-data), with everything checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec
import numpy as np

from controller.datasets.base import (
    MAX_PICTURES,
    SLACK,
    Dataset,
    Objects,
    Picture,
    Segmentation,
    bad,
    refuse_duplicates,
    refuse_wrong,
    some,
    wrong_box,
)
from targets.files import read_bounded

#: Twice the annotations of COCO's 118,000 training pictures.
MAX_FILE = 1 << 30
_MAX_SIDE = 100_000
_PREFIX = "instances_"
#: Pictures that are looked for to find the folder they are in.
_PROBES = 20
#: Characters of one number in compressed run lengths: 7 of them hold 35 bits.
_MAX_DIGITS = 7

_Side = Annotated[int, msgspec.Meta(gt=0, le=_MAX_SIDE)]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: _Side
    height: _Side


class _Runs(msgspec.Struct):
    #: Height, width.
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    #: Left, top, width, height.
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    segmentation: list[list[float]] | _Runs | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _Document(msgspec.Struct):
    images: Annotated[list[_Image], msgspec.Meta(max_length=MAX_PICTURES)]
    annotations: list[_Annotation]
    categories: Annotated[list[_Category], msgspec.Meta(min_length=1, max_length=100_000)]


def annotations_in(folder: Path) -> Path | None:
    """The file of annotations in a data set's folder; None when there is none.

    Raises :class:`FleetError` when there are several, none of which is the one to measure on.
    """
    for place in (folder / "annotations", folder):
        found = sorted(place.glob(f"{_PREFIX}*.json"))
        held_back = [file for file in found if file.stem.removeprefix(_PREFIX).startswith(("val", "test"))]
        for files in (found, held_back):
            if len(files) == 1:
                return files[0]
        if found:
            raise bad(folder, f"it has several files of annotations: {some(f.name for f in found)}", "name one of them")
    return None


def load(path: Path, images: Path | None = None) -> Dataset:
    """Read a file of annotations. Whether the pictures are there is not looked at."""
    data = read_bounded(path, MAX_FILE, lambda reason: bad(path, reason))
    try:
        document = msgspec.json.decode(data, type=_Document)
    except msgspec.ValidationError as error:
        raise bad(path, f"not COCO annotations: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(path, f"not a whole JSON file: {error}", "copy or download it again") from None
    _check(path, document)
    document.categories.sort(key=lambda category: category.id)
    labels = {category.id: index for index, category in enumerate(document.categories)}
    by_picture: dict[int, list[_Annotation]] = defaultdict(list)
    for annotation in document.annotations:
        by_picture[annotation.image_id].append(annotation)
    folder = images or _folder(path, document.images)
    return Dataset(
        kind="coco",
        path=str(path),
        categories=tuple(category.name for category in document.categories),
        pictures=tuple(
            Picture(image.file_name, folder / image.file_name, (image.width, image.height)) for image in document.images
        ),
        objects=tuple(_objects(path, by_picture[image.id], image, labels) for image in document.images),
    )


def _check(path: Path, document: _Document) -> None:
    refuse_duplicates(path, "ids of pictures", (image.id for image in document.images))
    refuse_duplicates(path, "names of pictures", (image.file_name for image in document.images))
    refuse_duplicates(path, "ids of annotations", (annotation.id for annotation in document.annotations))
    refuse_duplicates(path, "ids of categories", (category.id for category in document.categories))
    refuse_duplicates(path, "names of categories", (category.name for category in document.categories))
    outside = [image.file_name for image in document.images if not _inside(image.file_name)]
    if outside:
        raise bad(path, f"names of pictures lead out of their folder: {some(map(repr, outside))}")
    images = {image.id: image for image in document.images}
    categories = {category.id for category in document.categories}

    def foreign() -> Iterator[str]:
        for one in document.annotations:
            if one.image_id not in images:
                yield f"annotation {one.id} is of picture {one.image_id}, which is not listed"
            elif one.category_id not in categories:
                yield f"annotation {one.id} has the category {one.category_id}, which is not listed"

    def boxes() -> Iterator[str]:
        for one in document.annotations:
            image = images[one.image_id]
            left, top, width, height = one.bbox
            reason = wrong_box((left, top, left + width, top + height), (image.width, image.height))
            if not reason and one.area is not None and not (np.isfinite(one.area) and one.area >= 0):
                reason = f"has the area {one.area}"
            if reason:
                yield f"that of annotation {one.id}, {list(one.bbox)} in {image.file_name}, {reason}"

    refuse_wrong(path, foreign(), "annotations of nothing")
    refuse_wrong(path, boxes(), "wrong boxes")


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name


def _folder(path: Path, images: Sequence[_Image]) -> Path:
    """The first of the usual places that has one of the pictures; the first place of all when none has."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = path.stem.removeprefix(_PREFIX)
    places = [root / split, root / "images" / split, root / "images", root / "JPEGImages", root, path.parent]
    for place in places:
        if any((place / image.file_name).is_file() for image in images[:_PROBES]):
            return place
    return next((place for place in places if place.is_dir()), root)


def _objects(path: Path, found: Sequence[_Annotation], image: _Image, labels: Mapping[int, int]) -> Objects:
    corners = [(x, y, x + width, y + height) for x, y, width, height in (one.bbox for one in found)]
    outlines = tuple(_outline(path, one, image) for one in found)
    return Objects(
        boxes=np.array(corners, np.float64).reshape(-1, 4),
        labels=np.array([labels[one.category_id] for one in found], np.int64),
        ignored=np.array([one.iscrowd != 0 for one in found], np.bool_),
        areas=np.array([one.bbox[2] * one.bbox[3] if one.area is None else one.area for one in found], np.float64),
        outlines=outlines if any(outlines) else (),
    )


def _outline(path: Path, annotation: _Annotation, image: _Image) -> Segmentation | None:
    """What pycocotools may be given: its C code trusts lengths and coordinates."""
    given = annotation.segmentation
    if not given:
        return None

    def wrong(what: str) -> Exception:
        return bad(path, f"the outline of annotation {annotation.id} in {image.file_name} {what}")

    if isinstance(given, _Runs):
        runs = _expanded(given.counts) if isinstance(given.counts, str) else given.counts
        if given.size != (image.height, image.width):
            raise wrong(f"is of {given.size[1]}x{given.size[0]} pixels, the picture of {image.width}x{image.height}")
        if runs is None or min(runs, default=0) < 0 or sum(runs) != image.width * image.height:
            raise wrong("has run lengths that do not fill the picture")
        return Segmentation(runs=tuple(runs))
    for polygon in given:
        if len(polygon) < 6 or len(polygon) % 2:
            raise wrong(f"has a polygon of {len(polygon)} numbers")
        values = np.array(polygon)
        most = np.array([image.width, image.height] * (len(polygon) // 2)) + SLACK
        if not (np.isfinite(values) & (values >= -SLACK) & (values <= most)).all():
            raise wrong("leaves the picture")
    return Segmentation(polygons=tuple(map(tuple, given)))


def _expanded(text: str) -> list[int] | None:
    """Run lengths from COCO's text: six bits a character, low ones first; from the fourth on, differences to the last
    but one. None for text that is not such."""
    runs: list[int] = []
    value = digits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == _MAX_DIGITS:
            return None
        value |= (code & 31) << 5 * digits
        digits += 1
        if code & 32:
            continue
        if code & 16:
            value -= 1 << 5 * digits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = digits = 0
    return None if digits else runs
