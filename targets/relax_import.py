"""From a model file to a Relax module: one function ``main``, every shape a number, weights as constants."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

from targets import onnx_model, pt2_model
from targets.base import ModelError, SourceModel, TensorSpec


def to_relax(model: SourceModel, batch: int = 0) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The ``tvm.IRModule`` of ``model`` with what it takes and gives.

    ``batch`` is the first dimension of every input; 0 keeps the file's own, and makes an open one 1.

    Raises:
        ModelError: says which operator and where, or which dimension is open.
    """
    module = _from_onnx(model, batch) if model.format == "onnx" else _from_pt2(model, batch)
    main = module["main"]
    inputs = tuple(_typed(spec, var.ty, "input") for spec, var in zip(model.inputs, main.params, strict=True))
    result = main.ret_ty
    fields = list(result.fields) if hasattr(result, "fields") else [result]
    outputs = tuple(_typed(spec, ty, "output") for spec, ty in zip(model.outputs, fields, strict=True))
    return module, inputs, outputs


def _from_onnx(model: SourceModel, batch: int) -> Any:
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    read = onnx_model.read(Path(model.path))
    graph = onnx_model.plain(onnx_model.fix_shapes(read, batch, model.name))
    known = _get_convert_map()
    for index, node in enumerate(graph.graph.node):
        if node.domain not in ("", "ai.onnx"):
            raise _unsupported(f"{node.domain}.{node.op_type}", _where(node, index))
        if node.op_type not in known and node.op_type not in ("Constant", "If"):
            raise _unsupported(node.op_type, _where(node, index))
    said = io.StringIO()
    # The importer prints which operator it stopped at, and warns about what the checker has already said.
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return from_onnx(graph, keep_params_in_input=False)
        except Exception as error:
            # The importer raises whatever its operators' converters raise: all of it is about this model.
            raise _failed(model, graph, said.getvalue(), error) from error


def _failed(model: SourceModel, graph: Any, said: str, error: Exception) -> ModelError:
    operator = said.partition("Error converting operator ")[2].partition(",")[0]
    of_type = [_where(node, index) for index, node in enumerate(graph.graph.node) if node.op_type == operator]
    where = f"operator {operator} ({'; '.join(of_type[:3])}{'; …' if len(of_type) > 3 else ''})" if operator else ""
    return ModelError(
        f"{model.name} cannot be compiled: {where + ': ' if where else ''}{_words(error)}",
        hint="replace that operator, or export the model in another way",
    )


def _from_pt2(model: SourceModel, batch: int) -> Any:
    archive = pt2_model.read(Path(model.path))
    program = archive.load()
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    own: dict[str, Any] = {}
    if archive.detects:
        from targets.detection import calls

        own = calls.converters()
        program = _with_batch(program, model, batch)
    program = program.run_decompositions()
    known = {*ExportedProgramImporter().create_convert_map(), *own}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            raise _unsupported(str(node.target), f"node '{node.name}'")
    try:
        module = from_exported_program(
            program, run_ep_decomposition=False, unwrap_unit_return_tuple=True, custom_convert_map=own
        )
    except Exception as error:
        raise ModelError(f"{model.name} cannot be compiled: {_words(error)}") from error
    return _whole_clips(_fix_batch(relax, module, model.name, batch))


def _whole_clips(module: Any) -> Any:
    """Whole numbers that are clipped on one side only: TVM's importer writes an infinity, which none of them is."""
    import math

    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Clips(PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = super().visit_call_(call)
            if getattr(call.op, "name", "") != "relax.clip" or not str(call.args[0].ty.dtype).startswith(
                ("int", "uint")
            ):
                return call
            result, dtype = call.args[0], str(call.args[0].ty.dtype)
            for bound, limit in zip(call.args[1:], (relax.op.maximum, relax.op.minimum), strict=True):
                number = getattr(bound.value, "value", bound.value)
                if math.isfinite(number):
                    result = self.builder_.normalize(limit(result, relax.const(int(number), dtype)))
            return result

    rewritten = Clips(module).visit_expr(module["main"])
    module.update_func(module.get_global_var("main"), rewritten)
    return module


def _with_batch(program: Any, model: SourceModel, batch: int) -> Any:
    """The program traced again with a number for its batch: what counts rows for each picture needs one."""
    import torch

    inputs = []
    for spec in model.inputs:
        first, *others = spec.shape
        if first > 0 and batch not in (0, first):
            raise _other_batch(model.name, first, batch)
        inputs.append(torch.zeros((first if first > 0 else batch or 1, *others), dtype=getattr(torch, spec.dtype)))
    try:
        return torch.export.export(program.module(), tuple(inputs))
    except Exception as error:
        raise ModelError(f"{model.name} cannot be compiled for batch {batch or 1}: {_words(error)}") from error


def _other_batch(name: str, exported: int, batch: int) -> ModelError:
    return ModelError(
        f"{name} is exported for batch {exported} and cannot be compiled for {batch}",
        hint="export it with an open batch: dynamic_shapes={'x': {0: torch.export.Dim('batch')}}",
    )


def _fix_batch(relax: Any, module: Any, name: str, batch: int) -> Any:
    """Replace the open batch by a number; refuse every other open dimension."""
    symbols = {}
    for var in module["main"].params:
        for axis, size in enumerate(var.ty.shape):
            if hasattr(size, "value"):
                if axis == 0 and batch and int(size) != batch:
                    raise _other_batch(name, int(size), batch)
            elif axis == 0 and hasattr(size, "name"):
                symbols[size] = batch or 1
            elif not all(symbol in symbols for symbol in relax.analysis.tir_vars_in_ty(var.ty)):
                raise ModelError(
                    f"{name}: dimension {axis} ({size}) of input '{var.name}' is not fixed",
                    hint="only the first dimension, the batch, may be open",
                )
    if not symbols:
        return module
    module = relax.transform.BindSymbolicVars({symbol.name: size for symbol, size in symbols.items()})(module)
    # The range of a symbol that is no longer there.
    main = module["main"].without_attr("tir_var_lower_bound").without_attr("tir_var_upper_bound")
    module.update_func(module.get_global_var("main"), main)
    return module


def _typed(spec: TensorSpec, ty: Any, kind: str) -> TensorSpec:
    """``spec`` with the shape and dtype that it has in the module."""
    shape = getattr(ty, "shape", None)
    if shape is None or any(not hasattr(size, "value") for size in shape):
        raise ModelError(
            f"{kind} '{spec.name}' has no fixed shape, even with a fixed batch",
            hint="export the model with fixed shapes",
        )
    return TensorSpec(spec.name, tuple(int(size) for size in shape), str(ty.dtype), spec.layout)


def _unsupported(operator: str, where: str) -> ModelError:
    return ModelError(
        f"operator {operator} ({where}) cannot be compiled",
        hint="replace it in the model, or export the model without it",
    )


def _where(node: Any, index: int) -> str:
    return f"node '{node.name}'" if node.name else f"node {index}, which gives '{next(iter(node.output), '')}'"


def _words(error: Exception) -> str:
    """The one line of a compiler's exception that says something; TVM appends its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("  File")]
    return (
        lines[-1][:500] if lines and isinstance(error, AssertionError) else (lines or [type(error).__name__])[0][:500]
    )
