"""Opening pictures, which are somebody's files: formats that run other programs are not opened, and sizes are checked
before decoding."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from targets.base import FleetError
from targets.pictures.place import MAX_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: Names of files that are taken from a folder, in lower case.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
MAX_FILE = 256 << 20


def bad_picture(path: Path | str, what: str, hint: str = "") -> FleetError:
    """An error about a file."""
    return FleetError(f"{shown(path)}: {what}", code="bad-picture", hint=hint)


def shown(path: Path | str) -> str:
    """A path as text that every terminal and every JSON document can hold: names of files are bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def load(path: Path | str) -> Image.Image:
    """Open a picture as upright 8-bit RGB: EXIF rotation applied, transparency laid over white, first frame only.

    Raises :class:`FleetError` with code ``bad-picture`` that says what is wrong with it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise bad_picture(path, "this is a folder, not a picture")
        size = path.stat().st_size
    except FileNotFoundError:
        raise bad_picture(path, "there is no such file") from None
    except OSError as error:
        raise bad_picture(path, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise bad_picture(path, "files cannot have this name") from None
    if not size:
        raise bad_picture(path, "the file is empty")
    if size > MAX_FILE:
        raise bad_picture(path, f"the file is {size >> 20} MB, more than the {MAX_FILE >> 20} MB that are opened")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes, where our limit is tighter, and of faults that it reads past.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return to_rgb(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError:
        raise bad_picture(path, "not a picture in a format that is read", f"formats: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise bad_picture(
            path,
            f"the picture has more than the {MAX_PIXELS // 1_000_000} million pixels that are decoded",
            "scale it down",
        ) from None
    except PermissionError:
        raise bad_picture(path, "cannot be read: permission denied") from None
    # Damaged files make Pillow's decoders raise whatever they stumble over.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        zlib.error,
        MemoryError,
    ) as error:
        raise bad_picture(path, f"the picture is damaged: {error}") from None


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """A picture of any mode as 8-bit RGB. Raises as :func:`load`, about ``path``."""
    if image.mode == "F":
        raise bad_picture(
            path, "pictures of floating-point values have no agreed brightness", "save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise bad_picture(path, "grey values beyond 16 bits have no agreed brightness", "save it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "La":
        # Premultiplied grey, which converts to nothing but this.
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


class Listed(NamedTuple):
    """A file to open, and whether it was named itself or found in a folder."""

    path: Path
    named: bool


def listed(paths: Iterable[Path | str]) -> list[Listed]:
    """The files, and for each folder the pictures right inside, ``frame2.png`` before ``frame10.png``.

    Hidden files are left out. Raises FleetError ``bad-picture`` for a folder that holds none, or cannot be read.
    """
    found: list[Listed] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [Listed(inside, named=False) for inside in folder(path)]
        else:
            found.append(Listed(path, named=True))
    return found


def folder(path: Path) -> list[Path]:
    """The pictures right inside a folder as :func:`listed` gives them, known by their suffixes."""
    try:
        inside = [
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        ]
    except OSError as error:
        raise bad_picture(path, f"cannot be read: {error.strerror}") from None
    if not inside:
        raise bad_picture(path, "there are no pictures in this folder", f"suffixes: {', '.join(sorted(SUFFIXES))}")
    return sorted(inside, key=lambda entry: (natural(entry.name), entry.name))


def natural(name: str) -> list[str | int]:
    """By which names are sorted as people count: words and numbers take turns, so that like is compared with like."""
    return [int(part) if odd % 2 else part.casefold() for odd, part in enumerate(re.split(r"([0-9]+)", name))]
