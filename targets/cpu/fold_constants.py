"""What depends on weights alone is computed now, by NumPy.

TVM's own pass compiles a function for each such operator and shape, which is most of the time that building a ResNet
would take; it still gets what is not listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

Array = npt.NDArray[Any]


def fold_constants() -> Any:
    """A pass that replaces operators whose arguments are all constants by their results."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = _Folder(module).visit_expr(function)
        return relax.transform.CanonicalizeBindings()(module)

    return run


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in expr)


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _transposed(call: Any, array: Array) -> Array:
    axes = call.attrs.axes
    return np.transpose(array, None if axes is None else _sizes(axes))


#: How NumPy computes an operator from its call and the arrays of its leading arguments.
_OPERATORS: dict[str, Callable[..., Array]] = {
    "relax.add": lambda _call, a, b: a + b,
    "relax.subtract": lambda _call, a, b: a - b,
    "relax.multiply": lambda _call, a, b: a * b,
    "relax.divide": lambda _call, a, b: a / b,
    "relax.negative": lambda _call, a: -a,
    "relax.sqrt": lambda _call, a: np.sqrt(a),
    "relax.rsqrt": lambda _call, a: 1 / np.sqrt(a),
    "relax.permute_dims": _transposed,
    "relax.expand_dims": lambda call, a: np.expand_dims(a, _sizes(call.attrs.axis)),
    "relax.reshape": lambda call, a: a.reshape(_shape(call.args[1])),
    "relax.broadcast_to": lambda call, a: np.broadcast_to(a, _shape(call.args[1])),
}
#: Operators whose second argument is a shape.
_SHAPED = ("relax.reshape", "relax.broadcast_to")


@mutator
class _Folder(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._known: dict[Any, Array] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        folded = self._fold(binding.value)
        if folded is not None:
            self._known[binding.var] = folded
            binding = relax.VarBinding(binding.var, relax.const(folded))
        super().visit_var_binding_(binding)

    def _fold(self, call: Any) -> Array | None:
        name = getattr(getattr(call, "op", None), "name", "")
        if not isinstance(call, relax.Call) or name not in _OPERATORS:
            return None
        arrays = [self._array(arg) for arg in (call.args[:1] if name in _SHAPED else call.args)]
        shape = getattr(call.ty, "shape", None)
        if not isinstance(shape, relax.ShapeExpr) or any(not hasattr(size, "value") for size in shape):
            return None
        if any(array is None or array.dtype.kind != "f" for array in arrays):
            return None
        result = np.ascontiguousarray(_OPERATORS[name](call, *arrays), np.dtype(str(call.ty.dtype)))
        # NumPy makes one dimension of none.
        return result.reshape(_shape(shape))

    def _array(self, expr: Any) -> Array | None:
        if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
            values: Array = expr.value.numpy()
            return values
        if isinstance(expr, tvm.tirx.FloatImm):
            return np.asarray(expr.value, np.dtype(str(expr.ty.dtype)))
        return self._known.get(expr) if isinstance(expr, relax.Var) else None
