"""From a simplified Relax module to one that calls the CPU's kernels: the passes, in order."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from targets.cpu.database import Tuned
from targets.cpu.emit import emit
from targets.cpu.fuse import fuse
from targets.cpu.kernels.peak import Peak, Stream, peak, stream
from targets.cpu.layers import PEAK, STREAM, LayerRow, LayerTable
from targets.cpu.layouts import Layouts
from targets.cpu.processors import Processor
from targets.cpu.quantised import quantise
from targets.cpu.read import read
from targets.cpu.rows import outline
from targets.cpu.separable import join


def optimise(module: Any, processor: Processor, tuned: Tuned | None = None) -> tuple[Any, LayerTable]:
    """``module`` with kernels for ``processor`` in its functions, and what they are; what has none stays as it is."""
    module = outline(module)
    rows: list[LayerRow] = []
    for name in [var.name_hint for var, function in module.functions_items() if isinstance(function, relax.Function)]:
        graph = read(module[name])
        fuse(graph)
        quantise(graph, processor)
        join(graph, processor)
        module, of_function = emit(module, name, graph, Layouts(graph, processor.lanes), processor, tuned or Tuned())
        rows += of_function
    return _measured(module, rows, processor)


def _measured(module: Any, rows: list[LayerRow], processor: Processor) -> tuple[Any, LayerTable]:
    """The module with functions that show the most that the processor can do, and the table of all kernels."""
    most, memory = Peak(processor.lanes, processor.registers - 4), Stream(processor.lanes)
    functions = dict(module.functions_items())
    functions |= {tvm.ir.GlobalVar(PEAK): peak(most, PEAK), tvm.ir.GlobalVar(STREAM): stream(memory, STREAM)}
    table = LayerTable(
        layers=rows,
        peak_flops=most.flops,
        peak_lanes=most.lanes,
        peak_jobs=most.jobs,
        stream_bytes=memory.bytes,
        stream_jobs=memory.jobs,
        stream_numbers=memory.numbers,
    )
    return tvm.IRModule(functions, attrs=module.attrs), table
