"""The ``.bit`` file: its header, and whether a file may be programmed into a board.

Vivado's container, numbers big endian: a preamble, then fields ``a`` (design), ``b`` (part), ``c`` (date), ``d`` (time)
as u16 length and text with a closing NUL, then ``e``: u32 length and the configuration data to the end of the file. The
data start with padding and the sync word, after which configuration packets follow; the one that writes register IDCODE
names the device (Xilinx UG470, UG570). Checked against the published VTA bitstreams.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bitstreams import manifest as manifests
from bitstreams.manifest import MAX_BITSTREAM, KnownBitstream
from targets.base import FleetError
from targets.files import read_bounded

_PREAMBLE = bytes.fromhex("0009 0ff00ff00ff00ff000 0001")
_SYNC = bytes.fromhex("aa995566")
#: A packet of type 1 that writes one word to register IDCODE.
_WRITE_IDCODE = bytes.fromhex("30018001")
#: How far into the data the sync word may lie, and the IDCODE after it, in bytes.
_SYNC_WITHIN = 4096
_IDCODE_WITHIN = 4096
#: Bits 31-28 of an IDCODE are the revision of the silicon.
IDCODE_MASK = 0x0FFF_FFFF


class Part(Protocol):
    """What of a board a bitstream must fit. ``targets.vta.boards.Board`` has it."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str:
        """As a part's name starts: ``7z020``; empty where no ``.bit`` file is used."""
        ...

    @property
    def idcode(self) -> int | None:
        """Without revision; None where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class BitFile:
    """What a ``.bit`` file says of itself. Offsets and lengths in bytes, from the start of the file."""

    design: str
    #: Device and package, such as ``7z020clg484``; no speed grade.
    part: str
    date: str
    time: str
    payload_offset: int
    payload_length: int
    #: Without the revision; None if no packet near the start of the data names the device.
    idcode: int | None
    sync_offset: int
    #: Of the whole file.
    sha256: str
    partial: bool

    @property
    def built(self) -> str:
        return f"{self.date} {self.time}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that may be programmed. ``header`` is None for a format that has none; ``known`` is None for a file that
    only its digest vouches for."""

    data: bytes
    sha256: str
    header: BitFile | None
    known: KnownBitstream | None


def parse(data: bytes, source: str = "the file") -> BitFile:
    """The header of a ``.bit`` file. Raises :class:`FleetError` ``bad-bitstream``, which says where it is not one."""
    if not data.startswith(_PREAMBLE):
        raise _bad(source, _looks_like(data))
    at = len(_PREAMBLE)
    texts = []
    for key in b"abcd":
        if len(data) < at + 3:
            raise _bad(source, "it is cut short within its header")
        if data[at] != key:
            raise _bad(source, f"field '{chr(key)}' is missing from its header")
        (length,) = struct.unpack_from(">H", data, at + 1)
        text = data[at + 3 : at + 3 + length]
        if len(text) < length:
            raise _bad(source, "it is cut short within its header")
        if not text.endswith(b"\0") or not (value := text[:-1].decode("ascii", "replace")).isprintable():
            raise _bad(source, f"field '{chr(key)}' of its header is no text")
        texts.append(value)
        at += 3 + length
    if len(data) < at + 5 or data[at] != ord("e"):
        raise _bad(source, "field 'e' is missing from its header")
    (length,) = struct.unpack_from(">I", data, at + 1)
    start = at + 5
    if length != len(data) - start:
        how = "cut short" if length > len(data) - start else "too long"
        raise _bad(source, f"it is {how}: {len(data) - start} bytes of data, and its header says {length}")
    if not length or length % 4:
        raise _bad(source, f"{length} bytes of data are no whole number of words")
    sync = data.find(_SYNC, start, start + _SYNC_WITHIN)
    if sync < 0 or (sync - start) % 4:
        raise _bad(source, "its data have no sync word")
    design, part, date, time = texts
    return BitFile(
        design=design,
        part=part,
        date=date,
        time=time,
        payload_offset=start,
        payload_length=length,
        idcode=_idcode(data, sync + 4),
        sync_offset=sync,
        sha256=hashlib.sha256(data).hexdigest(),
        partial="PARTIAL=TRUE" in design.upper().split(";"),
    )


def read(path: Path) -> bytes:
    """The bytes of a bitstream file. Raises :class:`FleetError`: ``no-such-file``, ``bad-bitstream`` when too large."""
    try:
        return read_bounded(path, MAX_BITSTREAM, lambda reason: _bad(str(path), reason))
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error.strerror}", code="no-such-file") from None


def check(
    file: Path | bytes,
    *,
    board: Part | None = None,
    identity: str = "",
    sha256: str = "",
    manifest: Sequence[KnownBitstream] | None = None,
) -> Checked:
    """``file`` (a path, or its bytes), if it may be programmed into ``board`` to run programs built for ``identity``.

    ``identity`` is `VtaConfig.identity`; ``sha256`` the digest the file must have. What is not given is not asked for.
    ``manifest`` is the published one if left out. A file that is not in it is accepted only with its ``sha256`` given:
    whoever names the digest vouches for the configuration, which cannot be read out of a file.

    Raises:
        FleetError: ``no-such-file``; ``bad-bitstream`` for what is no whole ``.bit`` file; ``wrong-digest``;
            ``wrong-part`` for another device; ``wrong-configuration`` for another VTA configuration or instruction
            layout; ``unknown-bitstream`` for one that nothing is known of.
    """
    source, data = ("the bitstream", file) if isinstance(file, bytes) else (str(file), read(file))
    manifest = manifests.known() if manifest is None else manifest
    entry = next((one for one in manifest if one.is_of(data)), None)
    digest = hashlib.sha256(data).hexdigest()
    header = None if entry is not None and entry.format == "rbf" else parse(data, source)
    if sha256 and digest != sha256:
        raise FleetError(
            f"{source} is not the bitstream that was asked for: its SHA-256 is {digest}, not {sha256}",
            code="wrong-digest",
            hint="`vta bitstream fetch` gets the right one",
        )
    if board is not None:
        _check_part(source, header, entry, board)
    if header is not None and header.partial:
        raise _bad(source, "it holds a partial configuration only")
    if entry is None and not sha256:
        _refuse_unknown(source, header, manifest)
    if entry is not None and identity and entry.identity != identity:
        raise FleetError(
            f"{source} is a VTA {entry.identity}, and the program was built for {identity}",
            code="wrong-configuration",
            hint=f"build for `--config {entry.identity}`, or take another bitstream (`vta bitstream list`)",
        )
    return Checked(data, digest, header, entry)


def _check_part(source: str, header: BitFile | None, entry: KnownBitstream | None, board: Part) -> None:
    if header is None:
        # Nothing but the manifest says what it is for.
        if entry is None or entry.board != board.name:
            raise _wrong_part(source, f"is for {entry.board if entry else 'another board'}", board)
        return
    part = header.part.lower().removeprefix("xc")
    after = part[len(board.device) :]
    # The package may differ: the published files name another one than the boards have, with the same die.
    if not board.device or not part.startswith(board.device) or after[:1].isdigit():
        raise _wrong_part(source, f"is for part {header.part}", board)
    if board.idcode is not None and header.idcode is not None and header.idcode != board.idcode & IDCODE_MASK:
        raise _wrong_part(source, f"is for the device with IDCODE {header.idcode:#010x}", board)


def _refuse_unknown(source: str, header: BitFile | None, manifest: Sequence[KnownBitstream]) -> None:
    alike = [one for one in manifest if header is not None and one.built == header.built]
    if alike:
        raise FleetError(
            f"{source} has been altered or damaged: its header is that of {alike[0].name}, its digest is not",
            code="wrong-digest",
            hint=f"`vta bitstream fetch {alike[0].name}` gets it anew",
        )
    raise FleetError(
        f"{source} is not a known bitstream: its VTA configuration cannot be told",
        code="unknown-bitstream",
        hint="list it with its configuration in a manifest of your own and give that with --manifest",
    )


def _idcode(data: bytes, start: int) -> int | None:
    for at in range(start, min(start + _IDCODE_WITHIN, len(data) - 7), 4):
        if data[at : at + 4] == _WRITE_IDCODE:
            return int.from_bytes(data[at + 4 : at + 8], "big") & IDCODE_MASK
    return None


def _looks_like(data: bytes) -> str:
    if not data:
        return "it is empty"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself"
    return "it does not start as one does"


def _bad(source: str, why: str) -> FleetError:
    return FleetError(
        f"{source} is no .bit file that can be programmed: {why}",
        code="bad-bitstream",
        hint="`vta bitstream fetch` gets a good one",
    )


def _wrong_part(source: str, what: str, board: Part) -> FleetError:
    have = f"{board.name} has a {board.device}" if board.device else f"{board.name} takes no .bit file"
    return FleetError(
        f"{source} {what}; {have}", code="wrong-part", hint=f"`vta bitstream list` shows those for {board.name}"
    )
