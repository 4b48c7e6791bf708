"""What a ``.pt2`` file says of itself beside its program: how pictures become its input, and what its outputs mean.

It is a member of the archive, ``extra/fleet.json``, which torch's own loader takes for what it is: a text.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from targets.base import ModelError, Postprocess, Preprocess

if TYPE_CHECKING:
    from targets.pt2_model import Pt2

#: What torch is told to call it; it puts it below ``extra/``.
MEMBER = "fleet.json"
_MAX_BYTES = 16 << 20


class Description(msgspec.Struct, frozen=True):
    """``outputs`` are their names in order; empty: torch's. Labels count from 0, without a background."""

    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def text(self) -> str:
        return msgspec.json.encode(self).decode()


def read(path: Path, program: Pt2) -> Description:
    """What the file, whose checked program is given, says of itself; nothing when it says nothing.

    Raises :class:`ModelError` (``bad-model``) for a description that is damaged or is of another program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.partition("/")[2] == f"extra/{MEMBER}"]
            if not found:
                return Description()
            if found[0].file_size > _MAX_BYTES:
                raise ModelError(f"{path}: its description is larger than {_MAX_BYTES >> 20} MiB")
            description = msgspec.json.decode(archive.read(found[0]), type=Description)
    except (OSError, zipfile.BadZipFile, NotImplementedError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: its description (extra/{MEMBER}) cannot be read: {error}") from None
    _check(description, program, path)
    return description


def _check(description: Description, program: Pt2, path: Path) -> None:
    names, given = description.outputs, program.outputs
    if names and (len(names) != len(given) or len(set(names)) != len(names)):
        raise ModelError(f"{path}: its description names {len(names)} outputs, the program has {len(given)}")
    preprocess = description.preprocess
    if preprocess is None:
        return
    height, width = preprocess.canvas if any(preprocess.canvas) else preprocess.size
    channels = len(preprocess.mean)
    wanted = (channels, height, width) if preprocess.layout == "NCHW" else (height, width, channels)
    shape = program.inputs[0].shape if program.inputs else ()
    if shape[1:] != wanted:
        raise ModelError(
            f"{path}: its description prepares pictures as {'×'.join(map(str, wanted))}, the program takes "
            f"{'×'.join(map(str, shape[1:])) or 'none'}"
        )
