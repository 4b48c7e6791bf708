"""Instructions as text: what each does, and which instruction each of its tokens comes from and goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.vta.isa import DEPENDENCIES, AluOp, Memory, Module, Opcode, decode_uops, element_bytes
from targets.vta.tokens import POPS, PUSHES, UNMATCHED, Edges, match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from targets.vta.config import VtaConfig
    from targets.vta.isa import Table
    from targets.vta.program import Layer

#: Columns that module, name and operands have together.
_TEXT = 98
_SYMBOLS = {AluOp.MIN: "min", AluOp.MAX: "max", AluOp.ADD: "+", AluOp.SHR: ">>", AluOp.MUL: "*"}


def title(row: np.void) -> str:
    """The instruction's name with its kind, such as ``LOAD INP`` or ``ALU SHR``."""
    opcode = Opcode(int(row["opcode"]))
    if opcode == Opcode.LOAD:
        return f"LOAD {_name(Memory, int(row['memory']))}"
    if opcode == Opcode.GEMM:
        return "GEMM reset" if row["reset"] else "GEMM"
    if opcode == Opcode.ALU:
        return f"ALU {_name(AluOp, int(row['alu_op']))}"
    return opcode.name


def disassemble(
    table: Table,
    config: VtaConfig,
    uops: npt.NDArray[np.uint8] | None = None,
    layers: Sequence[Layer] = (),
) -> Iterator[str]:
    """One line an instruction: index, module, name, operands, then ``<`` the instructions whose tokens it waits for and
    ``>`` those that its own tokens release. A line ``; name (operator)`` goes before a layer's first instruction.

    ``uops``: memory at the start from address 0, uint8; with it each LOAD UOP is followed by the micro-ops it loads, as
    lines that start with ``;`` too.
    """
    edges = match(table)
    headings: dict[int, list[str]] = {}
    for layer in layers:
        headings.setdefault(layer.first, []).append(f"; {layer.name} ({layer.operator})")
    width = len(str(max(len(table) - 1, 0)))
    for index, row in enumerate(table):
        yield from headings.get(index, ())
        module = Module(int(edges.module[index])).name.lower()
        line = f"{index:{width}}  {module:7}  {title(row):13}  {operands(row, config)}"
        tokens = _tokens(row, edges, index)
        yield f"{line:<{width + _TEXT}}  {tokens}" if tokens else line.rstrip()
        if uops is not None and row["opcode"] == Opcode.LOAD and row["memory"] == Memory.UOP:
            yield from _micro_ops(row, config, uops)


def operands(row: np.void, config: VtaConfig) -> str:
    """What an instruction works on. Addresses in bytes, on-chip places in elements."""
    opcode = Opcode(int(row["opcode"]))
    if opcode == Opcode.FINISH:
        return ""
    if opcode in (Opcode.LOAD, Opcode.STORE):
        return _transfer(row, config, opcode)
    first, last = int(row["uop_bgn"]), int(row["uop_end"]) - 1
    loops = f"uop {f'[{first}..{last}]' if first <= last else 'none'} x {row['iter_out']} x {row['iter_in']}"
    places = [f"acc +{row['dst_factor_out']} +{row['dst_factor_in']}"]
    if opcode == Opcode.GEMM:
        if not row["reset"]:
            places.append(f"inp +{row['src_factor_out']} +{row['src_factor_in']}")
            places.append(f"wgt +{row['wgt_factor_out']} +{row['wgt_factor_in']}")
        return f"{loops:26} {', '.join(places)}"
    if row["use_imm"]:
        operation = _SYMBOLS.get(int(row["alu_op"]), "?")  # type: ignore[call-overload]
        return f"{loops:26} {places[0]}: {operation} {row['imm']}"
    places.append(f"acc +{row['src_factor_out']} +{row['src_factor_in']}")
    return f"{loops:26} {', '.join(places)}"


def _transfer(row: np.void, config: VtaConfig, opcode: Opcode) -> str:
    rows, width = int(row["y_size"]), int(row["x_size"])
    if not rows * width:
        return "nothing"
    memory = int(row["memory"])
    size = element_bytes(config, memory) if memory < len(Memory) else 0
    lines = int(row["y_pad_0"]) + rows + int(row["y_pad_1"])
    elements = lines * (int(row["x_pad_0"]) + width + int(row["x_pad_1"]))
    base = int(row["sram_base"])
    chip = f"[{base}..{base + elements - 1}]"
    memory_side = f"{int(row['dram_base']) * size:#010x} {rows} x {width}"
    if rows > 1:
        memory_side += f" every {row['x_stride']}"
    sides = (("y_pad_0", "top"), ("y_pad_1", "bottom"), ("x_pad_0", "left"), ("x_pad_1", "right"))
    pads = [f"{side} {row[name]}" for name, side in sides if row[name]]
    if pads:
        memory_side += f" pad {' '.join(pads)}"
    return f"{chip:13} {'->' if opcode == Opcode.STORE else '<-'} {memory_side}"


def _tokens(row: np.void, edges: Edges, index: int) -> str:
    module = Module(int(edges.module[index]))
    waits: list[str] = []
    releases: list[str] = []
    for column, field in enumerate(DEPENDENCIES):
        if not row[field]:
            continue
        queues, found = (POPS, waits) if field.startswith("pop") else (PUSHES, releases)
        queue = queues.get((module, field))
        if queue is None:
            found.append(f"?{field}")
            continue
        other = int(edges.partner[index, column])
        found.append(f"{'nobody' if other == UNMATCHED else other} {queue.name.lower()}")
    parts = [f"< {', '.join(waits)}"] if waits else []
    if releases:
        parts.append(f"> {', '.join(releases)}")
    return "  ".join(parts)


def _micro_ops(row: np.void, config: VtaConfig, memory: npt.NDArray[np.uint8]) -> Iterator[str]:
    start = int(row["dram_base"]) * config.uop_bytes
    data = memory[start : start + int(row["x_size"]) * config.uop_bytes].tobytes()
    words = np.frombuffer(data[: len(data) // config.uop_bytes * config.uop_bytes], "<u4")
    for place, (dst, src, wgt) in enumerate(decode_uops(words, config), int(row["sram_base"])):
        yield f";   uop {place}: dst {dst} src {src} wgt {wgt}"


def _name(kind: type[Memory] | type[AluOp], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return f"?{value}"
