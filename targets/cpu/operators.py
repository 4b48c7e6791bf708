"""Operators on plain tensors that have kernels of their own: what is left of Relax when the graph has taken its layers.

Each rule looks at one call and gives the kernel for it, or nothing when the call does not have the form that the kernel
is for; TVM's own legalisation takes those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.cpu.kernels import class_nms, dense, matmul, nms, paste_masks, roi_align, softmax, sort
from targets.cpu.processors import Processor
from targets.detection import calls

#: float32 tensors; the kernels compute in nothing else.
_FLOAT = "float32"


@dataclass(frozen=True, slots=True)
class KernelCall:
    """``build(spec, name)`` called with ``arguments``; its results have the types ``results``."""

    name: str
    build: Callable[[Any, str], Any]
    spec: Hashable
    arguments: Sequence[Any]
    results: Sequence[Any]


#: What a variable is bound to.
Lookup = Callable[[Any], Any]
Rule = Callable[[Any, Processor, Lookup], "KernelCall | None"]


def kernels(processor: Processor) -> Any:
    """A pass that calls a kernel wherever there is one for an operator."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        rewriter = _Rewriter(module, processor)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
        return rewriter.builder_.finalize()

    return run


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, processor: Processor) -> None:
        super().__init__(module)
        self._processor = processor
        self._functions: dict[Hashable, Any] = {}

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        operator = getattr(call.op, "name", "").removeprefix("relax.")
        rule = _RULES.get(operator) or _PACKED.get(calls.name_of(call))
        found = rule(call, self._processor, self.builder_.lookup_binding) if rule else None
        if found is None:
            return call
        key = (found.build, found.spec)
        if key not in self._functions:
            name = f"{found.name}_{len(self._functions)}"
            self._functions[key] = self.builder_.add_func(found.build(found.spec, name), name)
        results = list(found.results)
        result = relax.call_tir(
            self._functions[key], relax.Tuple(list(found.arguments)), results if len(results) > 1 else results[0]
        )
        return self._trimmed(result) if found.build is nms.all_class_nms else result

    def _trimmed(self, result: Any) -> Any:
        """What was found, as many rows as were, and their number: that is known when the kernel has run."""
        emit = self.builder_.emit
        both = emit(result)
        rows, number = emit(relax.TupleGetItem(both, 0)), emit(relax.TupleGetItem(both, 1))
        ends = emit(relax.op.concat([number, relax.const([3], "int64")]))
        first, step = relax.const([0, 0], "int64"), relax.const([1, 1], "int64")
        return relax.Tuple([emit(relax.op.dynamic_strided_slice(rows, first, ends, step)), number])


# --- Looking ------------------------------------------------------------------------------------


def _shape(expr: Any) -> tuple[int, ...] | None:
    """The dimensions of a tensor if all of them are numbers, and it is not empty."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr) or any(not hasattr(size, "value") for size in shape):
        return None
    sizes = tuple(int(size) for size in shape)
    return sizes if 0 not in sizes and sizes else None


def _floats(expr: Any) -> tuple[int, ...] | None:
    """The dimensions of a tensor of float32."""
    return _shape(expr) if isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == _FLOAT else None


def _number(expr: Any) -> float | None:
    """The value of a constant of one number."""
    if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
        values = expr.value.numpy()
        return float(values.item()) if values.size == 1 else None
    return None


def _lanes(processor: Processor, length: int) -> int:
    """Lanes of vectors that fit into so many numbers."""
    return min(processor.lanes, 1 << length.bit_length() - 1)


# --- Rules --------------------------------------------------------------------------------------


def _softmax(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    shape = _floats(call.args[0])
    if shape is None:
        return None
    axis = int(call.attrs.axis) % len(shape)
    neighbours = math.prod(shape[axis + 1 :])
    lanes = _lanes(processor, neighbours if neighbours > 1 else shape[axis])
    log = call.op.name.endswith("log_softmax")
    spec = softmax.Softmax(shape, axis, lanes, log)
    return KernelCall("log_softmax" if log else "softmax", softmax.softmax, spec, call.args, [call.ty])


def _layer_norm(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    shape = _floats(call.args[0])
    axes = sorted(int(axis) % len(shape) for axis in call.attrs.axes) if shape else []
    if shape is None or axes != list(range(len(shape) - len(axes), len(shape))):
        return None
    if any(_floats(each) != shape[axes[0] :] for each in call.args[1:]):
        return None
    lanes = _lanes(processor, math.prod(shape[axes[0] :]))
    spec = softmax.LayerNorm(shape, len(axes), float(call.attrs.epsilon), lanes)
    return KernelCall("layer_norm", softmax.layer_norm, spec, call.args, [call.ty])


def _matmul(call: Any, processor: Processor, lookup: Lookup) -> KernelCall | None:
    """A product of two activations, matrix by matrix, or of many rows by one matrix."""
    left, right = call.args
    a, b, y = _floats(left), _floats(right), _floats(call)
    if a is None or b is None or y is None or min(len(a), len(b)) < 2:
        return None
    if len(b) == 2:
        batch, rows = 1, math.prod(a[:-1])
    elif a[:-2] == b[:-2]:
        batch, rows = math.prod(a[:-2]), a[-2]
    else:
        return None
    inputs, outputs = b[-2:]
    before: Any = lookup(right) if isinstance(right, relax.Var) else None
    transposed = before is not None and _swaps_last(before, len(b))
    if transposed:
        right, b = before.args[0], _floats(before.args[0]) or b
    tile, lanes = dense.plan(
        rows,
        inputs,
        outputs,
        lanes=processor.lanes,
        registers=processor.registers,
        l1_bytes=processor.l1_bytes,
        l2_bytes=processor.l2_bytes,
    )
    # Enough jobs for a few threads, if there are not as many matrices.
    chunk = -(-rows // min(rows, max(1, dense.THREADS // batch)))
    blocks = (min(tile.rows, chunk), tile.blocks)
    spec = matmul.MatMul(batch, rows, inputs, outputs, a, b, y, blocks, chunk, lanes, transposed)
    return KernelCall("matmul", matmul.matmul, spec, [left, right], [call.ty])


def _swaps_last(call: Any, rank: int) -> bool:
    if getattr(getattr(call, "op", None), "name", "") != "relax.permute_dims" or call.attrs.axes is None:
        return False
    return [int(axis) for axis in call.attrs.axes] == [*range(rank - 2), rank - 1, rank - 2]


def _sort(call: Any, _: Processor, __: Lookup) -> KernelCall | None:
    spec = _sorted(call, descending=bool(call.attrs.descending), indices=False)
    return KernelCall("sort", sort.sort, spec, call.args, [call.ty]) if spec else None


def _argsort(call: Any, _: Processor, __: Lookup) -> KernelCall | None:
    spec = _sorted(call, descending=bool(call.attrs.descending), values=False, index_dtype=str(call.attrs.dtype))
    return KernelCall("argsort", sort.sort, spec, call.args, [call.ty]) if spec else None


def _topk(call: Any, _: Processor, __: Lookup) -> KernelCall | None:
    kind = str(call.attrs.ret_type)
    spec = _sorted(
        call,
        descending=bool(call.attrs.largest),
        k=int(call.attrs.k),
        values=kind != "indices",
        indices=kind != "values",
        index_dtype=str(call.attrs.dtype),
    )
    return KernelCall("topk", sort.sort, spec, call.args, _parts(call.ty)) if spec else None


def _sorted(call: Any, k: int = 0, **how: Any) -> sort.Sort | None:
    shape, dtype = _shape(call.args[0]), str(call.args[0].ty.dtype)
    if shape is None or call.attrs.axis is None:
        return None
    try:
        sort.key_bits(dtype)
    except ValueError:
        return None
    axis = int(call.attrs.axis) % len(shape)
    return sort.Sort(shape, axis, min(k, shape[axis]) if k > 0 else shape[axis], dtype=dtype, **how)


def _parts(type_: Any) -> list[Any]:
    """The types of a result's tensors."""
    return list(type_.fields) if isinstance(type_, tvm.ir.TupleType) else [type_]


def _all_class_nms(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    boxes, scores = (_floats(each) for each in call.args[:2])
    numbers = [_number(each) for each in call.args[2:5]]
    if boxes is None or scores is None or len(scores) != 3 or None in numbers or call.attrs.output_format != "onnx":
        return None
    most, iou, threshold = (float(number or 0) for number in numbers)
    if most < 1:
        return None
    batch, classes, count = scores
    # No class can keep more than there are, whatever the file says.
    spec = nms.AllClassNms(batch, classes, count, min(int(most), count), iou, threshold, processor.lanes)
    results = [relax.TensorType((batch * classes * spec.most, 3), "int64"), relax.TensorType((1,), "int64")]
    return KernelCall("all_class_nms", nms.all_class_nms, spec, call.args[:2], results)


def _nms(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    data, attrs = _floats(call.args[0]), call.attrs
    if data is None or float(attrs.soft_nms_sigma) > 0 or any(str(a.ty.dtype) != "int32" for a in call.args[1:3]):
        return None
    batch, boxes, numbers = data
    spec = nms.Nms(
        batch,
        boxes,
        numbers,
        most=int(attrs.max_output_size),
        iou_threshold=float(attrs.iou_threshold),
        force=bool(attrs.force_suppress),
        top_k=int(attrs.top_k),
        coord_start=int(attrs.coord_start),
        score_index=int(attrs.score_index),
        id_index=int(attrs.id_index),
        return_indices=bool(attrs.return_indices),
        invalid_to_bottom=bool(attrs.invalid_to_bottom),
        lanes=processor.lanes,
    )
    return KernelCall("nms", nms.nms, spec, call.args[:3], _parts(call.ty))


def _class_nms(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    (boxes, scores), numbers = calls.arguments(call)
    corners, each = _floats(boxes), _floats(scores)
    if corners is None or each is None:
        return None
    score_threshold, iou_threshold, per_class, total, most, min_size, shifted = numbers
    spec = class_nms.ClassNms(
        batch=each[0],
        groups=corners[1],
        classes=each[1],
        boxes=each[2],
        score_threshold=float(np.float32(score_threshold)),
        iou_threshold=float(iou_threshold),
        per_class=int(per_class),
        total=int(total),
        most=int(most),
        min_size=float(np.float32(min_size)),
        shifted=bool(shifted),
        lanes=_lanes(processor, each[2]),
    )
    return KernelCall("class_nms", class_nms.class_nms, spec, [boxes, scores], _parts(call.ty))


def _roi_align(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    (*features, rois), numbers = calls.arguments(call)
    planes, boxes = [_floats(each) for each in features], _floats(rois)
    shapes = [plane for plane in planes if plane is not None]
    *scales, size, sampling, aligned = numbers
    if len(shapes) < len(features) or boxes is None or sampling < 1:
        return None
    spec = roi_align.RoiAlign(
        batch=shapes[0][0],
        channels=shapes[0][3],
        levels=tuple((height, width) for _, height, width, _ in shapes),
        scales=tuple(float(scale) for scale in scales),
        rois=boxes[0],
        size=int(size),
        sampling=int(sampling),
        aligned=bool(aligned),
        lanes=_lanes(processor, shapes[0][3]),
    )
    return KernelCall("roi_align", roi_align.roi_align, spec, [*features, rois], _parts(call.ty))


def _paste_masks(call: Any, processor: Processor, _: Lookup) -> KernelCall | None:
    tensors, (height, width) = calls.arguments(call)
    shape = _floats(tensors[0])
    if shape is None or _floats(tensors[1]) is None:
        return None
    batch, most, side, _side = shape
    spec = paste_masks.PasteMasks(batch, most, side, int(height), int(width), _lanes(processor, int(width)))
    return KernelCall("paste_masks", paste_masks.paste_masks, spec, tensors, _parts(call.ty))


#: Detectors' operators, by their names in `targets.detection.calls`.
_PACKED: dict[str, Rule] = {
    "class_nms": _class_nms,
    "roi_align": _roi_align,
    "paste_masks": _paste_masks,
}

_RULES: dict[str, Rule] = {
    "nn.softmax": _softmax,
    "nn.log_softmax": _softmax,
    "nn.layer_norm": _layer_norm,
    "matmul": _matmul,
    "sort": _sort,
    "argsort": _argsort,
    "topk": _topk,
    "vision.all_class_non_max_suppression": _all_class_nms,
    "vision.non_max_suppression": _nms,
}
