"""Small quantised graphs with random weights, and programs run on them in the simulator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from targets.vta.counters import Counters
from targets.vta.graph import Shape
from targets.vta.layout import pack, unpack
from targets.vta.program import Program
from targets.vta.qgraph import QConv, QGraph, QMaxPool, QNode, QTensor
from targets.vta.simulator import Simulator


class GraphBuilder:
    """Adds layers with weights from ``rng``; every method returns the name of its output."""

    def __init__(self, rng: np.random.Generator, block: int) -> None:
        self._rng = rng
        self._block = block
        self._tensors: dict[str, QTensor] = {}
        self.nodes: list[QNode] = []

    def shape(self, name: str) -> Shape:
        return self._tensors[name].shape

    def input(self, shape: Shape) -> str:
        return self._tensor("input", shape)

    def conv(
        self,
        x: str,
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        residual: str = "",
        shift: int | npt.NDArray[np.int32] | None = None,
    ) -> str:
        n, c, h, w = self.shape(x)
        reach = ((kernel[0] - 1) * dilation + 1, (kernel[1] - 1) * dilation + 1)
        if reach[0] > h + 2 * padding or reach[1] > w + 2 * padding or padding >= min(reach):
            dilation, padding, reach = 1, 0, kernel
        oh, ow = (h + 2 * padding - reach[0]) // stride + 1, (w + 2 * padding - reach[1]) // stride + 1
        rng = self._rng
        if shift is None:
            shift = int(rng.integers(0, 3)) + int(np.log2(60 * np.sqrt(c // groups * kernel[0] * kernel[1])))
        shifts = np.broadcast_to(np.asarray(shift, np.int32), (outputs,)).copy()
        output = self._tensor(f"t{len(self.nodes)}", (n, outputs, oh, ow))
        self.nodes.append(
            QConv(
                f"conv{len(self.nodes)}",
                x,
                output,
                rng.integers(-127, 128, (outputs, c // groups, *kernel)).astype(np.int8),
                rng.integers(-(2**16), 2**16, outputs).astype(np.int32),
                shifts,
                (stride, stride),
                (padding, padding, padding, padding),
                (dilation, dilation),
                groups,
                relu=bool(rng.integers(2)),
                residual=residual,
                residual_shift=int(rng.integers(0, 7)) if residual else 0,
                final_shift=int(rng.integers(0, 6)) if residual else 0,
            )
        )
        return output

    def pool(self, x: str, kernel: int, stride: int, padding: int) -> str:
        n, c, h, w = self.shape(x)
        out = ((h + 2 * padding - kernel) // stride + 1, (w + 2 * padding - kernel) // stride + 1)
        output = self._tensor(f"t{len(self.nodes)}", (n, c, *out))
        pads = (padding, padding, padding, padding)
        name = f"pool{len(self.nodes)}"
        self.nodes.append(QMaxPool(name, x, output, (kernel, kernel), (stride, stride), pads))
        return output

    def graph(self, output: str) -> QGraph:
        return QGraph("test", self._tensors, tuple(self.nodes), ("input",), (output,))

    def _tensor(self, name: str, shape: Shape) -> str:
        self._tensors[name] = QTensor(name, shape, -4)
        return name


def run_program(
    program: Program,
    inputs: Mapping[str, npt.NDArray[np.int8]],
    *,
    semantics: str = "hw",
    order: str = "program",
    seed: int = 0,
) -> tuple[dict[str, npt.NDArray[np.int8]], Counters]:
    """Every tensor that the program leaves in memory, NCHW, and its counters."""
    image = program.image()
    ports = {port.name: port.shape for port in (*program.inputs, *program.outputs)}
    for name, value in inputs.items():
        buffer = program.buffer(name)
        image[buffer.address : buffer.address + buffer.size] = pack(value, program.config).reshape(-1).view(np.uint8)
    simulator = Simulator(program.config, semantics=semantics, order=order, seed=seed)  # type: ignore[arg-type]
    counters = simulator.run(program.table, image)
    found = {}
    for name, shape in ports.items():
        buffer = program.buffer(name)
        data = image[buffer.address : buffer.address + buffer.size].view(np.int8)
        found[name] = unpack(data, shape, program.config)
    return found, counters
