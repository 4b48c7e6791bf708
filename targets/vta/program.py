"""A complete VTA program: instructions, constants, and the plan of its memory.

Addresses in a program are those of a board whose base registers are 0 and whose memory it has to itself, from
:data:`~targets.vta.config.PAGE` on. They are grouped in segments; on a board each segment is one allocation, and
:meth:`Program.relocate` moves the addresses in the instructions there.

As a file: 8 bytes of magic, the header's length (u32, little endian), the header (JSON), its SHA-256, then every part
in the header's order.
In a bundle the header and the parts are files of their own, so that retrained weights cost their own bytes only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from targets.base import FleetError
from targets.vta import isa
from targets.vta.config import INSN_BYTES, PAGE, VtaConfig

MAGIC = b"VTAPROG\x01"
MAX_HEADER = 64 << 20
#: What one allocation may be: the pools of PYNQ's boards give no more (vta-hw: VTA_MAX_XFER).
MAX_SEGMENT = 32 << 20
MAX_TOTAL = 1 << 31
INSTRUCTIONS = "insn"

BufferRole = Literal["input", "output", "activation", "weight", "bias", "uop"]


class ProgramError(FleetError):
    """A file that is no program, or not a whole one, or one for another accelerator."""

    code = "bad-vta-program"


class Segment(msgspec.Struct, frozen=True):
    """Memory that lies together: address and size in bytes, both multiples of 4096."""

    address: int
    size: int


class Buffer(msgspec.Struct, frozen=True):
    """One tensor or table in memory: address and size in bytes. ``memory`` is the kind whose elements it is made of."""

    name: str
    role: BufferRole
    memory: isa.Memory
    address: int
    size: int


class Port(msgspec.Struct, frozen=True):
    """A tensor that goes in or out: int8 in the packed layout in ``buffer``, standing for q · 2^exponent."""

    name: str
    buffer: str
    shape: tuple[int, int, int, int]
    exponent: int


class Layer(msgspec.Struct, frozen=True):
    """Instructions ``first`` to before ``last`` compute the node ``name``."""

    name: str
    operator: str
    first: int
    last: int


class Part(msgspec.Struct, frozen=True):
    """Bytes that come with the program: ``insn``, or the contents of the buffer of that name."""

    name: str
    size: int
    sha256: str


class Header(msgspec.Struct, frozen=True):
    """What a program says of itself."""

    model: str
    config: VtaConfig
    segments: tuple[Segment, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    parts: tuple[Part, ...]
    schema: int = 1
    #: What the compiler has to say, such as which layers run elsewhere and why.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A program in memory. ``constants`` has the bytes of each buffer that is not made at run time."""

    model: str
    config: VtaConfig
    table: isa.Table
    segments: tuple[Segment, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    constants: Mapping[str, bytes]
    notes: tuple[str, ...] = field(default=())

    def buffer(self, name: str) -> Buffer:
        return next(buffer for buffer in self.buffers if buffer.name == name)

    def parts(self) -> dict[str, bytes]:
        """Instructions and constants, by the names of their :class:`Part`."""
        return {INSTRUCTIONS: isa.encode(self.table, self.config), **self.constants}

    def header(self) -> Header:
        parts = self.parts()
        return Header(
            self.model,
            self.config,
            self.segments,
            self.buffers,
            self.inputs,
            self.outputs,
            self.layers,
            tuple(Part(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in parts.items()),
            notes=self.notes,
        )

    def image(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Memory from address 0 to the last segment's end, constants in place and the rest 0; uint8."""
        end = max((segment.address + segment.size for segment in self.segments), default=PAGE)
        image = np.zeros(end, np.uint8)
        for name, data in self.constants.items():
            address = self.buffer(name).address
            image[address : address + len(data)] = np.frombuffer(data, np.uint8)
        return image

    def relocate(self, addresses: Sequence[int]) -> bytes:
        """The instructions for segments that lie at ``addresses`` (bytes, multiples of 4096, one a segment)."""
        if len(addresses) != len(self.segments) or any(address % PAGE for address in addresses):
            raise ValueError("one page-aligned address for each segment")
        moved = self.table.copy()
        starts = np.array([segment.address for segment in self.segments], np.int64)
        deltas = np.array(addresses, np.int64) - starts
        sizes = np.array([isa.element_bytes(self.config, memory) for memory in isa.Memory], np.int64)
        touching = np.flatnonzero(
            ((moved["opcode"] == isa.Opcode.LOAD) | (moved["opcode"] == isa.Opcode.STORE))
            & (moved["x_size"] * moved["y_size"] > 0)
        )
        unit = sizes[moved["memory"][touching]]
        base = moved["dram_base"][touching] * unit
        segment = np.searchsorted(starts, base, side="right") - 1
        moved["dram_base"][touching] = (base + deltas[segment]) // unit
        return isa.encode(moved, self.config)

    def save(self, path: Path) -> None:
        header = msgspec.json.encode(self.header())
        digest = hashlib.sha256(header).digest()
        body = b"".join((MAGIC, struct.pack("<I", len(header)), header, digest, *self.parts().values()))
        path.write_bytes(body)


def load(path: Path) -> Program:
    """The program in a file. Raises :class:`ProgramError`."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ProgramError(f"{path} cannot be read: {error.strerror}") from None
    start = len(MAGIC) + 4
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ProgramError(f"{path} is not a VTA program", hint="`vta build MODEL -o FILE` makes one")
    if len(data) < start:
        raise ProgramError(f"{path} is cut short")
    (length,) = struct.unpack("<I", data[len(MAGIC) : start])
    text, digest = bytes(data[start : start + length]), bytes(data[start + length : start + length + 32])
    if length > MAX_HEADER or len(digest) < 32:
        raise ProgramError(f"{path} is cut short")
    if hashlib.sha256(text).digest() != digest:
        raise ProgramError(f"{path} has been altered: its header is not the one that was written")
    header = parse_header(text, str(path))
    offsets, offset = {}, start + length + 32
    for part in header.parts:
        offsets[part.name] = (offset, part.size)
        offset += part.size
    if offset != len(data):
        raise ProgramError(
            f"{path} is {'cut short' if offset > len(data) else 'too long'}: {len(data)} bytes, not {offset}"
        )
    return assemble(header, lambda name: bytes(data[offsets[name][0] : sum(offsets[name])]), str(path))


def parse_header(data: bytes, source: str) -> Header:
    """A checked header. Raises :class:`ProgramError`."""
    try:
        header = msgspec.json.decode(data, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProgramError(f"{source} has no valid header: {error}") from None
    if header.schema != 1:
        raise ProgramError(f"{source} has schema {header.schema}; this version reads 1", hint="build it anew")
    header.config.check()
    problem = _problem(header)
    if problem:
        raise ProgramError(f"{source} has no valid header: {problem}")
    return header


def assemble(header: Header, read: Callable[[str], bytes], source: str) -> Program:
    """The program whose parts ``read(name)`` gives. Raises :class:`ProgramError` for bytes that are not those."""
    parts = {}
    for part in header.parts:
        data = read(part.name)
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise ProgramError(f"{source} has been altered: part '{part.name}' is not what was built")
        parts[part.name] = data
    table = isa.decode(parts.pop(INSTRUCTIONS), header.config)
    return Program(
        header.model,
        header.config,
        table,
        header.segments,
        header.buffers,
        header.inputs,
        header.outputs,
        header.layers,
        parts,
        header.notes,
    )


def _problem(header: Header) -> str:
    """What does not fit in a header; empty when all does."""
    end = PAGE
    for segment in header.segments:
        if segment.address < end or segment.address % PAGE or segment.size <= 0 or segment.size % PAGE:
            return f"the segment at {segment.address} is not in order"
        end = segment.address + segment.size
    if end > MAX_TOTAL:
        return f"it wants {end} bytes of memory; the most is {MAX_TOTAL}"
    spans = sorted((buffer.address, buffer.size, buffer.name) for buffer in header.buffers)
    for (address, size, name), following in zip(spans, [*spans[1:], (MAX_TOTAL, 0, "")], strict=True):
        inside = any(s.address <= address and address + size <= s.address + s.size for s in header.segments)
        if size <= 0 or not inside or address + size > following[0]:
            return f"buffer '{name}' does not lie in a place of its own"
    names = {buffer.name: buffer for buffer in header.buffers}
    if len(names) != len(header.buffers):
        return "two buffers have one name"
    parts = {part.name: part.size for part in header.parts}
    if len(parts) != len(header.parts) or parts.get(INSTRUCTIONS, 0) % INSN_BYTES or INSTRUCTIONS not in parts:
        return "it has no instructions"
    for name, size in parts.items():
        if name != INSTRUCTIONS and (name not in names or names[name].size != size):
            return f"part '{name}' fits no buffer"
    if any(port.buffer not in names or min(port.shape) < 1 for port in (*header.inputs, *header.outputs)):
        return "a port has no buffer"
    count = parts[INSTRUCTIONS] // INSN_BYTES
    if any(not 0 <= layer.first <= layer.last <= count for layer in header.layers):
        return "a layer lies outside of the instructions"
    return ""
