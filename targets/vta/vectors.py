"""The two inner operations of the simulator as LLVM vectors: a block product over many pixels, and an ALU operation.

Written as generic vector IR, so that every processor LLVM knows runs them; on x86 the pattern of the product is one
that LLVM turns into ``vpmaddwd`` or ``vpdpwssd``. A plain loop would not do: numba knows nothing of whether arrays
overlap, so weights would be loaded again for every pixel. ``lanes`` is a tuple of as many zeros as a block has
channels: the length is part of a tuple's type, so each block size gets code of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from targets.vta.isa import AluOp

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """A function that the simulator's loop is made of. It cannot raise."""
    result: _Function = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return result


_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _index(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type, align: int) -> ir.Value:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)


def _store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def _shuffle(builder: ir.IRBuilder, value: ir.Value, places: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(_I32, len(places)), places)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    vector = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    return _shuffle(builder, builder.insert_element(vector, scalar, ir.Constant(_I32, 0)), [0] * lanes)


def _add(builder: ir.IRBuilder, value: ir.Value, constant: int) -> ir.Value:
    return builder.add(value, _index(constant))


def _place(
    builder: ir.IRBuilder, first: ir.Value, row: ir.Value, by_row: ir.Value, column: ir.Value, by_column: ir.Value
) -> ir.Value:
    """``first + row·by_row + column·by_column``: an element."""
    return builder.add(first, builder.add(builder.mul(row, by_row), builder.mul(column, by_column)))


def _lane(builder: ir.IRBuilder, element: ir.Value, batch: ir.Value, picture: ir.Value, block: int) -> ir.Value:
    """Where an element's values for a picture of the batch start in a memory of blocks."""
    return builder.mul(builder.add(builder.mul(element, batch), picture), _index(block))


def _data(context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> ir.Value:
    """Pointer to a C-contiguous array's first element."""
    return context.make_array(kind)(context, builder, value).data


#: Pixels that share one load of the weights. With four, LLVM also finds it best to use ``vpdpwssd`` where there is one.
_GROUP = 4


@intrinsic  # type: ignore[untyped-decorator]
def block_products(  # type: ignore[no-untyped-def]
    typingctx, acc, out, inp, wgt, d, s, w, rows, columns, d_row, d_column, s_row, s_column, batch, lanes
) -> tuple[Any, Callable[..., Any]]:
    """``ACC[d'] += INP[s'] · WGT[w]ᵀ; OUT[d'] = ACC[d']`` with ``d' = d + row·d_row + column·d_column``, s' likewise.

    acc int32, inp int16 and out int8: elements × batch × block. wgt int16: elements × block², with its values in pairs
    of input channels, [pair][output channel][2].
    """
    block: int = lanes.count
    signature = types.void(acc, out, inp, wgt, *([types.int64] * 10), lanes)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        acc, out, inp, wgt = (_data(context, builder, signature.args[at], args[at]) for at in range(4))
        d, s, w, rows, columns, d_row, d_column, s_row, s_column, batch = args[4:14]
        sums, pairs = ir.VectorType(_I32, block), ir.VectorType(_I16, 2 * block)
        wide = ir.VectorType(_I32, 2 * block)
        weights = builder.gep(wgt, [builder.mul(w, _index(block * block))])

        def add(row: ir.Value, column: ir.Value, pixels: int) -> None:
            """At ``pixels`` pixels of a row from ``column`` on."""
            to = [_place(builder, d, row, d_row, _add(builder, column, k), d_column) for k in range(pixels)]
            of = [_place(builder, s, row, s_row, _add(builder, column, k), s_column) for k in range(pixels)]
            with cgutils.for_range(builder, batch) as picture:
                targets = [_lane(builder, element, batch, picture.index, block) for element in to]
                sources = [_lane(builder, element, batch, picture.index, block) for element in of]
                totals = [_load(builder, builder.gep(acc, [target]), sums, 4) for target in targets]
                for pair in range(block // 2):
                    kernel = _load(builder, builder.gep(weights, [_index(2 * block * pair)]), pairs, 2)
                    for k in range(pixels):
                        channels = builder.gep(inp, [_add(builder, sources[k], 2 * pair)])
                        values = builder.bitcast(_splat(builder, _load(builder, channels, _I32, 2), block), pairs)
                        products = builder.mul(builder.sext(values, wide), builder.sext(kernel, wide))
                        even = _shuffle(builder, products, list(range(0, 2 * block, 2)))
                        odd = _shuffle(builder, products, list(range(1, 2 * block, 2)))
                        totals[k] = builder.add(totals[k], builder.add(even, odd))
                for target, total in zip(targets, totals, strict=True):
                    _store(builder, total, builder.gep(acc, [target]), 4)
                    low = builder.trunc(total, ir.VectorType(_I8, block))
                    _store(builder, low, builder.gep(out, [target]), 1)

        # Pixels of a group are loaded before any is stored, so they must not be one.
        apart = builder.icmp_signed("!=", d_column, _index(0))
        groups = builder.select(apart, builder.udiv(columns, _index(_GROUP)), _index(0))
        rest = builder.mul(groups, _index(_GROUP))
        with cgutils.for_range(builder, rows) as row:
            with cgutils.for_range(builder, groups) as group:
                add(row.index, builder.mul(group.index, _index(_GROUP)), _GROUP)
            with cgutils.for_range(builder, builder.sub(columns, rest)) as column:
                add(row.index, builder.add(rest, column.index), 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def alu_operation(  # type: ignore[no-untyped-def]
    typingctx, acc, out, d, s, rows, columns, d_row, d_column, operation, use_imm, imm, spare_bits, batch, lanes
) -> tuple[Any, Callable[..., Any]]:
    """``ACC[d'] = operation(ACC[d'], imm or ACC[s]); OUT[d'] = ACC[d']``, d' as above.

    A shift takes the low ``32 - spare_bits`` bits of its amount, signed.
    """
    block: int = lanes.count
    signature = types.void(acc, out, *([types.int64] * 11), lanes)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        acc, out = (_data(context, builder, signature.args[at], args[at]) for at in range(2))
        d, s, rows, columns, d_row, d_column, operation, use_imm, imm, spare_bits, batch = args[2:13]
        vector = ir.VectorType(_I32, block)
        zero = ir.Constant(vector, [0] * block)
        immediate = _splat(builder, builder.trunc(imm, _I32), block)
        spare = _splat(builder, builder.trunc(spare_bits, _I32), block)
        is_imm = builder.icmp_signed("!=", use_imm, _index(0))
        with (
            cgutils.for_range(builder, rows) as row,
            cgutils.for_range(builder, columns) as column,
            cgutils.for_range(builder, batch) as picture,
        ):
            to = _place(builder, d, row.index, d_row, column.index, d_column)
            target = _lane(builder, to, batch, picture.index, block)
            source = _lane(builder, s, batch, picture.index, block)
            x = _load(builder, builder.gep(acc, [target]), vector, 4)
            y = builder.select(is_imm, immediate, _load(builder, builder.gep(acc, [source]), vector, 4))
            amount = builder.ashr(builder.shl(y, spare), spare)
            left = builder.icmp_signed("<", amount, zero)
            # both shifts are computed, each with an amount that is valid for it
            shifted = builder.select(
                left,
                builder.shl(x, builder.select(left, builder.neg(amount), zero)),
                builder.ashr(x, builder.select(left, zero, amount)),
            )
            less = builder.icmp_signed("<", x, y)
            result = builder.mul(x, y)
            for code, value in (
                (AluOp.SHR, shifted),
                (AluOp.ADD, builder.add(x, y)),
                (AluOp.MAX, builder.select(less, y, x)),
                (AluOp.MIN, builder.select(less, x, y)),
            ):
                result = builder.select(builder.icmp_signed("==", operation, _index(code)), value, result)
            _store(builder, result, builder.gep(acc, [target]), 4)
            low = builder.trunc(result, ir.VectorType(_I8, block))
            _store(builder, low, builder.gep(out, [target]), 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def weights_in_pairs(typingctx, wgt, values, at, source, lanes) -> tuple[Any, Callable[..., Any]]:  # type: ignore[no-untyped-def]
    """WGT's element ``at`` from int8 [out][in] in ``values`` at ``source``, as :func:`block_products` takes it."""
    block: int = lanes.count
    signature = types.void(wgt, values, types.int64, types.int64, lanes)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        wgt, values = (_data(context, builder, signature.args[at], args[at]) for at in range(2))
        at, source = args[2:4]
        kernel = _load(builder, builder.gep(values, [source]), ir.VectorType(_I8, block * block), 1)
        first = builder.mul(at, _index(block * block))
        for pair in range(block // 2):
            places = [out * block + 2 * pair + k for out in range(block) for k in range(2)]
            wide = builder.sext(_shuffle(builder, kernel, places), ir.VectorType(_I16, 2 * block))
            _store(builder, wide, builder.gep(wgt, [_add(builder, first, 2 * block * pair)]), 2)
        return context.get_dummy_value()

    return signature, codegen
