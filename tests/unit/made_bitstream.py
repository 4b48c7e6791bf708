"""`.bit` files as Vivado writes them, with a few frames in place of four megabytes."""

import hashlib
import struct

import msgspec

from bitstreams.manifest import KnownBitstream
from targets.vta import config

PREAMBLE = bytes.fromhex("00090ff00ff00ff00ff0000001")


def field(key: str, text: str) -> bytes:
    data = text.encode() + b"\0"
    return key.encode() + struct.pack(">H", len(data)) + data


def payload(idcode: int | None = 0x23727093, sync: int = 48) -> bytes:
    """Padding, sync word, a no-operation, the write to IDCODE, some frames."""
    words = b"\xff" * sync + bytes.fromhex("aa995566 20000000")
    if idcode is not None:
        words += bytes.fromhex("30018001") + struct.pack(">I", idcode)
    return words + bytes(256)


def bit(
    part: str = "7z020clg484",
    *,
    design: str = "vta_wrapper;UserID=0XFFFFFFFF;Version=2018.3",
    date: str = "2026/01/02",
    data: bytes | None = None,
) -> bytes:
    data = payload() if data is None else data
    fields = field("a", design) + field("b", part) + field("c", date) + field("d", "03:04:05")
    return PREAMBLE + fields + b"e" + struct.pack(">I", len(data)) + data


def listed(data: bytes, **changes: object) -> KnownBitstream:
    known = KnownBitstream(
        board="pynq",
        device="7z020",
        configuration=config.DEFAULT.name,
        hw_ver="0.0.2",
        url="https://example.org/x.bit",
        sha256=hashlib.sha256(data).hexdigest(),
        built="2026/01/02 03:04:05",
    )
    return msgspec.structs.replace(known, **changes)
