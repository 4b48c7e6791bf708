"""Rows that are nothing are not computed: what lies between ``begin_rows`` and ``end_rows`` becomes a function of a few
rows, which runs where a picture has that many.

:mod:`targets.detection.operators` says what the two mean. A detector's head is most of its time, and what it runs on,
proposals or detections, differs from picture to picture; here its shapes stay fixed all the same, so that it gets the
same kernels as everything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.cpu.read import variables
from targets.detection import calls

#: A function's attribute: its first argument says whether there is anything to compute.
GUARDED = "fleet.guarded"
#: The largest result within a function of rows is about as large as a few cores' second-level caches.
CHUNK_BYTES = 8 * 2**20


@dataclass(slots=True)
class _Region:
    """What is computed between a ``begin_rows`` and an ``end_rows``."""

    #: Bindings of main, in order.
    bindings: list[Any]
    #: Variables that are rows on the way in, and the ones of main that they stand for.
    inside: dict[Any, Any]
    #: Other variables of main that are read.
    others: list[Any]
    #: What ``end_rows`` takes.
    results: list[Any]
    counts: Any
    #: Rows of all pictures, and of each.
    size: int
    most: int
    #: Variables that main has no longer.
    gone: set[Any]

    def chunk(self) -> int:
        """Rows of one call: a divisor of a picture's rows, so that none has rows of two."""
        widest = max(_row_bytes(binding.var.ty, self.size) for binding in self.bindings)
        return max(rows for rows in _divisors(self.most) if rows == 1 or rows * widest <= CHUNK_BYTES)


def outline(module: Any) -> Any:
    """A module whose ``main`` has no ``begin_rows`` and no ``end_rows``, and a function for what was between them.

    Such a function has the attribute :data:`GUARDED`; :func:`guard` gives its first argument its meaning.
    """
    main = module["main"]
    if not any(calls.name_of(binding.value) == "end_rows" for block in main.body.blocks for binding in block.bindings):
        return module
    return _Outliner(module).run()


class _Outliner:
    def __init__(self, module: Any) -> None:
        self._main = module["main"]
        others = {var: function for var, function in module.functions_items() if var.name_hint != "main"}
        self._builder = relax.BlockBuilder(tvm.IRModule(others, attrs=module.attrs))
        self._bindings = [binding for block in self._main.body.blocks for binding in block.bindings]
        self._defined = {binding.var: binding for binding in self._bindings}

    def run(self) -> Any:
        main, builder = self._main, self._builder
        regions = {}
        for binding in self._bindings:
            if calls.name_of(binding.value) == "end_rows":
                regions[binding.var] = self._region(binding)
        functions = {var: self._function(index, each) for index, (var, each) in enumerate(regions.items())}
        gone = set().union(*(region.gone for region in regions.values()))
        copy = Copy(builder)
        with builder.function("main", list(main.params), attrs=dict(main.attrs or {}), pure=bool(main.is_pure)):
            with builder.dataflow():
                for binding in self._bindings:
                    if binding.var in regions:
                        region = regions[binding.var]
                        copy.known[binding.var] = self._chunks(region, functions[binding.var], copy)
                    elif binding.var not in gone:
                        copy.take(binding)
                result = builder.emit_output(copy.visit_expr(main.body.body))
            builder.emit_func_output(result)
        return builder.finalize()

    def _region(self, end: Any) -> _Region:
        """What ``end`` depends on, back to the rows that it began with."""
        results, _ = calls.arguments(end.value)
        counts = results.pop()
        size, pictures = int(results[0].ty.shape[0]), int(counts.ty.shape[0])
        needed = self._needed(results)
        inside: dict[Any, Any] = {}
        begins: dict[Any, list[Any]] = {}
        body: list[Any] = []
        inner: set[Any] = set()
        for binding in self._bindings:
            value = binding.value
            if binding.var not in needed:
                continue
            if calls.name_of(value) == "begin_rows":
                begins[binding.var], _ = calls.arguments(value)
                if len(begins[binding.var]) == 2:
                    inside[binding.var] = begins[binding.var][0]
            elif isinstance(value, relax.TupleGetItem) and value.tuple_value in begins:
                inside[binding.var] = begins[value.tuple_value][int(value.index)]
            elif any(var in inside or var in inner for var in variables(value)):
                body.append(binding)
                inner.add(binding.var)
                if any(not sizes or sizes[0] % size for sizes in _shapes(binding.var.ty)):
                    raise ValueError(f"'{binding.var.name}' is not computed row by row")
        inner |= inside.keys()
        others = dict.fromkeys(var for each in body for var in variables(each.value) if var not in inner)
        gone = {*inner, *begins}
        return _Region(body, inside, list(others), results, counts, size, size // pictures, gone)

    def _needed(self, results: Sequence[Any]) -> set[Any]:
        """Variables that ``results`` depend on, back to a ``begin_rows``."""
        needed: set[Any] = set()
        pending = list(results)
        while pending:
            var = pending.pop()
            if var not in needed and var in self._defined:
                needed.add(var)
                value = self._defined[var].value
                if calls.name_of(value) != "begin_rows":
                    pending += variables(value)
        return needed

    def _function(self, index: int, region: _Region) -> Any:
        """The region as a function of a chunk of rows: whether to, the rows, what else it reads."""
        builder, chunk = self._builder, region.chunk()
        needed = relax.Var("needed", relax.TensorType([], "bool"))
        rows = [relax.Var(str(var.name), _with_rows(var.ty, chunk, region.size)) for var in region.inside]
        others = [relax.Var(str(var.name), var.ty) for var in region.others]
        copy = Copy(builder, region.size, chunk)
        copy.known |= dict(zip([*region.inside, *region.others], [*rows, *others], strict=True))
        name = f"rows_{index}"
        attributes = {GUARDED: 1}
        with builder.function(name, [needed, *rows, *others], attrs=attributes, private=True):
            with builder.dataflow():
                for binding in region.bindings:
                    copy.take(binding)
                results = [copy.known[var] for var in region.results]
                result = builder.emit_output(relax.Tuple(results))
            variable = builder.emit_func_output(result)
        return variable

    def _chunks(self, region: _Region, function: Any, copy: Copy) -> Any:
        """Calls of the function in main, and their results put together."""
        emit, chunk = self._builder.emit, region.chunk()
        counts = copy.known.get(region.counts, region.counts)
        rows = [copy.known.get(var, var) for var in region.inside.values()]
        others = [copy.known.get(var, var) for var in region.others]
        parts = []
        for start in range(0, region.size, chunk):
            picture, first = divmod(start, region.most)
            count = emit(relax.op.take(counts, relax.const(picture, "int64"), axis=0, mode="clip"))
            needed = emit(relax.op.greater(count, relax.const(first, "int32")))
            some = [emit(relax.op.strided_slice(each, [0], [start], [start + chunk])) for each in rows]
            parts.append(emit(relax.Call(function, [needed, *some, *others])))
        numbers = np.arange(region.size, dtype=np.int32).reshape(-1, region.most) % region.most
        column = emit(relax.op.expand_dims(counts, 1))
        something = emit(relax.op.less(relax.const(numbers), column))
        results = []
        for index, var in enumerate(region.results):
            each = [emit(relax.TupleGetItem(part, index)) for part in parts]
            whole = emit(relax.op.concat(each, 0)) if len(each) > 1 else each[0]
            ones = [1] * (len(var.ty.shape) - 1)
            mask = emit(relax.op.reshape(something, (region.size, *ones)))
            zero = relax.const(0, str(var.ty.dtype))
            results.append(emit(relax.op.where(mask, whole, zero)))
        return results[0] if len(results) == 1 else emit(relax.Tuple(results))


@mutator
class Copy(PyExprMutator):  # type: ignore[misc]
    """Copies bindings into a builder; where ``size`` rows were there are ``chunk`` afterwards."""

    def __init__(self, builder: Any, size: int = 0, chunk: int = 0) -> None:
        super().__init__()
        self.known: dict[Any, Any] = {}
        self._builder, self._size, self._chunk = builder, size, chunk

    def take(self, binding: Any) -> None:
        """The binding, with what it reads replaced by what that is now."""
        value = self.visit_expr(binding.value)
        if isinstance(binding, relax.MatchCast):
            self.known[binding.var] = self._builder.match_cast(value, binding.ty)
        else:
            self.known[binding.var] = self._builder.emit(value, str(binding.var.name))

    def visit_var_(self, var: Any) -> Any:
        return self.known.get(var, var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.known.get(var, var)

    def visit_call_(self, call: Any) -> Any:
        arguments = [self.visit_expr(each) for each in call.args]
        types = [_with_rows(each, self._chunk, self._size) for each in call.ty_args]
        # Without its type, which the builder infers anew.
        return relax.Call(call.op, arguments, call.attrs, types)

    def visit_shape_expr_(self, shape: Any) -> Any:
        return relax.ShapeExpr(_rows(list(shape.values), self._chunk, self._size))


def guard(module: Any) -> Any:
    """Functions of rows compute nothing, and give zeros, where their first argument says that nothing is needed."""
    functions: dict[Any, Any] = {}
    for var, function in module.functions_items():
        if GUARDED not in (function.attrs or {}):
            functions[var] = function
            continue
        needed, *params = function.params
        body = relax.Function(params, function.body, function.ret_ty, function.is_pure)
        inner = tvm.ir.GlobalVar(f"{var.name_hint}_body")
        relax.expr._update_type(inner, body.ty)
        functions |= {inner: body, var: _either(needed, inner, function)}
    return relax.transform.Normalize()(tvm.IRModule(functions, attrs=module.attrs))


def _either(needed: Any, inner: Any, function: Any) -> Any:
    """What calls ``inner`` with all arguments but the first, if that is true."""
    params = [relax.Var(str(each.name), each.ty) for each in function.params]
    computed = relax.Call(inner, params[1:])
    nothing = relax.Tuple([relax.op.zeros(_sizes(field), str(field.dtype)) for field in function.ret_ty.fields])
    result = relax.Var("result", function.ret_ty)
    choice = relax.VarBinding(result, relax.If(params[0], computed, nothing))
    body = relax.SeqExpr([relax.BindingBlock([choice])], result)
    return relax.Function(params, body, function.ret_ty, function.is_pure)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _sizes(ty: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in ty.shape)


def _tensors(ty: Any) -> list[Any]:
    return [each for field in ty.fields for each in _tensors(field)] if isinstance(ty, tvm.ir.TupleType) else [ty]


def _shapes(ty: Any) -> list[tuple[int, ...]]:
    return [_sizes(each) for each in _tensors(ty)]


def _row_bytes(ty: Any, size: int) -> int:
    """Bytes for each row of a type's largest tensor."""
    return max(math.prod(_sizes(each)) * np.dtype(str(each.dtype)).itemsize // size for each in _tensors(ty))


def _rows(sizes: Sequence[Any], chunk: int, size: int) -> list[Any]:
    """Dimensions of which the first was made of ``size`` rows."""
    if not sizes or not size or int(sizes[0]) % size:
        return list(sizes)
    return [int(sizes[0]) // size * chunk, *sizes[1:]]


def _with_rows(ty: Any, chunk: int, size: int) -> Any:
    if isinstance(ty, tvm.ir.TupleType):
        return tvm.ir.TupleType([_with_rows(field, chunk, size) for field in ty.fields])
    if not isinstance(ty, relax.TensorType):
        return ty
    return relax.TensorType(_rows(list(ty.shape), chunk, size), str(ty.dtype))
