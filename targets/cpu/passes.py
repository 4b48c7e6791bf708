"""What is done to a Relax module for a CPU, as a list of passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.cpu.fold_constants import fold_constants
from targets.cpu.memory import share_buffers

#: Constants of less than so many bytes that are not floating point (indices, zero points) stay in the library.
SMALL = 1024


def simplify() -> Any:
    """Batch norms folded into convolutions, everything that depends on weights alone computed now."""
    return tvm.ir.transform.Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldBatchnormToConv2D(),
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            fold_constants(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )


def lift_weights(module: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Make weights parameters of ``main``, after its inputs, in the order in which the program uses them.

    Returns the module and each weight's name and ``tvm.runtime.Tensor``. Names say order, operator and argument
    (``0003-nn.conv2d-1``), so they depend on the program's structure alone: retrained weights change values only, and
    the library, which then holds none of them, stays the same to the byte.
    """
    lifter = _Lifter(module)
    main = module["main"]
    body = lifter.visit_expr(main.body)
    variables = [variable for _, variable in lifter.lifted]
    attributes = dict(main.attrs or {}) | {"num_input": len(main.params), "global_symbol": "main"}
    lifted = relax.Function([*main.params, *variables], body, main.ret_ty, main.is_pure).with_attrs(attributes)
    others = {variable: function for variable, function in module.functions_items() if variable.name_hint != "main"}
    module = tvm.IRModule({tvm.ir.GlobalVar("main"): lifted, **others})
    return relax.transform.Normalize()(module), [(str(v.name), c.value) for c, v in lifter.lifted]


@mutator
class _Lifter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.lifted: list[tuple[Any, Any]] = []

    def visit_call_(self, call: Any) -> Any:
        operator = getattr(call.op, "name", "call").removeprefix("relax.")
        arguments = call.args
        if operator == "call_tir":
            operator, arguments = str(call.args[0].name_hint), getattr(call.args[1], "fields", ())
        for position, argument in enumerate(arguments):
            self._lift(argument, f"{operator}-{position}")
        return super().visit_call_(call)

    def visit_generic_const_(self, constant: Any) -> Any:
        return self._lift(constant, "constant")

    def _lift(self, expr: Any, role: str) -> Any:
        if not isinstance(expr, tvm.ir.GenericConst) or not _is_weight(expr.value):
            return expr
        for known, variable in self.lifted:
            if known.same_as(expr):
                return variable
        variable = relax.Var(f"{len(self.lifted):04d}-{role}", expr.ty)
        self.lifted.append((expr, variable))
        return variable


def _is_weight(value: Any) -> bool:
    if not isinstance(value, tvm.runtime.Tensor) or value.ndim == 0:
        return False
    size = int(np.prod(value.shape)) * value.dtype.itemsize
    floating = str(value.dtype).startswith(("float", "bfloat"))
    return size >= SMALL or (floating and size > 0)


#: Operators that give the same numbers in the same order under another shape.
_VIEWS = frozenset(f"relax.{name}" for name in ("reshape", "flatten", "expand_dims", "squeeze", "nn.batch_flatten"))


def views() -> Any:
    """Operators that change nothing but the shape become reshapes, which the virtual machine does without a copy.

    TVM finds them among scheduled loops otherwise, in a pass that takes no loops but its own.
    """

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = _Reshaper(module).visit_expr(function)
        return relax.transform.Normalize()(module)

    return run


@mutator
class _Reshaper(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        given = super().visit_call_(call)
        shape = getattr(call.ty, "shape", None)
        if getattr(call.op, "name", "") not in _VIEWS - {"relax.reshape"} or not isinstance(shape, relax.ShapeExpr):
            return given
        return relax.op.reshape(given.args[0], shape)


def lower(schedule: Any) -> Any:
    """From operators to scheduled loops: TVM's CPU pipeline with ``schedule`` between fusion and the VM's passes."""
    from tvm.relax.backend.cpu_generic import pipeline as cpu

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def pipeline(module: Any, _context: Any) -> Any:
        target = tvm.target.Target.current()
        passes = [
            *cpu.library_dispatch_passes(target),
            views(),
            relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            schedule,
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            tvm.transform.module_pass(lambda module, _context: share_buffers(module), opt_level=0, name="ShareBuffers"),
            *cpu.finalize_passes(target),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    return pipeline
