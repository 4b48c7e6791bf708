"""A partitioned network on this machine: its float part compiled, what the accelerator takes over in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.vta.evaluate import evaluate, evaluate_float, to_floats, to_integers
from targets.vta.graph import Graph
from targets.vta.qgraph import QGraph

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import Array
    from targets.vta.partition import Partitioned

    Float32 = npt.NDArray[np.float32]

#: What a region computes: its inputs and outputs, float32 NCHW, in the order of its graph.
Region = Callable[[int, Sequence["Float32"]], Sequence["Float32"]]

#: Another processor adds in another order: so far apart, relative to the largest value, its float results may be.
ROUNDING = 2.0**-18


class FloatPart:
    """Runs whole inferences. Slow and exact: for calibration, and as the reference of what was built."""

    def __init__(self, partitioned: Partitioned) -> None:
        import tvm_ffi
        from tvm import cpu, relax

        from targets.cpu.compile import compile_module
        from targets.cpu.machine import MACHINES, machine
        from targets.vta.host_module import CALIBRATE, calibration_module

        here = MACHINES[machine()]
        compiled = compile_module(calibration_module(partitioned), here, here.processor("host"))
        self._regions = partitioned.regions
        self._region: Region | None = None
        self._failure: Exception | None = None
        # A virtual machine looks functions up when it is made, so another FloatPart may take the name after this one.
        tvm_ffi.register_global_func(CALIBRATE, self._call, override=True)
        self._vm = relax.VirtualMachine(compiled.executable, cpu(0))
        self._weights = [value for _, value in compiled.weights]

    def run(self, inputs: Sequence[Array], region: Region) -> list[Array]:
        """The network's outputs. Raises what ``region`` raises."""
        from tvm.runtime import tensor

        self._region, self._failure = region, None
        try:
            result = self._vm["main"](*(tensor(array) for array in inputs), *self._weights)
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise
        found = result if not hasattr(result, "numpy") else (result,)
        return [array.numpy() for array in found]

    def _call(self, index: int, *tensors: Any) -> None:
        try:
            graph = self._regions[index]
            count = len(graph.inputs)
            given = [
                tensor.numpy().reshape(graph.tensors[name])
                for name, tensor in zip(graph.inputs, tensors[:count], strict=True)
            ]
            assert self._region is not None
            results = self._region(index, given)
            for tensor, result in zip(tensors[count:], results, strict=True):
                tensor.copyfrom(np.ascontiguousarray(result).reshape(tensor.shape))
        except Exception as error:
            # Passing through TVM it would lose its type.
            self._failure = error
            raise


def in_float(graphs: Sequence[Graph]) -> Region:
    """Regions as they were before quantisation."""

    def region(index: int, inputs: Sequence[Float32]) -> list[Float32]:
        graph = graphs[index]
        values = evaluate_float(graph, dict(zip(graph.inputs, inputs, strict=True)))
        return [values[name] for name in graph.outputs]

    return region


def in_integers(graphs: Sequence[QGraph], noise: np.random.Generator | None = None) -> Region:
    """Regions as the accelerator computes them; with ``noise``, on inputs that another processor might give."""

    def region(index: int, inputs: Sequence[Float32]) -> list[Float32]:
        graph, quantised = graphs[index], {}
        for name, x in zip(graph.inputs, inputs, strict=True):
            if noise is not None:
                size = np.float32(np.abs(x).max(initial=0.0) * ROUNDING)
                x = x + noise.uniform(-size, size, x.shape).astype(np.float32)
            quantised[name] = to_integers(x, graph.tensors[name].exponent)
        values = evaluate(graph, quantised)
        return [to_floats(values[name], graph.tensors[name].exponent) for name in graph.outputs]

    return region
