"""From a simplified Relax module to one that calls the CPU's kernels: the passes, in order."""

from __future__ import annotations

from typing import Any

from targets.cpu.database import Tuned
from targets.cpu.emit import emit
from targets.cpu.fuse import fuse
from targets.cpu.layers import LayerTable
from targets.cpu.layouts import Layouts
from targets.cpu.processors import Processor
from targets.cpu.quantised import quantise
from targets.cpu.read import read


def optimise(module: Any, processor: Processor, tuned: Tuned | None = None) -> tuple[Any, LayerTable]:
    """``module`` with kernels for ``processor`` in its ``main``, and what they are; what has none stays as it is."""
    graph = read(module["main"])
    fuse(graph)
    quantise(graph, processor)
    return emit(module, graph, Layouts(graph, processor.lanes), processor, tuned or Tuned())
