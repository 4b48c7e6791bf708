"""From a model of the controller to the ONNX graph that ATC is given: opset, names, open or fixed batch."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from targets import onnx_model, pt2_model
from targets.ascend.opset import HIGHEST, CannotLower, lowered
from targets.base import ModelError, SourceModel, TensorSpec

#: What the published models were exported with, and every release of CANN since 5.1 reads.
PUBLISHED_OPSET = 11
BATCH = "batch"
#: Characters that an input's name may have on ATC's command line.
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,255}")


class Exported(NamedTuple):
    """An ``onnx.ModelProto`` whose batch is open where it can be; its inputs and outputs at the batch asked for."""

    model: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...]

    @property
    def open_batch(self) -> bool:
        return any(-1 in spec.shape for spec in onnx_model.inputs_and_outputs(self.model)[0])


def export(model: SourceModel, *, batch: int = 0, batches: Sequence[int] = (), opset: int = 0) -> Exported:
    """The graph, checked for each of the batches that it will be asked for.

    ``opset`` 0 is an ONNX file's own, and `PUBLISHED_OPSET` for others; where the operators do not allow it, the graph
    keeps the exporter's and a warning says so. Raises :class:`ModelError`.
    """
    said: list[str] = []
    graph = onnx_model.read(Path(model.path)) if model.format == "onnx" else _from_pt2(model)
    wanted = opset or (0 if model.format == "onnx" else PUBLISHED_OPSET)
    if wanted:
        try:
            graph = lowered(graph, wanted)
        except CannotLower as error:
            if opset:
                raise ModelError(f"{model.name} cannot be written in opset {opset}: {error.message}") from None
            said.append(f"the network has opset {_opset(graph)}, not the published {wanted}: {error.message}")
    graph = _named(graph)
    taken, _ = onnx_model.inputs_and_outputs(graph)
    is_open = all(spec.shape and spec.shape[0] == -1 for spec in taken)
    if batches and not is_open:
        graph = _opened(graph)
    for each in batches:
        onnx_model.fix_shapes(graph, each, model.name)
    fixed = onnx_model.fix_shapes(graph, batch, model.name)
    if not is_open and not batches:
        graph = fixed
    inputs, outputs = onnx_model.inputs_and_outputs(fixed)
    unknown = next((spec.name for spec in outputs if -1 in spec.shape), "")
    if unknown:
        raise ModelError(f"{model.name}: the shape of output '{unknown}' depends on values, which ATC cannot compile")
    return Exported(graph, _as_known(inputs, model.inputs), _as_known(outputs, model.outputs), tuple(said))


def _from_pt2(model: SourceModel) -> Any:
    """By torch's exporter, which writes opset 18; all else it was told of the program is dropped."""
    archive = pt2_model.read(Path(model.path))
    if archive.detects:
        raise ModelError(
            f"{model.name} finds its boxes inside, by operators that ATC does not have",
            hint="take the form of it that gives raw outputs, whose boxes are found on the host",
        )
    program = archive.load()
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ModelError("ONNX is exported with onnxscript, which is not installed", hint="make setup") from None
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                (),
                None,
                input_names=[spec.name for spec in model.inputs],
                output_names=[spec.name for spec in model.outputs],
                opset_version=HIGHEST,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        # The exporter raises many types; all of them are about this model.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = lines[0][:400] if lines else type(error).__name__
        raise ModelError(f"{model.name} cannot be exported to ONNX: {words}") from error
    assert made is not None
    return _plain(made.model_proto)


def _plain(graph: Any) -> Any:
    """Without the stacks of calls and the notes that the exporter leaves, and with one name for the batch."""
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    graph.graph.ClearField("metadata_props")
    values = (*graph.graph.input, *graph.graph.output, *graph.graph.value_info)
    for each in (*graph.graph.node, *graph.graph.initializer, *values, *graph.functions):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.graph.input} - {""}
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in symbols:
                dimension.dim_param = BATCH
    return graph


def _named(graph: Any) -> Any:
    """With names of inputs that a command line can carry: ``--input_shape`` is split at colons and semicolons."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in stored]
    others = {value.name for value in graph.graph.input} | {name for node in graph.graph.node for name in node.output}
    changed: dict[str, str] = {}
    for value in inputs:
        if not _NAME.fullmatch(value.name):
            base = re.sub(r"[^A-Za-z0-9_./-]", "_", value.name)[:200] or "input"
            name = next(name for n in range(1000) if (name := base if not n else f"{base}_{n}") not in others)
            others.add(name)
            changed[value.name] = name
    if not changed:
        return graph
    copy = type(graph)()
    copy.CopyFrom(graph)
    for value in copy.graph.input:
        value.name = changed.get(value.name, value.name)
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = changed.get(name, name)
    return copy


def _opened(graph: Any) -> Any:
    """With an open batch; whether its operators allow that is for shape inference to say."""
    copy = type(graph)()
    copy.CopyFrom(graph)
    stored = {tensor.name for tensor in copy.graph.initializer}
    for value in (*copy.graph.input, *copy.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in stored and dimensions:
            dimensions[0].dim_param = BATCH
    del copy.graph.value_info[:]
    return copy


def _as_known(found: Sequence[TensorSpec], known: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Names and layouts as the model's source gives them; shapes and types are the graph's."""
    if len(found) != len(known):
        raise ModelError(f"the exported graph has {len(found)} tensors where the model has {len(known)}")
    return tuple(
        TensorSpec(spec.name, graph.shape, graph.dtype, spec.layout) for graph, spec in zip(found, known, strict=True)
    )


def _opset(graph: Any) -> int:
    return next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
