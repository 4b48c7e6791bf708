"""Detectors' operators (:mod:`targets.detection.operators`) as kernels of the GPU, or as plain Relax.

Each rule takes the tensors and the numbers of one call, as :mod:`targets.detection.calls` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.base import ModelError
from targets.cuda.kernels import class_nms, paste_masks, roi_align
from targets.detection.calls import arguments, name_of


def kernels() -> Any:
    """A pass that replaces all calls of detectors' operators."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        rewriter = _Rewriter(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
        return rewriter.builder_.finalize()

    return run


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._functions: dict[Hashable, Any] = {}

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        name = name_of(call)
        if not name:
            return call
        tensors, numbers = arguments(call)
        if name == "begin_rows":
            # Every row is computed: a GPU has room for all of them side by side.
            return relax.Tuple(tensors[:-1]) if hasattr(call.ty, "fields") else tensors[0]
        if name == "end_rows":
            rows = [self._ended(each, tensors[-1]) for each in tensors[:-1]]
            return relax.Tuple(rows) if hasattr(call.ty, "fields") else rows[0]
        if name not in _KERNELS:
            raise ModelError(f"there is no kernel of {name} for GPUs")
        build, spec = _KERNELS[name](tensors, numbers)
        key = (build, spec)
        if key not in self._functions:
            function = f"{name}_{len(self._functions)}"
            self._functions[key] = self.builder_.add_func(build(spec, function), function)
        results = list(getattr(call.ty, "fields", None) or [call.ty])
        called = relax.call_tir(self._functions[key], relax.Tuple(tensors), results if len(results) > 1 else results[0])
        # A list of one result is a tuple still.
        return (
            called if len(results) > 1 or not hasattr(call.ty, "fields") else relax.Tuple([self.builder_.emit(called)])
        )

    def _ended(self, rows: Any, counts: Any) -> Any:
        """``rows`` with zeros in those that are nothing."""
        emit, shape = self.builder_.emit, _shape(rows)
        (pictures,) = _shape(counts)
        most = shape[0] // pictures
        number = emit(relax.op.arange(0, most, 1, "int32"))
        something = emit(relax.op.less(number, emit(relax.op.reshape(counts, (pictures, 1)))))
        something = emit(relax.op.reshape(something, (shape[0], *[1] * (len(shape) - 1))))
        return emit(relax.op.where(something, rows, relax.const(0, rows.ty.dtype)))


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in expr.ty.shape)


Call = tuple[Callable[[Any, str], Any], Hashable]


def _class_nms(tensors: Sequence[Any], numbers: Sequence[float]) -> Call:
    of_boxes, (batch, classes, boxes) = _shape(tensors[0]), _shape(tensors[1])
    score, overlap, per_class, total, most, size, shifted = numbers
    return class_nms.class_nms, class_nms.ClassNms(
        batch,
        classes,
        boxes,
        of_boxes[1] == 1,
        float(score),
        float(overlap),
        int(per_class),
        int(total),
        int(most),
        float(size),
        bool(shifted),
    )


def _roi_align(tensors: Sequence[Any], numbers: Sequence[float]) -> Call:
    *features, rois = map(_shape, tensors)
    *scales, size, sampling, aligned = numbers
    levels = tuple((n, h, w, c) for n, h, w, c in features)
    return roi_align.roi_align, roi_align.RoiAlign(
        levels, rois[0], tuple(map(float, scales)), int(size), int(sampling), bool(aligned)
    )


def _paste_masks(tensors: Sequence[Any], numbers: Sequence[float]) -> Call:
    batch, most, size, _ = _shape(tensors[0])
    height, width = map(int, numbers)
    return paste_masks.paste_masks, paste_masks.PasteMasks(batch, most, size, height, width)


_KERNELS = {"class_nms": _class_nms, "roi_align": _roi_align, "paste_masks": _paste_masks}
