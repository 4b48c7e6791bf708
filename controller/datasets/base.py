"""What every data set is, whatever format it comes in, and what is checked of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from targets.base import FleetError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Kind = Literal["coco", "voc", "folders"]
T = TypeVar("T")

#: More than any published set of annotated pictures has.
MAX_PICTURES = 5_000_000
#: Pixels by which a box may stick out of its picture: annotation tools round.
SLACK = 2.0
_SHOWN = 3
#: Bad boxes are told one by one up to so many, and counted up to so many.
_COUNTED = 1000


@dataclass(frozen=True, slots=True)
class Picture:
    #: As the data set calls it.
    name: str
    path: Path
    #: Width and height that the annotation gives; None when it gives none.
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The outline of an object: polygons of x, y, x, y, … in pixels, or lengths of runs, down each column in turn."""

    polygons: tuple[tuple[float, ...], ...] = ()
    runs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Objects:
    """What is in one picture, n objects; coordinates in its pixels, counted from its left and upper edge."""

    #: (n, 4): left, top, right, bottom.
    boxes: Floats
    #: (n,): indices of the data set's categories.
    labels: Integers
    #: (n,): finding it is not asked for, nor is it wrong: a crowd (COCO), or difficult (VOC).
    ignored: Flags
    #: (n,): square pixels, by which COCO's sizes go.
    areas: Floats
    #: n of them, or none at all.
    outlines: tuple[Segmentation | None, ...] = ()


@dataclass(frozen=True)
class Dataset:
    kind: Kind
    path: str
    categories: tuple[str, ...]
    pictures: tuple[Picture, ...]
    #: For detectors: what is in each picture.
    objects: tuple[Objects, ...] = ()
    #: For classifiers: the category of each picture.
    labels: tuple[int, ...] = ()
    #: Pictures that are left out because their files are missing.
    missing: tuple[str, ...] = ()

    @property
    def has_outlines(self) -> bool:
        """Whether every object has an outline, so that masks can be measured."""
        return bool(self.objects) and all(
            len(each.outlines) == len(each.labels) and all(each.outlines) for each in self.objects
        )

    def first(self, count: int) -> Dataset:
        """The first ``count`` pictures of it; 0 takes all."""
        if not count or count >= len(self.pictures):
            return self
        return replace(
            self, pictures=self.pictures[:count], objects=self.objects[:count], labels=self.labels[:count], missing=()
        )

    def annotated(self) -> Dataset:
        """Without the pictures in which no object is annotated; of a set of folders, all of it.

        Raises :class:`FleetError` (``bad-dataset``) when none is left.
        """
        if not self.objects:
            return self
        there = [index for index, each in enumerate(self.objects) if len(each.labels)]
        if not there:
            raise bad(self.path, "no picture in it has an annotation")
        return replace(
            self,
            pictures=tuple(self.pictures[index] for index in there),
            objects=tuple(self.objects[index] for index in there),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of categories, names of the pictures, sizes of their files, and the truth about them.

        The pictures themselves are not read: that would take longer than many an evaluation.
        """
        sha = hashlib.sha256()

        def add(*parts: object) -> None:
            for part in parts:
                data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
                sha.update(len(data).to_bytes(8, "little") + data)

        add(self.kind, len(self.categories), *self.categories)
        for picture in self.pictures:
            add(picture.name, picture.path.stat().st_size, picture.size)
        add(*self.labels)
        for each in self.objects:
            add(each.boxes.tobytes(), each.labels.tobytes(), each.ignored.tobytes(), each.areas.tobytes())
            add(*(f"{one.polygons}{one.runs}" if one else "" for one in each.outlines))
        return sha.hexdigest()


def bad(path: Path | str, what: str, hint: str = "") -> FleetError:
    """A data set that cannot be used."""
    return FleetError(f"{path}: {what}", code="bad-dataset", hint=hint)


def some(names: Iterable[object], count: int | None = None) -> str:
    """The first few of ``names`` in words, and how many more there are."""
    everything = list(names)
    shown = ", ".join(str(name) for name in everything[:_SHOWN])
    more = (len(everything) if count is None else count) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def refuse_duplicates(path: Path, what: str, values: Iterable[object]) -> None:
    """Raises :class:`FleetError` when one of ``values`` is there twice."""
    seen: set[object] = set()
    twice = [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
    if twice:
        raise bad(path, f"{what} given more than once: {some(twice)}")


def refuse_wrong(path: Path, wrong: Iterator[str], what: str) -> None:
    """Raises :class:`FleetError` that tells the first few of ``wrong``, and how many there are."""
    found = list(islice(wrong, _COUNTED))
    if found:
        number = f"{len(found)}{' or more' if len(found) == _COUNTED else ''}"
        raise bad(path, f"{number} {what}: {'; '.join(found[:_SHOWN])}{'; …' if len(found) > _SHOWN else ''}")


def wrong_box(box: Sequence[float], size: tuple[int, int]) -> str:
    """Why left, top, right, bottom is no box of a picture of (width, height); empty when it is one."""
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all():
        return "is not made of numbers"
    if x1 < x0 or y1 < y0:
        return "ends before it begins"
    width, height = size
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        return f"is not within the picture of {width}x{height}"
    return ""


def present(dataset: Dataset, *, skip: bool) -> Dataset:
    """The data set, all of whose pictures are files; with ``skip``, without those that are not.

    Raises :class:`FleetError` (``bad-dataset``) that names the first few of the missing, or when none is left.
    """
    there = [picture.path.is_file() for picture in dataset.pictures]
    missing = tuple(picture.name for picture, found in zip(dataset.pictures, there, strict=True) if not found)
    if missing and not skip:
        folder = next(p.path for p, found in zip(dataset.pictures, there, strict=True) if not found).parent
        raise bad(
            dataset.path,
            f"{len(missing)} of {len(there)} pictures are missing: {some(missing)}; looked for in {folder}",
            "--images names their folder; --skip-bad leaves them out",
        )
    if not any(there):
        raise bad(dataset.path, "there is no picture in it")
    if not missing:
        return dataset

    def kept(values: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(value for value, found in zip(values, there, strict=True) if found) if values else ()

    return replace(
        dataset,
        pictures=kept(dataset.pictures),
        objects=kept(dataset.objects),
        labels=kept(dataset.labels),
        missing=missing,
    )
