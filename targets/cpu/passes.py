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

    Functions that ``main`` calls take theirs from it, after their own arguments. Returns the module and each weight's
    name and ``tvm.runtime.Tensor``. Names say order, operator and argument (``0003-nn.conv2d-1``), so they depend on
    the program's structure alone: retrained weights change values only, and the library, which then holds none of
    them, stays the same to the byte.
    """
    functions: dict[Any, Any] = {}
    called: dict[Any, tuple[Any, list[tuple[Any, Any]]]] = {}
    for var, function in module.functions_items():
        if not isinstance(function, relax.Function):
            functions[var] = function
        elif var.name_hint != "main":
            lifter = _Lifter(module, {})
            changed = lifter.function(function)
            # Of another type than before, so it is another variable.
            variable = tvm.ir.GlobalVar(var.name_hint)
            relax.expr._update_type(variable, changed.ty)
            called[var] = variable, lifter.lifted
            functions[variable] = changed
    lifter = _Lifter(module, called)
    main = module["main"]
    attributes = {"num_input": len(main.params), "global_symbol": "main"}
    functions[tvm.ir.GlobalVar("main")] = lifter.function(main).with_attrs(attributes)
    module = tvm.IRModule(functions, attrs=module.attrs)
    return relax.transform.Normalize()(module), [(str(v.name), c.value) for v, c in lifter.lifted]


@mutator
class _Lifter(PyExprMutator):  # type: ignore[misc]
    """Makes parameters of one function's weights; ``called`` are functions that take weights, and which."""

    def __init__(self, module: Any, called: dict[Any, tuple[Any, list[tuple[Any, Any]]]]) -> None:
        super().__init__(module)
        self._called = called
        self.lifted: list[tuple[Any, Any]] = []

    def function(self, function: Any) -> Any:
        """The function with parameters for its weights after its own."""
        body = self.visit_expr(function.body)
        variables = [variable for variable, _ in self.lifted]
        return relax.Function([*function.params, *variables], body, function.ret_ty, function.is_pure, function.attrs)

    def visit_call_(self, call: Any) -> Any:
        if call.op in self._called:
            function, weights = self._called[call.op]
            taken = [self._lift(value, _role(variable)) for variable, value in weights]
            return relax.Call(function, [*call.args, *taken])
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
        for variable, known in self.lifted:
            if known.same_as(expr):
                return variable
        variable = relax.Var(f"{len(self.lifted):04d}-{role}", expr.ty)
        self.lifted.append((variable, expr))
        return variable


def _role(variable: Any) -> str:
    return str(variable.name).partition("-")[2]


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


def loops() -> list[Any]:
    """From operators to loops that nobody has scheduled, fused with what follows element by element."""
    return [
        views(),
        relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]


def lower(schedule: Any) -> Any:
    """From operators to scheduled loops: TVM's CPU pipeline with ``schedule`` between fusion and the VM's passes."""
    from tvm.relax.backend.cpu_generic import pipeline as cpu

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def pipeline(module: Any, _context: Any) -> Any:
        target = tvm.target.Target.current()
        passes = [
            *cpu.library_dispatch_passes(target),
            *loops(),
            schedule,
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            tvm.transform.module_pass(lambda module, _context: share_buffers(module), opt_level=0, name="ShareBuffers"),
            *cpu.finalize_passes(target),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    return pipeline
