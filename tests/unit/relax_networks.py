"""Small Relax modules made operator by operator, and what they compute on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax

from targets.cpu import passes
from targets.cpu.compile import compile_module
from targets.cpu.machine import MACHINES, machine

Floats = npt.NDArray[np.float32]
#: What stands for a region: its number and its inputs; gives its outputs.
Region = Callable[[int, list[Any]], Sequence[npt.NDArray[Any]]]


class Network:
    """A module in the making. ``conv``, ``dense`` and ``channels`` draw weights from ``seed``."""

    def __init__(self, *shapes: tuple[int, ...], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.shapes = shapes
        self._builder = relax.BlockBuilder()
        self.inputs = [
            relax.Var(f"input{number}", relax.TensorType(shape, "float32")) for number, shape in enumerate(shapes)
        ]
        self.outputs: list[Any] = []
        self._steps: list[tuple[Any, Any]] = []

    def emit(self, expr: Any) -> Any:
        value = self._builder.normalize(expr)
        made = relax.DataflowVar(f"lv{len(self._steps)}", value.ty)
        self._steps.append((made, value))
        return made

    def draw(self, *shape: int, scale: float = 0.3) -> Floats:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def conv(self, x: Any, channels: int, kernel: int = 3, *, bias: bool = True, groups: int = 1, **more: Any) -> Any:
        weight = relax.const(self.draw(channels, int(x.ty.shape[1]) // groups, kernel, kernel))
        y = self.emit(relax.op.nn.conv2d(x, weight, groups=groups, **more))
        return self.add(y, self.draw(channels, 1, 1)) if bias else y

    def dense(self, x: Any, channels: int) -> Any:
        weight = relax.const(self.draw(int(x.ty.shape[1]), channels))
        return self.add(self.emit(relax.op.matmul(x, weight)), self.draw(channels))

    def add(self, x: Any, y: Any) -> Any:
        return self.emit(relax.op.add(x, relax.const(y) if isinstance(y, np.ndarray) else y))

    def relu(self, x: Any) -> Any:
        return self.emit(relax.op.nn.relu(x))

    def module(self, *outputs: Any) -> Any:
        """The module with these outputs, simplified as a build does it."""
        result = outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)
        end = relax.Var("result", self._builder.normalize(result).ty)
        bindings = [relax.VarBinding(var, value) for var, value in [*self._steps, (end, result)]]
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], end)
        main = relax.Function(self.inputs, body, end.ty).with_attr("global_symbol", "main")
        return passes.simplify()(relax.transform.Normalize()(tvm.IRModule({"main": main})))

    def samples(self, seed: int = 1) -> list[Floats]:
        random = np.random.default_rng(seed)
        return [random.standard_normal(shape).astype(np.float32) for shape in self.shapes]


def compiled(module: Any) -> Callable[[Sequence[Floats]], list[Floats]]:
    """What a module computes, compiled for this machine as a build does it."""
    here = MACHINES[machine()]
    made = compile_module(module, here, here.processor("host"))
    virtual_machine = relax.VirtualMachine(made.executable, tvm.cpu(0))

    def run(inputs: Sequence[Floats]) -> list[Floats]:
        given = [tvm.runtime.tensor(array) for array in inputs]
        result = virtual_machine["main"](*given, *(value for _, value in made.weights))
        return [each.numpy() for each in ([result] if hasattr(result, "numpy") else result)]

    return run


def with_function(name: str, module: Any, counts: Sequence[int], region: Region) -> Callable[..., list[Floats]]:
    """:func:`compiled`, with ``region`` behind the function ``name``; ``counts`` are the inputs of each region.

    Its tensors are opened in place, as a device opens them.
    """

    def call(number: int, *tensors: Any) -> None:
        arrays = [np.from_dlpack(tensor) for tensor in tensors]
        results = region(number, arrays[: counts[number]])
        for array, result in zip(arrays[counts[number] :], results, strict=True):
            array[...] = result

    tvm_ffi.register_global_func(name, call, override=True)
    return compiled(module)
