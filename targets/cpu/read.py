"""From a Relax function to a graph: each operator that there may be a kernel for becomes a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from targets.cpu.graph import (
    Array,
    Concatenation,
    Convolution,
    GlobalAverage,
    Graph,
    Grid,
    Interleaving,
    Layer,
    Matrix,
    Opaque,
    Pointwise,
    Pooling,
    Resizing,
    Value,
    Work,
)
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.program import OPERATORS, Operand, Result, Step
from targets.cpu.layout import Shape
from targets.cpu.transposed import apart


def read(function: Any) -> Graph:
    """The graph of a Relax function in normal form; its bindings' order is kept."""
    reader = _Reader()
    parameters = [reader.value(var) for var in function.params]
    for block in function.body.blocks:
        for binding in block.bindings:
            reader.take(binding)
    results = [reader.value(var) for var in variables(function.body.body)]
    read_by_somebody = {*results, *(value for node in reader.nodes for value in node.reads)}
    nodes = [node for node in reader.nodes if node.output in read_by_somebody or not _is_quantize(node.bindings[0])]
    return Graph(parameters, nodes, list(dict.fromkeys(results)))


def variables(expr: Any) -> list[Any]:
    """Relax variables that an expression reads, in order, each once."""
    found: list[Any] = []
    relax.analysis.post_order_visit(
        expr, lambda each: found.append(each) if isinstance(each, relax.Var) and each not in found else None
    )
    return found


def shape_of(expr: Any) -> tuple[int, ...] | None:
    """The dimensions of a float32 tensor of known shape."""
    if not isinstance(expr.ty, relax.TensorType) or str(expr.ty.dtype) != "float32":
        return None
    shape = expr.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or any(not hasattr(size, "value") for size in shape):
        return None
    return tuple(int(size) for size in shape)


def picture(shape: tuple[int, ...] | None) -> Shape | None:
    """The shape as N, C, H, W: a matrix is a picture of one pixel."""
    if shape is None or len(shape) not in (2, 4) or 0 in shape:
        return None
    n, c, h, w = (*shape, 1, 1)[:4]
    return (n, c, h, w)


def constant(expr: Any) -> Array | None:
    """The numbers of a float32 constant."""
    if not isinstance(expr, tvm.ir.GenericConst) or not isinstance(expr.value, tvm.runtime.Tensor):
        return None
    values: Array = expr.value.numpy()
    return values if values.dtype == np.float32 else None


class _Reader:
    def __init__(self) -> None:
        self.nodes: list[Layer | Opaque] = []
        self._values: dict[Any, Value] = {}

    def value(self, var: Any) -> Value:
        if var not in self._values:
            shape = shape_of(var)
            self._values[var] = Value(var, picture(shape), len(shape or ()))
        return self._values[var]

    def take(self, binding: Any) -> None:
        operator = getattr(getattr(binding.value, "op", None), "name", "").removeprefix("relax.").removeprefix("nn.")
        output = self.value(binding.var)
        rule = _RULES.get(operator)
        node: Layer | Opaque | None = None
        if rule is not None and output.shape is not None and isinstance(binding, relax.VarBinding):
            node = rule(self, binding, output)
        if node is None:
            node = Opaque([binding], [self.value(var) for var in variables(binding.value)], output)
        output.producer = node
        self.nodes.append(node)

    def layer(self, work: Work, inputs: Sequence[Any], binding: Any) -> Layer | None:
        """A layer without a program, if all it reads are pictures."""
        if any(not isinstance(each, relax.Var) for each in inputs):
            return None
        values = [self.value(each) for each in inputs]
        if any(value.shape is None for value in values):
            return None
        return Layer(work, values, self.value(binding.var), [binding])


# --- Layers: each rule gives nothing when the operator does not have its form --------------------------------


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _pair(values: Any) -> tuple[int, int]:
    first, second = _ints(values)
    return first, second


def _sides(values: Any) -> tuple[int, int, int, int]:
    top, left, bottom, right = _ints(values)
    return top, left, bottom, right


def _convolution(reader: _Reader, binding: Any, _output: Value) -> Layer | None:
    attrs, (image, kernel) = binding.value.attrs, binding.value.args
    weights = constant(kernel)
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or "NCHW")
    if weights is None or layouts != ("NCHW", "OIHW", "NCHW"):
        return None
    window = Window(_pair(weights.shape[2:]), _pair(attrs.strides), _pair(attrs.dilation), _sides(attrs.padding))
    return reader.layer(Convolution(weights, window, int(attrs.groups)), [image], binding)


def _transposed(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    """A convolution, and its pixels put in their places."""
    attrs, (image, kernel) = binding.value.attrs, binding.value.args
    weights, x = constant(kernel), shape_of(image)
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or "NCHW")
    if weights is None or layouts != ("NCHW", "IOHW", "NCHW") or int(attrs.groups) != 1:
        return None
    before, after = picture(x), output.shape
    if before is None or after is None or not isinstance(image, relax.Var):
        return None
    stride = _pair(attrs.strides)
    found = apart(weights, stride, _sides(attrs.padding), _pair(attrs.dilation), before, after)
    if stride == (1, 1):
        return reader.layer(found.work, [image], binding)
    parts = Value(relax.Var(f"{binding.var.name}_parts", relax.TensorType(found.shape, "float32")), found.shape)
    parts.producer = Layer(found.work, [reader.value(image)], parts, [binding])
    reader.nodes.append(parts.producer)
    return Layer(Interleaving(stride), [parts], output, [binding])


def _matrix(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    rows, weights = binding.value.args[0], constant(binding.value.args[1])
    if weights is None or weights.ndim != 2 or output.rank != 2:
        return None
    return reader.layer(Matrix(np.ascontiguousarray(weights.T)), [rows], binding)


def _pool(kind: str) -> Callable[[_Reader, Any, Value], Layer | None]:
    def rule(reader: _Reader, binding: Any, output: Value) -> Layer | None:
        attrs = binding.value.attrs
        if str(attrs.layout) != "NCHW" or output.rank != 4:
            return None
        window = Window(_pair(attrs.pool_size), _pair(attrs.strides), _pair(attrs.dilation), _sides(attrs.padding))
        return reader.layer(Pooling(kind, window, bool(attrs.count_include_pad)), [binding.value.args[0]], binding)

    return rule


def _adaptive(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    image = shape_of(binding.value.args[0])
    if image is None or output.shape is None or str(binding.value.attrs.layout) != "NCHW":
        return None
    if output.shape[2:] != (1, 1):
        return None
    return reader.layer(GlobalAverage(), [binding.value.args[0]], binding)


def _mean(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    image = shape_of(binding.value.args[0])
    axes = sorted(int(axis) % 4 for axis in binding.value.attrs.axis or ())
    # Without the two ones it is a matrix: the same numbers in the same order.
    if image is None or len(image) != 4 or axes != [2, 3]:
        return None
    return reader.layer(GlobalAverage(), [binding.value.args[0]], binding)


def _concat(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    parts = binding.value.args[0]
    if not isinstance(parts, relax.Tuple) or output.rank != 4 or int(binding.value.attrs.axis) not in (1, -3):
        return None
    return reader.layer(Concatenation(), list(parts.fields), binding)


def _resize(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    attrs = binding.value.attrs
    if str(attrs.layout) != "NCHW" or str(attrs.out_dtype) not in ("", "None", "void", "float32"):
        return None
    work = Resizing(str(attrs.method), str(attrs.coordinate_transformation_mode), str(attrs.rounding_method))
    return reader.layer(work, [binding.value.args[0]], binding)


# --- Pointwise: programs over one picture and operands --------------------------------------------------------


def _pointwise(reader: _Reader, binding: Any, output: Value, steps: list[Step], args: Sequence[Any]) -> Layer | None:
    """A layer whose program is ``steps``, in which Operand(i) stands for ``args[i]``."""
    main = next((i for i, arg in enumerate(args) if _is_picture(reader, arg, output)), None)
    if main is None:
        return None
    operands: list[Value | Array] = []
    meaning: list[Result | Operand | float] = []
    for arg in args:
        values = constant(arg)
        if arg is args[main] or (isinstance(arg, relax.Var) and reader.value(arg) is reader.value(args[main])):
            meaning.append(Result(0))
        elif values is not None and values.size == 1 and values.ndim <= output.rank:
            meaning.append(float(values.reshape(())))
        elif values is not None and _is_per_channel(values.shape, output):
            meaning.append(Operand(len(operands)))
            operands.append(values.reshape(-1))
        elif values is None and (_is_picture(reader, arg, output) or _is_gate(reader, arg, output)):
            meaning.append(Operand(len(operands)))
            operands.append(reader.value(arg))
        else:
            return None

    def read(arg: Result | Operand | float) -> Result | Operand | float:
        return meaning[arg.index] if isinstance(arg, Operand) else arg

    steps = [Step(step.op, tuple(read(arg) for arg in step.args)) for step in steps]
    layer = reader.layer(Pointwise(), [args[main]], binding)
    if layer is not None:
        layer.steps, layer.operands = steps, operands
    return layer


def _is_picture(reader: _Reader, arg: Any, output: Value) -> bool:
    if not isinstance(arg, relax.Var):
        return False
    value = reader.value(arg)
    return value.shape == output.shape and value.rank == output.rank


def _is_gate(reader: _Reader, arg: Any, output: Value) -> bool:
    if not isinstance(arg, relax.Var) or output.shape is None:
        return False
    value = reader.value(arg)
    return value.rank == 4 and value.shape == (*output.shape[:2], 1, 1)


def _is_per_channel(shape: tuple[int, ...], output: Value) -> bool:
    if output.shape is None:
        return False
    wanted = (output.shape[1],) if output.rank == 2 else (output.shape[1], 1, 1)
    return shape in (wanted, (1, *wanted))


def _direct(op: str) -> Callable[[_Reader, Any, Value], Layer | None]:
    """An operator that is a step of the same name, on one or two arguments."""

    def rule(reader: _Reader, binding: Any, output: Value) -> Layer | None:
        args = list(binding.value.args)
        if op not in OPERATORS:
            return None
        return _pointwise(reader, binding, output, [Step(op, tuple(Operand(i) for i in range(len(args))))], args)

    return rule


def _relu(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    return _pointwise(reader, binding, output, [Step("maximum", (Operand(0), 0.0))], binding.value.args)


def _relu6(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    steps = [Step("maximum", (Operand(0), 0.0)), Step("minimum", (Result(1), 6.0))]
    return _pointwise(reader, binding, output, steps, binding.value.args)


def _clip(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    image, low, high = binding.value.args
    bounds = [_number(low), _number(high)]
    if None in bounds:
        return None
    steps = [Step("maximum", (Operand(0), float(bounds[0] or 0))), Step("minimum", (Result(1), float(bounds[1] or 0)))]
    return _pointwise(reader, binding, output, steps, [image])


def _number(expr: Any) -> float | None:
    value = getattr(getattr(expr, "value", expr), "value", getattr(expr, "value", None))
    return float(value) if isinstance(value, int | float) else None


def _silu(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    if "sigmoid" not in OPERATORS:
        return None
    steps = [Step("sigmoid", (Operand(0),)), Step("multiply", (Operand(0), Result(1)))]
    return _pointwise(reader, binding, output, steps, binding.value.args)


def _leaky(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    alpha = float(binding.value.attrs.alpha)
    if not 0 <= alpha <= 1:
        return None
    steps = [Step("multiply", (Operand(0), alpha)), Step("maximum", (Operand(0), Result(1)))]
    return _pointwise(reader, binding, output, steps, binding.value.args)


def _gelu(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    if "erf" not in OPERATORS:
        return None
    steps = [
        Step("multiply", (Operand(0), 0.5**0.5)),
        Step("erf", (Result(1),)),
        Step("add", (Result(2), 1.0)),
        Step("multiply", (Operand(0), Result(3))),
        Step("multiply", (Result(4), 0.5)),
    ]
    return _pointwise(reader, binding, output, steps, binding.value.args)


def _is_quantize(binding: Any) -> bool:
    return getattr(getattr(binding.value, "op", None), "name", "") == "relax.quantize"


def _dequantize(reader: _Reader, binding: Any, output: Value) -> Layer | None:
    """Quantised and back: rounded to whole steps of the scale, and clipped."""
    var, *how = binding.value.args
    before = reader.value(var).producer if isinstance(var, relax.Var) else None
    if before is None or not _is_quantize(before.bindings[-1]):
        return None
    quantize = before.bindings[-1].value
    numbers, others = [_scalar(each) for each in how], [_scalar(each) for each in quantize.args[1:]]
    dtype = str(quantize.attrs.out_dtype)
    if None in numbers or numbers != others or dtype not in ("int8", "uint8") or not numbers[0]:
        return None
    scale, zero_point = float(numbers[0]), int(numbers[1] or 0)
    grid = Grid(scale, int(np.iinfo(dtype).min) - zero_point, int(np.iinfo(dtype).max) - zero_point)
    layer = _pointwise(reader, binding, output, list(grid.steps), [quantize.args[0]])
    if layer is not None:
        layer.bindings = [before.bindings[-1], binding]
        output.grid = grid
    return layer


def _scalar(expr: Any) -> float | int | None:
    value = expr.value if isinstance(expr, tvm.ir.GenericConst) else None
    return value.numpy().item() if isinstance(value, tvm.runtime.Tensor) and math.prod(value.shape) == 1 else None


_RULES: dict[str, Callable[[_Reader, Any, Value], Layer | None]] = {
    "conv2d": _convolution,
    "conv2d_transpose": _transposed,
    "matmul": _matrix,
    "max_pool2d": _pool("max"),
    "avg_pool2d": _pool("average"),
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "concat": _concat,
    "dequantize": _dequantize,
    "image.resize2d": _resize,
    "relu": _relu,
    "relu6": _relu6,
    "clip": _clip,
    "silu": _silu,
    "gelu": _gelu,
    "leakyrelu": _leaky,
    **{name: _direct(name) for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "exp")},
    **{name: _direct(name) for name in ("sigmoid", "tanh", "sqrt", "rsqrt", "erf", "negative")},
    "abs": _direct("absolute"),
}
