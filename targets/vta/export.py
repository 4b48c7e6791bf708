"""A program as a folder that any implementation of the instruction set can run, and such folders from anybody.

- ``insn.bin``: the instructions, 16 bytes each.
- ``dram.bin``: memory before the run; the offset in the file is the physical address. All base registers are 0, nothing
  lies below address 4096, and what is beyond the file's end is 0.
- ``dram_expected.bin``: the same memory after the run.
- ``layout.json``: the configuration, the buffers (name, address, size, role), what goes in and out, the counters.

Only the first two are needed to run one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from targets.base import FleetError
from targets.files import disk_errors, read_bounded, write_atomic
from targets.vta import isa
from targets.vta.config import DEFAULT, INSN_BYTES, PAGE, VtaConfig, parse
from targets.vta.layout import pack, packed_bytes, packed_shape
from targets.vta.program import MAX_TOTAL, Layer, Program

if TYPE_CHECKING:
    import numpy.typing as npt

    Memory = npt.NDArray[np.uint8]

INSTRUCTIONS = "insn.bin"
DRAM = "dram.bin"
EXPECTED = "dram_expected.bin"
LAYOUT = "layout.json"
MAX_INSTRUCTIONS = 256 << 20
MAX_LAYOUT = 64 << 20


class ExportError(FleetError):
    """A folder that is none of these, or inputs that do not fit."""

    code = "bad-vta-folder"


class Tensor(msgspec.Struct, frozen=True):
    """What goes in or out: int8 NCHW ``shape``, packed in ``buffer``, standing for q · 2^exponent."""

    name: str
    buffer: str
    shape: tuple[int, int, int, int]
    packed_shape: tuple[int, ...]
    exponent: int


class Place(msgspec.Struct, frozen=True):
    """A buffer: ``address`` and ``size`` in bytes; ``memory`` such as ``INP`` names the elements it is made of."""

    name: str
    role: str
    address: int
    size: int
    memory: str = ""


class Layout(msgspec.Struct, frozen=True):
    """``layout.json``. Others need give no more than the configuration."""

    config: dict[str, Any] = msgspec.field(default_factory=DEFAULT.to_json)
    schema: int = 1
    program: str = ""
    #: Bytes of memory that the program needs, from address 0.
    dram_size: int = 0
    instructions: int = 0
    buffers: tuple[Place, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    layers: tuple[Layer, ...] = ()
    counters: dict[str, int] = {}
    #: Where the inputs in ``dram.bin`` come from.
    input_origin: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """Such a folder in memory: ``dram`` reaches as far as the instructions do."""

    name: str
    config: VtaConfig
    table: isa.Table
    dram: Memory
    layers: tuple[Layer, ...]
    buffers: tuple[Place, ...]
    #: Memory after the run, as long as its file is; None if nobody says.
    expected: Memory | None


def filled(program: Program, inputs: Sequence[npt.NDArray[np.int8]]) -> Memory:
    """Memory of ``program`` with constants and packed ``inputs`` in place. Raises :class:`ExportError`."""
    if len(inputs) != len(program.inputs):
        raise ExportError(f"the program takes {len(program.inputs)} inputs, {len(inputs)} were given")
    memory = program.image()
    for port, array in zip(program.inputs, inputs, strict=True):
        size = packed_bytes(port.shape, program.config)
        if array.dtype != np.int8 or array.size != size:
            raise ExportError(f"input '{port.name}' is {size} bytes of int8, not {array.size} of {array.dtype}")
        address = program.buffer(port.buffer).address
        memory[address : address + size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memory


def random_inputs(program: Program, seed: int) -> list[npt.NDArray[np.int8]]:
    """Packed inputs of values within −127..127, zero in channels and pictures that are not there."""
    noise = np.random.default_rng(seed)
    return [
        pack(noise.integers(-127, 128, port.shape).astype(np.int8), program.config).reshape(-1)
        for port in program.inputs
    ]


def export(program: Program, folder: Path, inputs: Sequence[npt.NDArray[np.int8]], input_origin: str) -> Layout:
    """Write ``program`` and what it computes for ``inputs`` (int8, packed) into ``folder``.

    ``dram_expected.bin`` is made by the functional simulator with the hardware's semantics.

    Raises:
        ExportError: inputs that do not fit.
        FleetError: ``vta-simulation`` for a program that cannot run; ``disk-full``, ``disk-error``.
    """
    from targets.vta.simulator import Simulator

    before = filled(program, inputs)
    after = before.copy()
    counters = Simulator(program.config).run(program.table, after)
    layout = Layout(
        config=program.config.to_json(),
        program=program.model,
        dram_size=len(before),
        instructions=len(program.table),
        buffers=tuple(Place(b.name, b.role, b.address, b.size, b.memory.name) for b in program.buffers),
        inputs=_tensors(program, program.inputs),
        outputs=_tensors(program, program.outputs),
        layers=program.layers,
        counters=counters.to_dict(),
        input_origin=input_origin,
    )
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / INSTRUCTIONS, isa.encode(program.table, program.config))
        write_atomic(folder / DRAM, before.tobytes())
        write_atomic(folder / EXPECTED, after.tobytes())
        write_atomic(folder / LAYOUT, msgspec.json.format(msgspec.json.encode(layout), indent=2) + b"\n")
    return layout


def import_folder(folder: Path, config: VtaConfig | None = None) -> Folder:
    """A folder, whoever made it. ``config`` is for one that does not name its own; the default without either.

    Raises:
        ExportError: a missing, oversized or malformed file; a configuration that is not the folder's.
        FleetError: ``bad-vta-program``, ``bad-vta-config``.
    """
    layout = _layout(folder)
    if layout is not None:
        stated = parse(msgspec.json.encode(layout.config), str(folder / LAYOUT))
        if config is not None and config.identity != stated.identity:
            raise ExportError(
                f"{folder} is for configuration {stated.identity}, not {config.identity}", code="wrong-configuration"
            )
        config = stated
    config = config or DEFAULT
    data = _read(folder / INSTRUCTIONS, MAX_INSTRUCTIONS)
    if not data or len(data) % INSN_BYTES:
        raise ExportError(f"{folder / INSTRUCTIONS} has {len(data)} bytes, which is no number of instructions")
    table = isa.decode(data, config)
    given = np.frombuffer(_read(folder / DRAM, MAX_TOTAL), np.uint8)
    size = max(len(given), extent(table, config), layout.dram_size if layout else 0)
    if size > MAX_TOTAL:
        raise ExportError(f"{folder} needs {size} bytes of memory; the most is {MAX_TOTAL}")
    dram = np.zeros(size, np.uint8)
    dram[: len(given)] = given
    expected = folder / EXPECTED
    after = np.frombuffer(_read(expected, MAX_TOTAL), np.uint8) if expected.exists() else None
    layers = layout.layers if layout else ()
    if any(not 0 <= layer.first <= layer.last <= len(table) for layer in layers):
        raise ExportError(f"{folder / LAYOUT}: a layer lies outside of the instructions")
    name = (layout.program if layout else "") or folder.resolve().name
    return Folder(name, config, table, dram, layers, layout.buffers if layout else (), after)


def extent(table: isa.Table, config: VtaConfig) -> int:
    """The end of the memory that instructions touch, in bytes, in whole pages."""
    moves = ((table["opcode"] == isa.Opcode.LOAD) | (table["opcode"] == isa.Opcode.STORE)) & (
        table["x_size"] * table["y_size"] > 0
    )
    rows = table[moves]
    if not len(rows):
        return PAGE
    wrong = (rows["opcode"] == isa.Opcode.LOAD) & (rows["memory"] > max(isa.Memory))
    if wrong.any():
        at = int(np.flatnonzero(moves)[np.argmax(wrong)])
        raise ExportError(f"instruction {at}: there is no memory {table['memory'][at]}", code="bad-vta-program")
    # A STORE has one kind of memory, whatever it says.
    memory = np.where(rows["opcode"] == isa.Opcode.STORE, int(isa.Memory.OUT), rows["memory"])
    unit = np.array([isa.element_bytes(config, each) for each in isa.Memory], np.int64)[memory]
    ends = (rows["dram_base"] + (rows["y_size"] - 1) * rows["x_stride"] + rows["x_size"]) * unit
    return -(-int(ends.max()) // PAGE) * PAGE


def first_difference(folder: Folder) -> str:
    """Where ``folder.dram``, after the run, is not what it should be; empty when it is, or when nobody says."""
    if folder.expected is None:
        return ""
    common = min(len(folder.dram), len(folder.expected))
    wrong = np.flatnonzero(folder.dram[:common] != folder.expected[:common])
    tails = (folder.dram[common:], folder.expected[common:])
    if not len(wrong) and not any(tail.any() for tail in tails):
        return ""
    if not len(wrong):
        return f"memory beyond address {common} is not 0"
    at = int(wrong[0])
    place = next((b for b in folder.buffers if b.address <= at < b.address + b.size), None)
    where = f" in buffer '{place.name}'" if place else ""
    return (
        f"{len(wrong)} bytes differ, the first at address {at:#x}{where}: "
        f"{folder.dram[at]:#04x}, expected {folder.expected[at]:#04x}"
    )


def _tensors(program: Program, ports: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(p.name, p.buffer, p.shape, packed_shape(p.shape, program.config), p.exponent) for p in ports)


def _layout(folder: Path) -> Layout | None:
    path = folder / LAYOUT
    if not path.exists():
        return None
    try:
        layout = msgspec.json.decode(_read(path, MAX_LAYOUT), type=Layout)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is no layout: {error}") from None
    if layout.schema != 1:
        raise ExportError(f"{path} has schema {layout.schema}; this version reads 1")
    return layout


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ExportError(f"{path} is no file")
        return read_bounded(path, limit, lambda _reason: ExportError(f"{path} has more than {limit} bytes"))
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read: {error.strerror}",
            hint=f"a folder with a program holds {INSTRUCTIONS} and {DRAM}; `vta export` makes one",
        ) from None
