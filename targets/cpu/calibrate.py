"""A float network and samples of its inputs become a quantised network, as ONNX's quantisers would write it.

Each picture or matrix that a convolution or a matrix product reads is quantised to 8 bits between the smallest and the
largest number seen there, and made a number again; weights get one scale for each output. What follows treats the
network as it treats one that came quantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.base import FleetError
from targets.cpu.compile import compile_module
from targets.cpu.graph import Array as Float32
from targets.cpu.graph import Convolution, Layer, Matrix
from targets.cpu.machine import MACHINES, machine
from targets.cpu.read import constant, read

if TYPE_CHECKING:
    from targets.base import Array

#: Whole numbers of 8 bits, and how far weights go to either side of zero.
STEPS, LIMIT = 255, 127
#: Where a value begins and ends.
Range = tuple[float, float]
#: Scale and zero point, Relax's constants.
Grid = tuple[Any, Any]


class OnThisHost:
    """A simplified module on this machine."""

    def __init__(self, module: Any) -> None:
        here = MACHINES[machine()]
        self.processor = here.processor("host")
        compiled = compile_module(module, here, self.processor)
        self._vm = relax.VirtualMachine(compiled.executable, tvm.cpu(0))
        self._weights = [value for _, value in compiled.weights]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        result = self._vm["main"](*(tvm.runtime.tensor(array) for array in inputs), *self._weights)
        return [each.numpy() for each in ((result,) if hasattr(result, "numpy") else result)]


def calibrated(module: Any, samples: Iterable[Sequence[Array]]) -> Any:
    """A simplified module as one that quantises what it multiplies, with the ranges that ``samples`` lead to.

    Raises :class:`FleetError` ``bad-calibration``.
    """
    module = relax.transform.ToNonDataflow()(module)
    variables = _multiplied(module["main"])
    ranges = _ranges(module, variables, samples)
    quantiser = _Quantiser(module, {var: _grid(*ranges[var]) for var in variables})
    quantiser.builder_.update_func(module.get_global_var("main"), quantiser.visit_expr(module["main"]))
    quantised = relax.transform.ConvertToDataflow(min_size=1)(quantiser.builder_.get())
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(quantised))


def _multiplied(function: Any) -> list[Any]:
    """Variables that are multiplied by weights, in order."""
    found: dict[Any, None] = {}
    for node in read(function).nodes:
        if isinstance(node, Layer) and (
            isinstance(node.work, Matrix) or (isinstance(node.work, Convolution) and node.work.groups == 1)
        ):
            found[node.inputs[0].var] = None
    return list(found)


def _ranges(module: Any, variables: Sequence[Any], samples: Iterable[Sequence[Array]]) -> Mapping[Any, Range]:
    """The smallest and the largest number of each variable."""
    if not variables:
        return {}
    main, name = module["main"], module.get_global_var("main")
    body = relax.SeqExpr(main.body.blocks, relax.Tuple(list(variables)))
    types = tvm.ir.TupleType([var.ty for var in variables])
    watched = relax.Function(main.params, body, types, main.is_pure).with_attrs(dict(main.attrs))
    run = OnThisHost(relax.transform.Normalize()(tvm.IRModule({**dict(module.functions_items()), name: watched})))
    found: dict[Any, Range] = {}
    for sample in samples:
        for var, value in zip(variables, run(sample), strict=True):
            if not np.isfinite(value).all():
                raise FleetError(
                    "calibration: with these inputs the network's values are not all finite", code="bad-calibration"
                )
            low, high = found.get(var, (0.0, 0.0))
            found[var] = min(low, float(value.min())), max(high, float(value.max()))
    if not found:
        raise FleetError("calibration: there is not one sample", code="bad-calibration")
    return found


def _grid(low: float, high: float) -> Grid:
    """Steps of 8 bits without a sign, of which zero is one."""
    scale = np.float32(max(high - low, np.finfo(np.float32).tiny) / STEPS)
    return relax.const(scale), relax.const(np.uint8(np.clip(np.rint(-low / scale), 0, STEPS)))


def _rounded(weights: Float32, axis: int) -> Float32:
    """Weights as multiples of one scale for each output, which lie along ``axis``."""
    others = tuple(each for each in range(weights.ndim) if each != axis)
    peaks = np.abs(weights).max(axis=others, keepdims=True)
    scales = np.where(peaks > 0, peaks, 1) / np.float32(LIMIT)
    rounded: Float32 = (np.rint(weights / scales) * scales).astype(np.float32)
    return rounded


@mutator
class _Quantiser(PyExprMutator):  # type: ignore[misc]
    """Rounds the variables of ``grids`` where they are given, for all who read them; inputs for those who multiply."""

    def __init__(self, module: Any, grids: Mapping[Any, Grid]) -> None:
        super().__init__(module)
        self._grids = grids
        self._inputs: dict[Any, Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        grid = self._grids.get(binding.var)
        super().visit_var_binding_(binding)
        if grid is not None:
            self.set_var_remap(binding.var, self._quantised(self.visit_expr(binding.var), grid))

    def visit_call_(self, call: Any) -> Any:
        name = getattr(call.op, "name", "")
        weights = constant(call.args[1]) if name in ("relax.nn.conv2d", "relax.matmul") else None
        if weights is None or call.args[0] not in self._grids:
            return super().visit_call_(call)
        data = self.visit_expr(call.args[0])
        if data.same_as(call.args[0]):
            if data not in self._inputs:
                self._inputs[data] = self._quantised(data, self._grids[data])
            data = self._inputs[data]
        rounded = relax.const(_rounded(weights, 0 if name == "relax.nn.conv2d" else weights.ndim - 1))
        return relax.Call(call.op, [data, rounded], call.attrs)

    def _quantised(self, value: Any, grid: Grid) -> Any:
        integers = self.builder_.emit(relax.op.quantize(value, *grid, axis=1, out_dtype="uint8"))
        return self.builder_.emit(relax.op.dequantize(integers, *grid, axis=1, out_dtype="float32"))
