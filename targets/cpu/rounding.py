"""How far apart two processors' results of one quantised network are.

A number between two steps of a grid goes to one on one processor and to the other on another, whose sums were added in
another order; what reads it passes the difference on. A network that is not quantised has none of this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from targets.cpu.graph import Convolution, Layer, Matrix, Value
from targets.cpu.kernels.program import Operand, Result
from targets.cpu.read import read

#: So many standard deviations of a result are the most that is expected.
SPREAD = 4.0


def rounding(module: Any) -> float:
    """By how much results of a simplified module may differ for this reason, where any number may be a step off."""
    graph = read(module["main"])
    deviation: dict[Value, float] = {}
    for node in graph.nodes:
        before = sum(deviation.get(value, 0.0) for value in dict.fromkeys(node.reads))
        grid = node.output.grid
        deviation[node.output] = grid.scale if grid else before * (_gain(node) if isinstance(node, Layer) else 1.0)
    return SPREAD * max((deviation.get(value, 0.0) for value in graph.results), default=0.0)


def _gain(layer: Layer) -> float:
    """What a layer multiplies independent differences by, at most. Activations do not enlarge them."""
    if isinstance(layer.work, Convolution | Matrix):
        return float(np.linalg.norm(layer.work.weights.reshape(len(layer.work.weights), -1), axis=1).max(initial=0.0))
    gain = 1.0
    for step in layer.steps:
        if step.op in ("multiply", "divide"):
            for argument in step.args:
                number = layer.operands[argument.index] if isinstance(argument, Operand) else argument
                if not isinstance(number, Result | Value):
                    factor = np.abs(number)
                    gain *= float(np.max(factor) if step.op == "multiply" else 1 / np.min(factor))
    return gain
