"""The CPU's part of a partitioned network as Relax modules: one to calibrate with, one for the board.

Both are compiled by the CPU targets' passes. What they call is looked up when the virtual machine is made: see
:data:`CALIBRATE`, and :data:`targets.vta.device.RUN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.vta.config import VtaConfig
from targets.vta.device import RUN
from targets.vta.layout import packed_shape
from targets.vta.partition import REGION, Partitioned
from targets.vta.qgraph import LIMIT, QGraph, QTensor

#: Called for each region with its number, its inputs and its outputs, float32 NCHW; it fills the outputs.
CALIBRATE = "fleet.vta.calibrate"
#: ``kOpaque`` of TVM's fusion: nothing is fused with a change of the layout, so that both keep plain loops.
_OPAQUE = 8


def calibration_module(partitioned: Partitioned) -> Any:
    """A module that calls :data:`CALIBRATE` for each region."""

    def call(_builder: Any, number: int, inputs: Sequence[Any], types: Sequence[Any]) -> Any:
        return relax.call_dps_packed(CALIBRATE, relax.Tuple([relax.prim_value(number), *inputs]), list(types))

    return _with_calls(partitioned.module, call)


def deployment_module(partitioned: Partitioned, qgraphs: Sequence[QGraph], config: VtaConfig) -> Any:
    """A module that for each region makes integers of its inputs, packs them, and calls :data:`~.device.RUN`.

    That function gets the region's number, its inputs and its outputs, int8 in the packed layout; it fills the outputs.
    The rounding is that of :func:`targets.vta.evaluate.to_integers`, to the bit.
    """

    def call(builder: Any, number: int, inputs: Sequence[Any], _types: Sequence[Any]) -> Any:
        graph = qgraphs[number]
        sources = [graph.tensors[name] for name in graph.inputs]
        targets = [graph.tensors[name] for name in graph.outputs]
        packed = [_packed(builder, value, tensor, config) for value, tensor in zip(inputs, sources, strict=True)]
        types = [relax.TensorType(packed_shape(tensor.shape, config), "int8") for tensor in targets]
        results = builder.emit(relax.call_dps_packed(RUN, relax.Tuple([relax.prim_value(number), *packed]), types))
        parts = [results] if len(types) == 1 else [relax.TupleGetItem(results, at) for at in range(len(types))]
        unpacked = [
            _emit(builder, partial(_unpack, tensor=tensor, config=config), builder.normalize(part), "unpack")
            for part, tensor in zip(parts, targets, strict=True)
        ]
        return unpacked[0] if len(unpacked) == 1 else relax.Tuple(unpacked)

    return _with_calls(partitioned.module, call)


def _packed(builder: Any, value: Any, tensor: QTensor, config: VtaConfig) -> Any:
    # Two steps: the first is computed with what comes before it, along rows as they lie; the second moves single bytes.
    integers = _emit(builder, partial(_quantise, exponent=tensor.exponent), value, "quantise")
    return _emit(builder, partial(_pack, config=config), integers, "pack", op_pattern=_OPAQUE)


def _emit(builder: Any, compute: Callable[[Any], Any], value: Any, name: str, **attributes: Any) -> Any:
    return builder.emit_te(compute, value, primfunc_name_hint=name, primfunc_attrs=attributes or None)


def _quantise(x: Any, exponent: int) -> Any:
    """float32 to int8 of the same shape."""
    limit, half = tirx.const(LIMIT, "float32"), tirx.const(0.5, "float32")
    scale = tirx.const(2.0**-exponent, "float32")

    def value(*index: Any) -> Any:
        scaled = tirx.max(tirx.min(x[index] * scale, limit), -limit) + half
        # floor(), for processors without an instruction for it: a conversion cuts off towards zero.
        cut = scaled.astype("int32")
        below = tirx.Select(cut.astype("float32") > scaled, tirx.const(1, "int32"), tirx.const(0, "int32"))
        return (cut - below).astype("int8")

    return te.compute(x.shape, value, name="quantise")


def _pack(x: Any, config: VtaConfig) -> Any:
    """int8 NCHW to the packed layout (see `targets.vta.layout`)."""
    pictures, channels, height, width = (int(size) for size in x.shape)
    shape = packed_shape((pictures, channels, height, width), config)

    def value(n: Any, c: Any, h: Any, w: Any, b: Any, k: Any) -> Any:
        picture, channel = n * config.batch + b, c * config.block + k
        inside = []
        if shape[0] * config.batch > pictures:
            inside.append(picture < pictures)
        if shape[1] * config.block > channels:
            inside.append(channel < channels)
        read = x[picture, channel, h, w]
        return tirx.if_then_else(tirx.all(*inside), read, tirx.const(0, "int8")) if inside else read

    return te.compute(shape, value, name="pack")


def _unpack(packed: Any, tensor: QTensor, config: VtaConfig) -> Any:
    """int8 in the packed layout to float32 NCHW."""
    scale = tirx.const(2.0**tensor.exponent, "float32")

    def value(n: Any, c: Any, h: Any, w: Any) -> Any:
        read = packed[n // config.batch, c // config.block, h, w, n % config.batch, c % config.block]
        return read.astype("float32") * scale

    return te.compute(tensor.shape, value, name="unpack")


Call = Callable[[Any, int, Sequence[Any], Sequence[Any]], Any]


def _with_calls(module: Any, call: Call) -> Any:
    """The module with what ``call(builder, number, inputs, output types)`` gives in place of each region."""
    placer = _Placer(module, call)
    main = placer.visit_expr(module["main"])
    placer.builder_.update_func(module.get_global_var("main"), main)
    return placer.builder_.get()


@mutator
class _Placer(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, call: Call) -> None:
        super().__init__(module)
        self._call = call

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.call_dps_packed" or call.args[0].global_symbol != REGION:
            return call
        number, *inputs = call.args[1].fields
        types = list(call.ty.fields) if isinstance(call.ty, tvm.ir.TupleType) else [call.ty]
        return self._call(self.builder_, int(number.value), inputs, types)
