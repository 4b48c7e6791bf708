"""Which format a data set has, and reading it."""

from __future__ import annotations

from pathlib import Path

from controller.datasets import coco, folders, voc
from controller.datasets.base import Dataset, bad, present

_EXPECTED = (
    "a COCO file (instances_*.json) or a folder with annotations/instances_*.json, a VOC folder (Annotations, "
    "JPEGImages, ImageSets) or a list in its ImageSets/Main, or a folder with a folder of pictures for each class"
)


def load(path: Path | str, *, images: Path | None = None, skip_missing: bool = False) -> Dataset:
    """Read a data set and check all of it but the pictures' contents.

    ``images`` is the folder with a COCO file's pictures; None looks in the usual places.

    Raises :class:`FleetError` (``bad-dataset``) that says what is wrong with it.
    """
    path = Path(path)
    try:
        return present(_read(path, images), skip=skip_missing)
    except OSError as error:
        raise bad(error.filename or path, f"cannot be read: {error.strerror}") from None


def _read(path: Path, images: Path | None) -> Dataset:
    if path.is_file():
        if path.suffix.lower() == ".json":
            return coco.load(path, images)
        if path.suffix.lower() == ".txt":
            return voc.load(path)
        raise bad(path, "this is no data set", f"expected {_EXPECTED}")
    if not path.is_dir():
        raise bad(path, "there is no such data set", f"expected {_EXPECTED}")
    if annotations := coco.annotations_in(path):
        return coco.load(annotations, images)
    if root := voc.root_in(path):
        return voc.load(root)
    found = folders.load(path)
    if found is None:
        raise bad(path, "this is no data set", f"expected {_EXPECTED}")
    return found
