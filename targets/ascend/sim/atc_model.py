"""From an ONNX file to the network of the simulator's offline model: parsed, frozen, rounded, tried."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from targets import onnx_model
from targets.ascend.sim import aipp, atc_shapes, om
from targets.ascend.sim.atc_messages import AtcError
from targets.ascend.sim.atc_shapes import Shapes
from targets.base import ModelError

#: What a half-precision number can hold; a weight beyond it saturates.
LARGEST_HALF = 65504.0
_OUTPUT_TYPES = {
    "FP32": "float32",
    "FP16": "float16",
    "DOUBLE": "float64",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


def parse(path: Path, unsupported: Sequence[str]) -> Any:
    """The ``onnx.ModelProto`` in ``path``, with operators that the parser and the chip know.

    Raises:
        AtcError: E10041, E16004, E16005, E16002, EZ3003.
    """
    import onnx

    try:
        model = onnx_model.read(path, external=False)
    except ModelError as error:
        if "no graph" in error.message and path.stat().st_size:
            raise AtcError("E16004") from None
        raise AtcError("E10041", path) from None
    # Before ONNX's own checker, which has one answer for all of these.
    if len(model.opset_import) > 1:
        raise AtcError("E16005", len(model.opset_import))
    opset = model.opset_import[0].version
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
            raise AtcError("E16002", f"{node.domain or 'ai.onnx'}::{opset}::{node.op_type}", node.name)
        if node.op_type in unsupported:
            raise AtcError("EZ3003", node.name or node.op_type, node.op_type)
    try:
        if onnx_model.has_external(model):
            return onnx_model.read(path)
        onnx.checker.check_model(model)
    except (ModelError, onnx.checker.ValidationError, ValueError):
        raise AtcError("E10041", path) from None
    return model


def build(
    model: Any,
    shapes: Shapes,
    flags: Mapping[str, str],
    blocks: tuple[om.Aipp, ...],
    *,
    fp16: bool,
    precision: str,
    cann: str,
) -> tuple[om.Header, bytes]:
    """The frozen network and its header.

    Raises:
        AtcError: E10016, E10049, E10001 (an axis that nobody fixed), E10014, E10052, E19999.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    taken = _freeze(model, inputs, shapes, flags)
    _choose_outputs(model, flags["out_nodes"])
    model = _inferred(model)
    if fp16:
        _round_weights(model)
    place: Literal["NCHW", "NHWC"] = "NHWC" if flags["input_format"] == "NHWC" else "NCHW"
    seen = list(taken)
    for block in blocks:
        rank = block.related_input_rank
        if rank >= len(taken):
            raise AtcError("E10052", f"related_input_rank is {rank}, the network has {len(taken)} inputs")
        if taken[rank].name in flags["input_fp16_nodes"].split(";"):
            raise AtcError("E10001", taken[rank].name, "--input_fp16_nodes", "The input has AIPP.")
        seen[rank] = om.Tensor(taken[rank].name, aipp.input_shape(block, taken[rank].shape, place), "uint8")
    for name in filter(None, flags["input_fp16_nodes"].split(";")):
        found = [rank for rank, tensor in enumerate(taken) if tensor.name == name]
        if not found:
            raise AtcError("E10016", name, "input_fp16_nodes")
        seen[found[0]] = msgspec.structs.replace(seen[found[0]], dtype="float16")
    network = model.SerializeToString()
    _try(network)
    header = om.Header(
        soc_version=flags["soc_version"],
        cann=cann,
        precision_mode=precision,
        fp16=fp16,
        inputs=tuple(seen),
        outputs=_outputs(model, flags),
        network_inputs=tuple(taken),
        kind=shapes.kind,
        profiles=_profiles(shapes, taken, seen, blocks, place),
        aipp=blocks,
        size=len(network),
        sha256=hashlib.sha256(network).hexdigest(),
        layout=place,
    )
    return header, network


def _freeze(model: Any, inputs: Sequence[Any], shapes: Shapes, flags: Mapping[str, str]) -> list[om.Tensor]:
    given = dict(shapes.shapes)
    tensors = []
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        own = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims)
        shape = given.pop(value.name, None)
        if shape is None:
            if -1 in own:
                reason = "maybe you should set input_shape to specify its shape."
                raise AtcError("E10001", -1, value.name, reason)
            shape = own
        if len(shape) != len(own):
            raise AtcError("E10049", len(shape), len(own))
        for axis, (dim, number) in enumerate(zip(dims, shape, strict=True)):
            dim.Clear()
            if number > 0:
                dim.dim_value = number
            else:
                # One name for the batch of all inputs: they are open together.
                dim.dim_param = "batch" if shapes.kind == "batch" else f"{value.name}_{axis}"
        tensors.append(om.Tensor(value.name, shape, _dtype(value)))
    if given:
        raise AtcError("E10016", next(iter(given)), "input_shape")
    if not tensors:
        raise AtcError("E19999", text="The network has no input.")
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return tensors


def _dtype(value: Any) -> Any:
    import onnx

    try:
        name = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        return msgspec.convert(name, om.Dtype)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError):
        raise AtcError("E19999", text=f"The data type of {value.name} is not supported.") from None


def _inferred(model: Any) -> Any:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        reason = str(error).strip().splitlines() or [""]
        raise AtcError("E19999", text=f"Inner Error! InferShape failed: {reason[-1]}") from None


def _choose_outputs(model: Any, text: str) -> None:
    """Keep the outputs that ``--out_nodes`` lists, in its order: ONNX output names or ``node:index``."""
    import onnx

    wanted = [part.strip() for part in text.split(";") if part.strip()]
    if not wanted:
        return
    present = {value.name: value for value in model.graph.output}
    by_node = {
        f"{node.name}:{index}": name for node in model.graph.node if node.name for index, name in enumerate(node.output)
    }
    chosen = []
    for part in wanted:
        name = part if part in present else by_node.get(part)
        if name is None:
            raise AtcError("E10016", part, "out_nodes")
        chosen.append(present.get(name) or onnx.ValueInfoProto(name=name))
    del model.graph.output[:]
    model.graph.output.extend(chosen)


def _round_weights(model: Any) -> None:
    """Weights as half precision holds them, stored as they were: the CPU computes in single precision."""
    import numpy as np
    import onnx

    single = onnx.TensorProto.FLOAT
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == single]
    for node in model.graph.node:
        if node.op_type == "Constant":
            stored += [a.t for a in node.attribute if a.name == "value" and a.t.data_type == single]
    for tensor in stored:
        values = np.clip(onnx.numpy_helper.to_array(tensor), -LARGEST_HALF, LARGEST_HALF)
        rounded = values.astype(np.float16).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))


def _outputs(model: Any, flags: Mapping[str, str]) -> tuple[om.Tensor, ...]:
    types = _output_types(flags["output_type"])
    makers = {name: (node, index) for node in model.graph.node for index, name in enumerate(node.output)}
    outputs = []
    for number, value in enumerate(model.graph.output):
        node, index = makers.get(value.name, (None, 0))
        node_name = (node.name or node.op_type) if node is not None else value.name
        dims = value.type.tensor_type.shape.dim
        shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims)
        dtype = types.get(f"{node_name}:{index}") or types.get("") or _dtype(value)
        # The real compiler names its outputs after the node that makes them too: only their order can be relied on.
        outputs.append(om.Tensor(f"{node_name}:{index}:{value.name or number}", shape, dtype))
    return tuple(outputs)


def _output_types(text: str) -> dict[str, Any]:
    """``FP16`` for all, under the empty name, or ``node:0:FP16;…``."""
    types = {}
    for part in filter(None, text.split(";")):
        name, _, word = part.strip().rpartition(":")
        if word not in _OUTPUT_TYPES:
            raise AtcError("E10001", text, "--output_type", "The value must be FP32, FP16, UINT8, INT8 …")
        types[name] = _OUTPUT_TYPES[word]
    return types


def _profiles(
    shapes: Shapes, taken: Sequence[om.Tensor], seen: Sequence[om.Tensor], blocks: Sequence[om.Aipp], place: str
) -> tuple[om.Profile, ...]:
    by_rank = {block.related_input_rank: block for block in blocks}
    profiles = []
    for gear in shapes.gears:
        rest = list(gear)
        found = []
        for rank, (inside, outside) in enumerate(zip(taken, seen, strict=True)):
            own = rest[: inside.shape.count(-1)] if shapes.kind == "dims" else gear
            if shapes.kind == "dims":
                del rest[: len(own)]
            shape = atc_shapes.concrete(shapes.kind, inside.shape, tuple(own), place)
            block = by_rank.get(rank)
            found.append(aipp.input_shape(block, shape, place) if block else shape)
            assert len(found[-1]) == len(outside.shape)
        profiles.append(om.Profile(gear, tuple(found)))
    return tuple(profiles)


def _try(network: bytes) -> None:
    """What onnxruntime cannot run is refused here, not when it is benchmarked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        reason = str(error).strip().splitlines() or [""]
        raise AtcError("E19999", text=f"Inner Error! The network cannot be built: {reason[0]}") from None
