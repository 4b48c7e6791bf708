"""Convolutions with packed weights: the innermost dimension of the weights fills one vector register.

Activations keep the layout NCHW. A group of output channels is one vector; for every pixel of the input a product is a
broadcast pixel times a vector of weights, added to a vector that stays in a register. Weights are packed here, while
they are constants, so the packed form is what is stored and sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, topi
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.cpu.machine import Processor

#: ``kOutEWiseFusable`` of TVM's fusion: elementwise operators that follow are fused into the convolution.
_FUSABLE = 4
NAME = "packed_conv2d"


def pack_convolutions(processor: Processor) -> Any:
    """A pass that replaces each plain float32 convolution with constant weights by one over packed weights."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        packer = _Packer(module, processor)
        packed = packer.visit_expr(module["main"])
        packer.builder_.update_func(module.get_global_var("main"), packed)
        return packer.builder_.get()

    return run


def vector(channels: int, processor: Processor) -> int:
    """Channels in one vector: the widest power of two that divides them and fits a register."""
    return min(processor.lanes, channels & -channels)


@mutator
class _Packer(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, processor: Processor) -> None:
        super().__init__(module)
        self._processor = processor

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.nn.conv2d" or not _is_plain(call):
            return call
        image, weight = call.args
        values = weight.value.numpy()
        lanes = vector(values.shape[0], self._processor)
        outputs, inputs, height, width = values.shape
        # OIHW to O/v, I, H, W, v.
        packed = values.reshape(outputs // lanes, lanes, inputs, height, width).transpose(0, 2, 3, 4, 1)
        attrs = call.attrs
        return self.builder_.call_te(
            conv2d,
            image,
            relax.const(np.ascontiguousarray(packed)),
            [int(n) for n in attrs.strides],
            [int(n) for n in attrs.padding],
            [int(n) for n in attrs.dilation],
            primfunc_name_hint=NAME,
            primfunc_attrs={"op_pattern": _FUSABLE},
        )


def _is_plain(call: Any) -> bool:
    image, weight = call.args
    attrs = call.attrs
    return (
        isinstance(weight, tvm.ir.GenericConst)
        and str(image.ty.dtype) == "float32"
        and str(weight.ty.dtype) == "float32"
        and int(attrs.groups) == 1
        and str(attrs.data_layout) == "NCHW"
        and str(attrs.kernel_layout) == "OIHW"
        and str(attrs.out_layout) in ("", "NCHW")
        and str(attrs.out_dtype) in ("", "None", "void", "float32")
    )


def conv2d(image: Any, weight: Any, strides: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Any:
    """N,C,H,W times O/v,C,KH,KW,v to N,O,H',W'. ``padding`` is top, left, bottom, right."""
    batch, channels, height, width = (int(n) for n in image.shape)
    groups, _, kernel_h, kernel_w, lanes = (int(n) for n in weight.shape)
    top, left, bottom, right = padding
    rows = (height + top + bottom - (kernel_h - 1) * dilation[0] - 1) // strides[0] + 1
    columns = (width + left + right - (kernel_w - 1) * dilation[1] - 1) // strides[1] + 1
    padded = topi.nn.pad(image, [0, 0, top, left], [0, 0, bottom, right], name="padded") if any(padding) else image
    c = te.reduce_axis((0, channels), "c")
    kh = te.reduce_axis((0, kernel_h), "kh")
    kw = te.reduce_axis((0, kernel_w), "kw")
    products = te.compute(
        (batch, groups, rows, columns, lanes),
        lambda n, o, y, x, v: te.sum(
            padded[n, c, y * strides[0] + kh * dilation[0], x * strides[1] + kw * dilation[1]]
            * weight[o, c, kh, kw, v],
            axis=[c, kh, kw],
        ),
        name=NAME,
    )
    return te.compute(
        (batch, groups * lanes, rows, columns),
        lambda n, o, y, x: products[n, o // lanes, y, x, o % lanes],
        name="unpacked",
    )
