"""From a Relax function to units: each operator makes one, or becomes part of the one whose output it changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from targets.vta.units import Convolution, Function, Kind, MaxPooling, Unit, shape_of, variables

if TYPE_CHECKING:
    from targets.vta.units import Float64

_FLATTENING = ("reshape", "flatten", "squeeze")


def straight(function: Any) -> bool:
    """Whether a function is one sequence of bindings without side effects."""
    return isinstance(function.body, relax.SeqExpr) and all(
        isinstance(block, relax.DataflowBlock) and all(isinstance(each, relax.VarBinding) for each in block.bindings)
        for block in function.body.blocks
    )


def read(function: Any) -> Function:
    """The units of a :func:`straight` function."""
    bindings = tuple(binding for block in function.body.blocks for binding in block.bindings)
    reader = _Reader(bindings, function.body.body)
    for index, binding in enumerate(bindings):
        reader.take(index, binding)
    units = sorted(reader.units, key=lambda unit: unit.bindings[-1])
    return Function(tuple(function.params), bindings, function.body.body, tuple(units))


@dataclass(frozen=True, slots=True)
class _Binding:
    index: int
    var: Any
    call: Any
    operator: str


class _Reader:
    """Takes the bindings one by one; each makes a unit, or joins the one whose output it changes."""

    def __init__(self, bindings: Sequence[Any], result: Any) -> None:
        self.units: list[Unit] = []
        self._bindings = bindings
        self._made: dict[Any, Unit] = {}
        self._after_layer: set[Any] = set()
        self._counts: Counter[str] = Counter()
        self._uses: Counter[Any] = Counter()
        for expr in (*(binding.value for binding in bindings), result):
            self._uses.update(variables(expr))

    def take(self, index: int, binding: Any) -> None:
        call, var = binding.value, binding.var
        operator = getattr(getattr(call, "op", None), "name", "").removeprefix("relax.").removeprefix("nn.")
        it = _Binding(index, var, call, operator or type(call).__name__.lower())
        rule = _RULES.get(operator)
        if rule is None or shape_of(var) is None or not rule(self, it):
            what = f"this form of {it.operator}" if rule else it.operator
            self._new(it, "other", None, f"the accelerator does not compute {what}")
        unit = self._made[var]
        if unit.kind == "layer" or any(each in self._after_layer for each in variables(call)):
            self._after_layer.add(var)

    # --- Operators: each rule returns whether the binding has its form ------------------------------

    def conv2d(self, it: _Binding) -> bool:
        attrs, (image, kernel) = it.call.attrs, it.call.args
        weight = _constant(kernel)
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or "NCHW")
        if weight is None or shape_of(image) is None or layouts != ("NCHW", "OIHW", "NCHW"):
            return False
        stride, padding, dilation = _ints(attrs.strides), _ints(attrs.padding), _ints(attrs.dilation)
        bias = np.zeros(len(weight))
        self._new(it, "layer", Convolution(image, weight, bias, stride, padding, dilation, int(attrs.groups)))
        return True

    def matmul(self, it: _Binding) -> bool:
        flat, weight = it.call.args[0], _constant(it.call.args[1])
        if weight is None or weight.ndim != 2 or shape_of(flat) is None or len(flat.ty.shape) != 2:
            return False
        bias = np.zeros(weight.shape[1])
        before = self._made.get(flat)
        if before is not None and before.operator in _FLATTENING and self._uses[flat] == 1:
            picture = self._bindings[before.bindings[0]].value.args[0]
            source = shape_of(picture)
            if source is not None and source[0] == flat.ty.shape[0]:
                # After a flattened picture it is a convolution whose kernel is the picture's size.
                self.units.remove(before)
                unit = self._new(
                    it, "layer", Convolution(picture, weight.T.reshape(-1, *source[1:]), bias), operator="dense"
                )
                unit.bindings.insert(0, before.bindings[0])
                unit.operators.insert(0, before.operator)
                return True
        self._new(it, "layer", Convolution(flat, weight.T[:, :, None, None], bias), operator="dense")
        return True

    def max_pool2d(self, it: _Binding) -> bool:
        attrs, image = it.call.attrs, it.call.args[0]
        if str(attrs.layout) != "NCHW" or _ints(attrs.dilation) != (1, 1):
            return False
        kernel, stride = _ints(attrs.pool_size), _ints(attrs.strides)
        padding = _whole(_ints(attrs.padding), kernel, stride, image, it.var)
        nonnegative = self._is_nonnegative(image)
        exact = nonnegative or not any(padding)
        reason = "" if exact else "the accelerator pads with zeros, and values may be below zero"
        self._new(it, "pool", MaxPooling(image, kernel, stride, padding), reason).nonnegative = nonnegative
        return True

    def avg_pool2d(self, it: _Binding) -> bool:
        attrs, image = it.call.attrs, it.call.args[0]
        if str(attrs.layout) != "NCHW" or _ints(attrs.dilation) != (1, 1):
            return False
        kernel, stride, padding = _ints(attrs.pool_size), _ints(attrs.strides), _ints(attrs.padding)
        whole = _whole(padding, kernel, stride, image, it.var)
        if whole != padding or (any(padding) and not bool(attrs.count_include_pad)):
            return False
        self._average(it, image, kernel, stride, padding)
        return True

    def adaptive_avg_pool2d(self, it: _Binding) -> bool:
        image = it.call.args[0]
        size, result = shape_of(image), shape_of(it.var)
        if size is None or result is None or str(it.call.attrs.layout) != "NCHW" or result[2:] != (1, 1):
            return False
        self._average(it, image, size[2:])
        return True

    def mean(self, it: _Binding) -> bool:
        image = it.call.args[0]
        size = shape_of(image)
        axes = sorted(int(axis) % 4 for axis in it.call.attrs.axis or ())
        if size is None or len(image.ty.shape) != 4 or axes != [2, 3]:
            return False
        self._average(it, image, size[2:])
        return True

    def relu(self, it: _Binding) -> bool:
        unit, work = self._joined(it, it.call.args[0]) or self._diagonal(it, it.call.args[0])
        work.relu = unit.nonnegative = True
        return True

    def clip(self, it: _Binding) -> bool:
        low, high = (_number(limit) for limit in it.call.args[1:3])
        if low == 0.0 and high == math.inf:
            return self.relu(it)
        self._new(it, "other", None, f"a clip to {low:g}..{high:g} is not exact in integers")
        return True

    def maximum(self, it: _Binding) -> bool:
        least = _constant(it.call.args[1])
        return least is not None and least.size == 1 and not least.any() and self.relu(it)

    def add(self, it: _Binding) -> bool:
        a, b = it.call.args
        if any(_constant(each) is not None for each in (a, b)):
            return self.scale_and_shift(it)
        if not shape_of(a) == shape_of(b) == shape_of(it.var):
            return False
        operands = () if a.same_as(b) else (a, b)
        candidates = [(var, work) for var in operands if (work := self._open(var)) and work.residual is None]
        if not candidates:
            _, work = self._diagonal(it, a)
            work.residual = b
            return True
        # Loading the other operand hides best behind the most work; a first layer may have to stay on the CPU.
        var, work = max(candidates, key=lambda each: (not self._made[each[0]].first, each[1].products))
        work.residual = b if var.same_as(a) else a
        self._joined(it, var)
        return True

    def scale_and_shift(self, it: _Binding) -> bool:
        """An operator between a tensor and one constant for each channel."""
        left, right = it.call.args
        first, second = _constant(left), _constant(right)
        constant, image = (second, left) if first is None else (first, right)
        shape = shape_of(it.var)
        vector = None if constant is None or shape is None else _per_channel(constant, len(it.var.ty.shape), shape[1])
        if vector is None or shape_of(image) != shape:
            return False
        one, zero = np.ones_like(vector), np.zeros_like(vector)
        if it.operator == "add":
            scale, shift = one, vector
        elif it.operator == "subtract":
            scale, shift = (one, -vector) if first is None else (-one, vector)
        elif it.operator == "multiply":
            scale, shift = vector, zero
        elif first is None and vector.all():
            scale, shift = 1 / vector, zero
        else:
            return False
        open_work = self._open(image)
        summed = open_work is not None and open_work.residual is not None
        scaled = bool((scale != 1).any())
        unit, work = (None if summed and scaled else self._joined(it, image)) or self._diagonal(it, image)
        work.weight = work.weight * scale[:, None, None, None]
        work.bias = work.bias * scale + shift
        unit.nonnegative = False
        return True

    # --- Units ------------------------------------------------------------------------------------

    def _new(
        self, it: _Binding, kind: Kind, work: Convolution | MaxPooling | None, reason: str = "", operator: str = ""
    ) -> Unit:
        operator = operator or it.operator
        number = self._counts[operator]
        self._counts[operator] += 1
        first = not any(var in self._after_layer for var in variables(it.call))
        unit = Unit(f"{operator}-{number}", operator, kind, [it.operator], [it.index], it.var, work, reason, first)
        self.units.append(unit)
        self._made[it.var] = unit
        return unit

    def _open(self, var: Any) -> Convolution | None:
        """What makes ``var``, if what follows can be made part of it."""
        unit = self._made.get(var)
        if unit is None or self._uses[var] > 1 or not isinstance(unit.work, Convolution) or unit.work.relu:
            return None
        return unit.work

    def _joined(self, it: _Binding, var: Any) -> tuple[Unit, Convolution] | None:
        """What makes ``var``, with ``it`` as its last operator."""
        work = self._open(var)
        if work is None:
            return None
        unit = self._made[it.var] = self._made.pop(var)
        unit.operators.append(it.operator)
        unit.bindings.append(it.index)
        unit.output = it.var
        return unit, work

    def _diagonal(self, it: _Binding, image: Any) -> tuple[Unit, Convolution]:
        """A convolution that changes nothing, as the unit of ``it``."""
        channels = shape_of(image)[1]  # type: ignore[index]
        work = Convolution(image, np.ones((channels, 1, 1, 1)), np.zeros(channels), groups=channels)
        operator = "scale" if it.operator in ("subtract", "multiply", "divide") else it.operator
        return self._new(it, "light", work, operator=operator), work

    def _average(
        self,
        it: _Binding,
        image: Any,
        kernel: tuple[int, ...],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:
        channels = shape_of(image)[1]  # type: ignore[index]
        count = math.prod(kernel)
        weight = np.full((channels, 1, *kernel), 1 / count)
        work = Convolution(image, weight, np.zeros(channels), stride, padding, groups=channels)
        reason = "" if count & (count - 1) == 0 else f"the average of {count} values is not exact in integers"
        unit = self._new(it, "pool", work, reason, "avg_pool2d")
        unit.nonnegative = self._is_nonnegative(image)
        unit.global_average = shape_of(it.var)[2:] == (1, 1)  # type: ignore[index]

    def _is_nonnegative(self, var: Any) -> bool:
        unit = self._made.get(var)
        return unit is not None and unit.nonnegative


_RULES: dict[str, Callable[[_Reader, _Binding], bool]] = {
    "conv2d": _Reader.conv2d,
    "matmul": _Reader.matmul,
    "max_pool2d": _Reader.max_pool2d,
    "avg_pool2d": _Reader.avg_pool2d,
    "adaptive_avg_pool2d": _Reader.adaptive_avg_pool2d,
    "mean": _Reader.mean,
    "relu": _Reader.relu,
    "clip": _Reader.clip,
    "maximum": _Reader.maximum,
    "add": _Reader.add,
    "subtract": _Reader.scale_and_shift,
    "multiply": _Reader.scale_and_shift,
    "divide": _Reader.scale_and_shift,
}


def _constant(expr: Any) -> Float64 | None:
    """The values of a float32 constant."""
    if not isinstance(expr, tvm.ir.GenericConst) or str(expr.ty.dtype) != "float32":
        return None
    values: Float64 = expr.value.numpy().astype(np.float64)
    return values


def _number(literal: Any) -> float:
    return float(literal.value)


def _per_channel(values: Float64, rank: int, channels: int) -> Float64 | None:
    """Values of which each is for one channel, as a vector; None where they differ along another axis."""
    if values.ndim > rank:
        return None
    sizes = (1,) * (rank - values.ndim) + values.shape
    if sizes[1] not in (1, channels) or math.prod(sizes) != sizes[1]:
        return None
    return np.broadcast_to(values.reshape(-1), channels).astype(np.float64)


def _ints(values: Any) -> tuple[Any, ...]:
    return tuple(int(value) for value in values)


def _whole(
    padding: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], image: Any, result: Any
) -> tuple[Any, ...]:
    """``padding`` with what windows that reach beyond it (``ceil_mode``) look at."""
    sizes, counts = shape_of(image)[2:], shape_of(result)[2:]  # type: ignore[index]
    ends = [
        max(padding[axis + 2], (counts[axis] - 1) * stride[axis] + kernel[axis] - sizes[axis] - padding[axis])
        for axis in (0, 1)
    ]
    return (padding[0], padding[1], ends[0], ends[1])
