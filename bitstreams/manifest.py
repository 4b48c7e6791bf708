"""The manifest of known bitstreams: what nobody can read out of a file, by the file's digest.

A file name says nothing of the instruction layout and the same name was published with different contents, so a
bitstream is known by its digest alone. Source of ours: the repository uwsampl/vta-distro at revision a685703.
``sha256`` was computed over each file; one that could not be read has its git object id only, which names its contents
as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from targets.base import FleetError
from targets.files import read_bounded

#: Of a manifest file and of a bitstream: the largest device of the family has 45 MB.
MAX_MANIFEST = 1 << 20
MAX_BITSTREAM = 64 << 20

_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
_Sha1 = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{40})?\Z")]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z")]


class KnownBitstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. At least one of ``sha256`` and ``git_blob`` is known, both in full."""

    #: The board it was built for, and its device without prefix, package and speed: ``pynq``, ``7z020``.
    board: _Word
    device: _Word
    #: Name of its VTA configuration, and its instruction layout.
    configuration: _Word
    hw_ver: _Word
    url: Annotated[str, msgspec.Meta(pattern="^https?://", max_length=1024)]
    sha256: _Sha256 = ""
    #: Git's name for the contents: SHA-1 over ``blob SIZE\\0`` and the bytes.
    git_blob: _Sha1 = ""
    #: Bytes; 0 when not known.
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BITSTREAM)] = 0
    format: Literal["bit", "rbf"] = "bit"
    #: Date and time in its header, such as ``2020/06/30 18:11:16``.
    built: str = ""
    note: str = ""

    @property
    def identity(self) -> str:
        """What a program must have been built for: configuration and instruction layout."""
        return f"{self.configuration}@{self.hw_ver}"

    @property
    def name(self) -> str:
        """Such as ``pynq/0.0.2/1x16_i8w8a32_15_15_18_17``."""
        return f"{self.board}/{self.hw_ver}/{self.configuration}"

    @property
    def digest(self) -> str:
        """For people and file names; says which kind it is."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.git_blob}"

    def is_of(self, data: bytes) -> bool:
        """Whether these are its bytes."""
        if self.sha256:
            return hashlib.sha256(data).hexdigest() == self.sha256
        return git_blob(data) == self.git_blob


def git_blob(data: bytes) -> str:
    """The name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@cache
def known() -> tuple[KnownBitstream, ...]:
    """The published bitstreams."""
    return _parse(files("bitstreams").joinpath("manifest.json").read_bytes(), "the manifest")


def load(path: Path) -> tuple[KnownBitstream, ...]:
    """A manifest of one's own, in the same form. Raises :class:`FleetError` ``bad-manifest``."""
    try:
        data = read_bounded(path, MAX_MANIFEST, lambda reason: _bad(str(path), reason))
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error.strerror}", code="no-such-file") from None
    return _parse(data, str(path))


def find(name: str, manifest: Sequence[KnownBitstream]) -> KnownBitstream:
    """One of ``manifest`` by its whole name, or by any part of it that fits one alone, or by its SHA-256's beginning.

    Raises :class:`FleetError`: ``unknown-bitstream``, ``ambiguous-bitstream``.
    """
    exact = [one for one in manifest if one.name == name]
    found = exact or [one for one in manifest if name in one.name or (len(name) > 7 and one.sha256.startswith(name))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FleetError(
            f"there is no bitstream '{name}'",
            code="unknown-bitstream",
            hint="`vta bitstream list` shows the known ones",
        )
    raise FleetError(
        f"'{name}' fits {len(found)} bitstreams",
        code="ambiguous-bitstream",
        hint=f"say which: {', '.join(one.name for one in found)}",
    )


def _parse(data: bytes, source: str) -> tuple[KnownBitstream, ...]:
    try:
        found = msgspec.json.decode(data, type=tuple[KnownBitstream, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(source, str(error)) from None
    for one in found:
        if not one.sha256 and not one.git_blob:
            raise _bad(source, f"{one.name} has no digest")
    if len({one.digest for one in found}) != len(found):
        raise _bad(source, "one digest stands there twice")
    return found


def _bad(source: str, why: str) -> FleetError:
    return FleetError(
        f"{source} is no manifest of bitstreams: {why}",
        code="bad-manifest",
        hint="`vta bitstream list --json` shows what one holds",
    )
