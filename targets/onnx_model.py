"""Reading ONNX files: checked, self-contained, with every shape known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets.base import ModelError, TensorSpec

# Protocol buffers cannot be larger.
MAX_FILE = (2 << 30) - 1


def read(path: Path, *, external: bool = True) -> Any:
    """The ``onnx.ModelProto`` in ``path``, checked by ONNX's own checker.

    With ``external``, tensors that lie in other files are loaded too; those must be in the model's own folder.

    Raises:
        ModelError: unreadable, too large, truncated, not ONNX, or with data outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_FILE else b""
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    if size > MAX_FILE:
        raise ModelError(f"{path} is larger than an ONNX file can be (2 GiB)", hint="keep its weights in external data")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RuntimeError):
        raise ModelError(f"{path} is not an ONNX file, or it is cut short", hint="export or copy it again") from None
    # Almost any short file is a valid protocol buffer: a model without these is no model.
    if not model.ir_version or not model.opset_import or not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph", hint="export or copy it again")
    _check_external(model, path.parent)
    if external and has_external(model):
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{path}: its external data cannot be read: {_first_line(error)}") from None
    if external:
        _check(model, path)
    return model


def has_external(model: Any) -> bool:
    """Whether some of its tensors lie in other files."""
    return any(True for _ in _external(model))


def inputs_and_outputs(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What the graph takes and gives. A dimension that the file leaves open is -1.

    Raises:
        ModelError: an input or output that is not a tensor of a known type and rank.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    taken = tuple(_spec(value, "input") for value in model.graph.input if value.name not in stored)
    return taken, tuple(_spec(value, "output") for value in model.graph.output)


def fix_shapes(model: Any, batch: int, name: str = "the model") -> Any:
    """A copy of ``model`` in which every dimension is a number and the first of each input is ``batch``.

    ``batch`` 0 keeps a fixed batch and makes an open one 1.

    Raises:
        ModelError: a dimension other than the batch is open, or the graph does not allow that batch.
    """
    import onnx

    fixed = type(model)()
    fixed.CopyFrom(model)
    stored = {tensor.name for tensor in fixed.graph.initializer}
    changed = False
    for value in fixed.graph.input:
        if value.name in stored:
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            known = dimension.HasField("dim_value") and dimension.dim_value > 0
            if axis == 0 and (batch or not known):
                changed = changed or not known or dimension.dim_value != batch
                dimension.dim_value = batch or 1
            elif not known:
                which = f"'{dimension.dim_param}'" if dimension.dim_param else "without a name"
                raise ModelError(
                    f"{name}: dimension {axis} ({which}) of input '{value.name}' is not fixed",
                    hint="only the first dimension, the batch, may be open: export the model with fixed shapes",
                )
    if not changed and all(-1 not in spec.shape for spec in inputs_and_outputs(fixed)[1]):
        return fixed
    # What the file says about values further down was said for another batch.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            f"{name} cannot be compiled for batch {batch or 1}: {_first_line(error)}",
            hint="its graph fixes the batch; export it with an open batch",
        ) from None
    return fixed


def plain(model: Any) -> Any:
    """The same graph with fewer kinds of things in it: local functions inlined, every constant a tensor."""
    import numpy as np
    import onnx

    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    dtypes = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name in dtypes:
            attribute = node.attribute[0]
            value = np.asarray(onnx.helper.get_attribute_value(attribute), dtypes[attribute.name])
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(value)))
    return model


def _spec(value: Any, kind: str) -> TensorSpec:
    import onnx

    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"{kind} '{value.name}' is a {value.type.WhichOneof('value') or 'value of no type'}, no tensor"
        )
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{kind} '{value.name}' has an unknown element type ({tensor.elem_type})") from None
    if dtype.startswith(("object", "str")):
        raise ModelError(f"{kind} '{value.name}' holds strings; only numbers can be compiled")
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in tensor.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)


def _external(model: Any) -> Iterator[Any]:
    from onnx.external_data_helper import uses_external_data

    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        tensors = list(getattr(graph, "initializer", ()))
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ())]
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())]
        yield from (tensor for tensor in tensors if uses_external_data(tensor))


def _check_external(model: Any, folder: Path) -> None:
    """A file must not make us read others of this machine: its data must lie in its own folder."""
    root = folder.resolve()
    for tensor in _external(model):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        target = (root / location).resolve()
        if not location or not target.is_relative_to(root):
            raise ModelError(
                f"tensor '{tensor.name}' keeps its data in '{location}', outside the model's folder",
                hint="put the data file next to the model and save it with a relative location",
            )
        if not target.is_file():
            raise ModelError(f"tensor '{tensor.name}' keeps its data in '{location}', and there is no such file")


def _check(model: Any, path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        # A ValueError is about text that is not text, which the checker's own message stumbles over.
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
