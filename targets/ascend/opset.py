"""An ONNX graph in an older set of operators, where that has the same operators.

Exporters write the newest sets, ATC wants older ones: CANN 5.1 was published with opset 11. ONNX's own converter goes
down by few operators, so what changed between 11 and 18 is written down here, for those that convolutional networks
have: most changes only allow more types. What is not here stays, and its graph keeps its opset.
"""

from __future__ import annotations

from typing import Any

from targets.base import ModelError

#: The lowest that graphs are brought down to, and the highest that this table knows.
LOWEST, HIGHEST = 11, 18
#: Attributes that came to be, by operator, with the value that means what was before.
_NEW_ATTRIBUTES: dict[str, dict[str, int]] = {
    "Shape": {"start": 0},
    "BatchNormalization": {"training_mode": 0},
}
#: Operators whose newer versions take more types only, apart from attributes above.
_SAME = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip"),
        *("Concat", "Conv", "ConvTranspose", "DepthToSpace", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten"),
        *("Floor", "Gather", "GatherElements", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater"),
        *("HardSigmoid", "Identity", "LeakyRelu", "Less", "Log", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mod"),
        *("Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal", "Relu", "Shape", "Sigmoid", "Sign"),
        *("Size", "Slice", "SpaceToDepth", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Where"),
    }
)
#: Operators that became: input number 1, a constant list of integers, was this attribute before.
_LISTS = {
    "Split": "split",
    "Squeeze": "axes",
    "Unsqueeze": "axes",
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"), "axes"),
}
_NOOP = "noop_with_empty_axes"


class CannotLower(ModelError):
    """An operator of the graph means something in its opset that the older one cannot say."""


def lowered(model: Any, opset: int) -> Any:
    """A copy of an ``onnx.ModelProto`` in ``opset``, or the model itself if that is its own or an older one.

    Raises :class:`CannotLower` that names the first operator that stands in the way.
    """
    import onnx

    own = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if own <= opset:
        return model
    if own > HIGHEST or opset < LOWEST:
        raise CannotLower(f"the model has opset {own}, which cannot be brought to {opset}")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*copy.graph.value_info, *copy.graph.input)}
    for node in copy.graph.node:
        _lower(node, own, opset, constants, ranks)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    copy.ir_version = onnx.helper.find_min_ir_version_for(list(copy.opset_import))
    _drop_unused(copy.graph)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CannotLower(f"the model cannot be written in opset {opset}: {str(error).splitlines()[0][:200]}") from None
    return copy


def _lower(node: Any, own: int, opset: int, constants: dict[str, Any], ranks: dict[str, int]) -> None:
    import onnx

    if node.domain not in ("", "ai.onnx"):
        raise CannotLower(f"operator {node.domain}.{node.op_type} is of no opset of ONNX")
    try:
        since = onnx.defs.get_schema(node.op_type, own, "").since_version
        onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise _cannot(node, opset, "is not there") from None
    if since <= opset:
        return
    if node.op_type in _LISTS:
        _list_to_attribute(node, _LISTS[node.op_type], opset, constants)
    elif node.op_type in ("Softmax", "LogSoftmax"):
        _softmax(node, opset, ranks)
    elif node.op_type == "Constant":
        if node.attribute[0].name != "value":
            raise _cannot(node, opset, "has another form")
    elif node.op_type == "Reshape":
        _reshape(node, opset, constants)
    elif node.op_type not in _SAME:
        raise _cannot(node, opset, "is another one")
    else:
        _without(node, opset, _NEW_ATTRIBUTES.get(node.op_type, {}))
        _known_attributes(node, opset)


def _list_to_attribute(node: Any, name: str, opset: int, constants: dict[str, Any]) -> None:
    import onnx

    _without(node, opset, {_NOOP: 0} if name == "axes" else {})
    # Split in equal parts says how many; the number of its outputs says it too.
    for attribute in [each for each in node.attribute if each.name == "num_outputs"]:
        node.attribute.remove(attribute)
    if len(node.input) > 1 and node.input[1]:
        constant = constants.get(node.input[1])
        if constant is None:
            raise _cannot(node, opset, f"has no constant for {name}")
        values = [int(value) for value in onnx.numpy_helper.to_array(constant).reshape(-1)]
        node.attribute.append(onnx.helper.make_attribute(name, values))
    del node.input[1:]


def _reshape(node: Any, opset: int, constants: dict[str, Any]) -> None:
    """Whether a 0 in the new shape is one, or the old extent, does not matter to a shape without one."""
    import onnx

    shape = constants.get(node.input[1])
    has_zero = shape is None or not onnx.numpy_helper.to_array(shape).all()
    if any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute) and has_zero:
        raise _cannot(node, opset, "has no attribute allowzero")
    del node.attribute[:]


def _softmax(node: Any, opset: int, ranks: dict[str, int]) -> None:
    """Before 13 all axes from ``axis`` on were one, and it was 1 if nobody said: the same for the last one alone."""
    import onnx

    rank = ranks.get(node.input[0], 0)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    if not rank or axis not in (-1, rank - 1):
        raise _cannot(node, opset, "is over another axis than the last")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("axis", rank - 1))


def _without(node: Any, opset: int, new: dict[str, int]) -> None:
    for attribute in [each for each in node.attribute if each.name in new]:
        if attribute.i != new[attribute.name]:
            raise _cannot(node, opset, f"has no attribute {attribute.name}")
        node.attribute.remove(attribute)


def _known_attributes(node: Any, opset: int) -> None:
    import onnx

    known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    unknown = [attribute.name for attribute in node.attribute if attribute.name not in known]
    if unknown:
        raise _cannot(node, opset, f"has no attribute {unknown[0]}")


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for holder, unused in (
        (graph.initializer, [each for each in graph.initializer if each.name not in used]),
        (graph.node, [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in used]),
    ):
        for each in unused:
            holder.remove(each)


def _cannot(node: Any, opset: int, why: str) -> CannotLower:
    return CannotLower(f"in opset {opset} operator {node.op_type} ('{node.name}') {why}")
