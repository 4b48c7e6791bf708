"""Pictures in one folder for each class."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from controller.datasets.base import MAX_PICTURES, Dataset, Picture, bad


def load(root: Path) -> Dataset | None:
    """The pictures in ``root``'s folders, whose names are the categories; None when no folder holds a picture.

    Pictures of the classes take turns, so that the first few of the data set are of all classes.
    """
    from targets.pictures.read import SUFFIXES

    categories: list[str] = []
    columns: list[list[tuple[Picture, int]]] = []
    for folder in sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")):
        # Other files, such as notes and checksums, are passed by.
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if files:
            label = len(categories)
            categories.append(folder.name)
            columns.append([(Picture(f"{folder.name}/{file.name}", file), label) for file in files])
    if not columns:
        return None
    if sum(map(len, columns)) > MAX_PICTURES:
        raise bad(root, f"it has more than {MAX_PICTURES} pictures")
    pairs = [pair for row in zip_longest(*columns) for pair in row if pair is not None]
    return Dataset(
        kind="folders",
        path=str(root),
        categories=tuple(categories),
        pictures=tuple(picture for picture, _ in pairs),
        labels=tuple(label for _, label in pairs),
    )
