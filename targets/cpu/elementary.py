"""Elementary functions inside loops, written out, so that LLVM makes vectors of the loops around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels import functions

Expr = Any

_FUNCTIONS: dict[str, Callable[[Expr, int], Expr]] = {
    f"tirx.{name}": getattr(functions, name) for name in ("exp", "sigmoid", "tanh", "erf")
}


def written_out(function: Any) -> Any:
    """The ``tirx.PrimFunc`` without calls of functions of float32 that are calls of libm, a number each, else."""
    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, _expanded)))


def _expanded(call: Any) -> Any:
    expand = _FUNCTIONS.get(getattr(call.op, "name", ""))
    return call if expand is None or str(call.ty.dtype) != "float32" else _expression(expand, call.args[0])


def _expression(expand: Callable[[Expr, int], Expr], argument: Expr) -> Expr:
    """What ``expand`` writes as statements, as one expression."""
    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder, T.prim_func():
        T.func_name("expression")
        T.evaluate(expand(argument, 1))
    body = builder.get().body
    *bindings, last = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    expression = last.value
    for binding in reversed(bindings):
        if str(binding.var.ty.dtype).startswith("float"):
            expression = tirx.Let(binding.var, binding.value, expression)
        else:
            # TVM's analysis keeps one range for an integer, and a loop that is unrolled makes several of it.
            expression = tvm_ffi.structural_map(expression, (tvm.ir.Var, _replacing(binding.var, binding.value)))
    return expression


def _replacing(variable: Any, value: Expr) -> Callable[[Any], Expr]:
    return lambda found: value if found.same_as(variable) else found
