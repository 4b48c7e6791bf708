"""From an ONNX graph to a torch module, for the operators that image networks are made of.

Every converter is the same arithmetic in torch, or refuses: an operator, attribute or opset that is not exactly
representable ends the build with its name. Shapes that a graph computes are not known here; the exporters of torch,
Keras and others write them as constants once the graph was simplified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets import onnx_model
from targets.base import ModelError, SourceModel

if TYPE_CHECKING:
    import torch

#: Before it Softmax and others had other meanings.
_OLDEST_OPSET = 13


class _Node:
    """One node: its attributes, what it takes (`torch.fx` nodes; None where left out), and constants among that."""

    def __init__(self, node: Any, where: str, inputs: Sequence[Any], constants: Mapping[str, Any]) -> None:
        import onnx

        self.where = where
        self.inputs = inputs
        self._names = list(node.input)
        self._constants = constants
        self._attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        self._known: set[str] = set()

    def get(self, name: str, default: Any) -> Any:
        self._known.add(name)
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def constant(self, index: int, what: str) -> list[Any] | None:
        """The numbers of an input that must be a constant; None when it is left out."""
        if index >= len(self._names) or not self._names[index]:
            return None
        tensor = self._constants.get(self._names[index])
        if tensor is None:
            raise self.refused(f"its {what} is computed, not a constant")
        numbers: list[Any] = tensor.reshape(-1).tolist()
        return numbers

    def rank(self, index: int) -> int:
        """Dimensions of an input that is a constant; 0 of another."""
        tensor = self._constants.get(self._names[index])
        return 0 if tensor is None else int(tensor.ndim)

    def check(self) -> None:
        """Raises for an attribute that no converter has looked at: it would have been ignored."""
        unknown = sorted(self._attributes.keys() - self._known)
        if unknown:
            raise self.refused(f"its attribute {unknown[0]} is not known here")

    def refused(self, why: str) -> ModelError:
        return ModelError(
            f"{self.where} cannot be built for a Jetson: {why}",
            hint="export the network from torch as a .pt2 file (torch.export.save)",
        )


Converter = Callable[["torch.fx.Graph", _Node], Any]


def module(model: SourceModel) -> torch.fx.GraphModule:
    """The network in an ONNX file. Raises :class:`ModelError` that names what it cannot be made of."""
    import onnx
    import torch

    read = onnx_model.plain(onnx_model.read(Path(model.path)))
    opset = next((each.version for each in read.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"{model.name} is written in opset {opset}; {_OLDEST_OPSET} and newer can be built for a Jetson",
            hint="convert it with onnx.version_converter, or export it from torch as a .pt2 file",
        )
    root, graph = torch.nn.Module(), torch.fx.Graph()
    constants: dict[str, Any] = {}
    values: dict[str, Any] = {}

    def constant(name: str, tensor: Any) -> None:
        # A copy: what protocol buffers lend cannot be written to.
        constants[name] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        root.register_buffer(f"constant_{len(constants) - 1}", constants[name])
        values[name] = graph.get_attr(f"constant_{len(constants) - 1}")

    for tensor in read.graph.initializer:
        constant(tensor.name, tensor)
    for spec in model.inputs:
        values[spec.name] = graph.placeholder(_identifier(spec.name))
    for index, node in enumerate(read.graph.node):
        if node.op_type == "Constant":
            constant(node.output[0], node.attribute[0].t)
            continue
        where = f"operator {node.op_type} ({node.name or f'node {index}'})"
        convert = _CONVERTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        taken = _Node(node, where, [values[name] if name else None for name in node.input], constants)
        if convert is None:
            raise taken.refused("it is none of those that are known here")
        if len([name for name in node.output if name]) != 1:
            raise taken.refused("more than one of its results is used")
        values[node.output[0]] = convert(graph, taken)
        taken.check()
    results = [values[spec.name] for spec in model.outputs]
    graph.output(tuple(results) if len(results) > 1 else results[0])
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(root, graph).eval()


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


# --- Converters ---------------------------------------------------------------------------------


def _elementwise(function: str) -> Converter:
    def convert(graph: Any, node: _Node) -> Any:
        import torch

        return graph.call_function(getattr(torch, function), tuple(node.inputs))

    return convert


def _conv(graph: Any, node: _Node) -> Any:
    import torch

    weight = node.inputs[1]
    rank = len(node.get("kernel_shape", ())) or node.rank(1) - 2
    if rank not in (1, 2, 3):
        raise node.refused(f"it has {rank} spatial dimensions")
    x, pads = _padded(graph, node, rank, 0.0)
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[rank]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    return graph.call_function(
        function, (x, weight, bias, list(strides), pads, list(dilations), int(node.get("group", 1)))
    )


def _padded(graph: Any, node: _Node, rank: int, value: float) -> tuple[Any, list[int]]:
    """What a window slides over, and the padding that the operator itself adds on both sides."""
    import torch

    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refused(f"it pads {node.get('auto_pad', '')}")
    pads = list(node.get("pads", [0] * 2 * rank))
    begin, end = pads[:rank], pads[rank:]
    if begin == end:
        return node.inputs[0], begin
    # torch counts from the last dimension, begin and end beside each other.
    flat = [each for pair in reversed(list(zip(begin, end, strict=True))) for each in pair]
    return graph.call_function(torch.nn.functional.pad, (node.inputs[0], flat, "constant", value)), [0] * rank


def _average_pool(graph: Any, node: _Node) -> Any:
    import torch

    kernel = list(node.get("kernel_shape", ()))
    include, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    if len(kernel) != 2 or any(each != 1 for each in node.get("dilations", [1, 1])):
        raise node.refused("only plain windows of two dimensions are known here")
    x, pads = _padded(graph, node, 2, 0.0)
    if x is not node.inputs[0] and not include:
        raise node.refused("it pads unevenly and does not count the padding")
    strides = list(node.get("strides", [1, 1]))
    return graph.call_function(torch.nn.functional.avg_pool2d, (x, kernel, strides, pads, ceil, include))


def _max_pool(graph: Any, node: _Node) -> Any:
    import torch

    kernel = list(node.get("kernel_shape", ()))
    if len(kernel) != 2 or node.get("storage_order", 0):
        raise node.refused("only windows of two dimensions are known here")
    x, pads = _padded(graph, node, 2, float("-inf"))
    strides, dilations = list(node.get("strides", [1, 1])), list(node.get("dilations", [1, 1]))
    ceil = bool(node.get("ceil_mode", 0))
    return graph.call_function(torch.nn.functional.max_pool2d, (x, kernel, strides, pads, dilations, ceil))


def _global_average_pool(graph: Any, node: _Node) -> Any:
    import torch

    return graph.call_function(torch.nn.functional.adaptive_avg_pool2d, (node.inputs[0], 1))


def _batch_norm(graph: Any, node: _Node) -> Any:
    import torch

    if node.get("training_mode", 0):
        raise node.refused("it is in training mode")
    x, scale, bias, mean, variance = node.inputs
    node.get("momentum", 0.9)
    epsilon = float(node.get("epsilon", 1e-5))
    return graph.call_function(torch.nn.functional.batch_norm, (x, mean, variance, scale, bias, False, 0.0, epsilon))


def _gemm(graph: Any, node: _Node) -> Any:
    import torch

    a, b = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if node.get("transA", 0):
        a = graph.call_function(torch.t, (a,))
    transposed = bool(node.get("transB", 0))
    if alpha == beta == 1.0 and transposed and (bias is None or node.rank(2) == 1):
        return graph.call_function(torch.nn.functional.linear, (a, b, bias))
    if transposed:
        b = graph.call_function(torch.t, (b,))
    product = graph.call_function(torch.matmul, (a, b))
    if alpha != 1.0:
        product = graph.call_function(torch.mul, (product, alpha))
    if bias is None:
        return product
    scaled = bias if beta == 1.0 else graph.call_function(torch.mul, (bias, beta))
    return graph.call_function(torch.add, (product, scaled))


def _reshape(graph: Any, node: _Node) -> Any:
    import torch

    shape = node.constant(1, "shape")
    if shape is None or (node.get("allowzero", 0) and 0 in shape):
        raise node.refused("it makes a tensor of no elements")
    x = node.inputs[0]
    sizes: list[Any] = list(shape)
    for axis, size in enumerate(shape):
        if size == 0:
            sizes[axis] = graph.call_method("size", (x, axis))
    return graph.call_function(torch.reshape, (x, sizes))


def _flatten(graph: Any, node: _Node) -> Any:
    import torch

    if node.get("axis", 1) != 1:
        raise node.refused("only a batch and the rest can be kept apart")
    return graph.call_function(torch.flatten, (node.inputs[0], 1))


def _transpose(graph: Any, node: _Node) -> Any:
    import torch

    order = list(node.get("perm", ()))
    if not order:
        raise node.refused("it does not say the order of dimensions")
    return graph.call_function(torch.permute, (node.inputs[0], order))


def _concat(graph: Any, node: _Node) -> Any:
    import torch

    return graph.call_function(torch.cat, (list(node.inputs), int(node.get("axis", 0))))


def _softmax(graph: Any, node: _Node) -> Any:
    import torch

    return graph.call_function(torch.softmax, (node.inputs[0], int(node.get("axis", -1))))


def _clip(graph: Any, node: _Node) -> Any:
    import torch

    least, most = node.constant(1, "least value"), node.constant(2, "largest value")
    if least is None and most is None:
        return node.inputs[0]
    bounds = (least[0] if least else None, most[0] if most else None)
    return graph.call_function(torch.clamp, (node.inputs[0], *bounds))


def _leaky_relu(graph: Any, node: _Node) -> Any:
    import torch

    return graph.call_function(torch.nn.functional.leaky_relu, (node.inputs[0], float(node.get("alpha", 0.01))))


def _same(graph: Any, node: _Node) -> Any:
    return node.inputs[0]


def _dropout(graph: Any, node: _Node) -> Any:
    node.get("seed", 0)
    return node.inputs[0]


def _squeeze(graph: Any, node: _Node) -> Any:
    x = node.inputs[0]
    axes = node.constant(1, "axes")
    if axes is None or any(axis < 0 for axis in axes):
        raise node.refused("its axes are not counted from the first")
    for axis in sorted(axes, reverse=True):
        x = graph.call_method("squeeze", (x, axis))
    return x


def _unsqueeze(graph: Any, node: _Node) -> Any:
    x = node.inputs[0]
    axes = node.constant(1, "axes")
    if axes is None or any(axis < 0 for axis in axes):
        raise node.refused("its axes are not counted from the first")
    for axis in sorted(axes):
        x = graph.call_method("unsqueeze", (x, axis))
    return x


_CONVERTERS: dict[str, Converter] = {
    "Add": _elementwise("add"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _elementwise("true_divide"),
    "Dropout": _dropout,
    "Exp": _elementwise("exp"),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "MatMul": _elementwise("matmul"),
    "MaxPool": _max_pool,
    "Mul": _elementwise("mul"),
    "Relu": _elementwise("relu"),
    "Reshape": _reshape,
    "Sigmoid": _elementwise("sigmoid"),
    "Softmax": _softmax,
    "Sqrt": _elementwise("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _elementwise("sub"),
    "Tanh": _elementwise("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
