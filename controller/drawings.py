"""Where pictures with boxes go: one file, or a folder in which each has the name of the picture it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from targets.base import FleetError


class Drawings:
    """A path for each picture and device, all known before anything is computed."""

    def __init__(self, given: str, pictures: Sequence[Path], devices: Sequence[str]) -> None:
        """``given``: a file, or a folder if there are several or it is one; empty when nothing is drawn.

        Raises FleetError ``usage`` for a file that is no picture's, or when a picture would be written over itself.
        """
        self._paths: dict[tuple[int, str], Path] = {}
        if not given:
            return
        from targets.pictures.read import SUFFIXES, shown

        target = Path(given)
        sources = {path.resolve() for path in pictures}
        in_folder = len(pictures) * len(devices) > 1 or target.is_dir()
        if not in_folder and target.suffix.lower() not in SUFFIXES:
            raise FleetError(
                f"--output {given}: no picture format has this suffix", code="usage", hint="use .png or .jpg"
            )
        if in_folder and target.exists() and not target.is_dir():
            raise FleetError(f"--output {given}: several pictures go to a folder, this is a file", code="usage")
        taken: set[Path] = set()
        for device in devices:
            for number, picture in enumerate(pictures):
                path = target
                if in_folder:
                    path = _free(target / _name(picture, f".{device}" if len(devices) > 1 else "", SUFFIXES), taken)
                    taken.add(path)
                if path.resolve() in sources:
                    raise FleetError(
                        f"--output {given}: {shown(path)} is a picture to run on, and would be written over",
                        code="usage",
                        hint="give another file or folder",
                    )
                self._paths[number, device] = path

    def path(self, picture: int, device: str) -> Path:
        """Where the picture of that number goes, as this device sees it."""
        return self._paths[picture, device]


def _name(picture: Path, infix: str, suffixes: frozenset[str]) -> str:
    suffix = picture.suffix if picture.suffix.lower() in suffixes else ".png"
    return f"{picture.stem}{infix}{suffix}"


def _free(path: Path, taken: set[Path]) -> Path:
    """The path, with a number where pictures of several folders have the same name."""
    free, number = path, 2
    while free in taken:
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free
