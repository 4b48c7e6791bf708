"""A default schedule for every loop nest of a network: fuse, tile into registers, vectors inside, threads outside.

It knows no operator but the packed convolution; everything else is scheduled by what its loops look like. A nest that a
rule does not fit gets the next one, and at last keeps its plain loops: TVM checks every step, and refuses those that
would change the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx

from targets.cpu import conv
from targets.cpu.machine import Processor

#: Below so many operations a nest runs on one thread: waking the others costs some microseconds.
PARALLEL_FROM = 32_768
#: Fused outer loops should give each of a few threads several shares.
SHARES = 16


def schedule(processor: Processor) -> Any:
    """A pass that schedules every function of loops in a module."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and "tirx.is_scheduled" not in (function.attrs or {}):
                module[variable] = _scheduled(function, processor)
        return module

    return run


class _Unfit(Exception):
    """The nest does not have the form that a rule is for."""


def _scheduled(function: Any, processor: Processor) -> Any:
    for rule in (_tiled, _plain):
        sch = s_tir.Schedule(function)
        try:
            rule(sch, processor)
        except (_Unfit, s_tir.ScheduleError):
            continue
        return sch.mod["main"].with_attr("tirx.is_scheduled", True)
    return function


# --- Rules --------------------------------------------------------------------------------------


def _tiled(sch: Any, processor: Processor) -> None:
    """One reduction and elementwise work around it: tiles of its result stay in registers until they are complete."""
    _inline(sch)
    blocks = _blocks(sch)
    reductions = [block for block in blocks if not _is_spatial(sch, block)]
    if len(reductions) != 1:
        raise _Unfit
    core, work = reductions[0], _work(sch, reductions[0])
    kinds = _kinds(sch, core)
    before = blocks[: _position(sch, blocks, core)]
    after = blocks[len(before) + 1 :]
    if len(after) > 1:
        raise _Unfit
    tiles = _conv_tiles(sch, core, after, processor) or _vector_tiles(sch, core, after, processor)
    for block in before:
        _elementwise(sch, block)
    # Without elementwise work behind it, the copy from registers to the result takes that place.
    registers = sch.cache_write(core, 0, "local")
    last = after[0] if after else registers

    pairs = [sch.split(loop, [None, size]) for loop, size in zip(sch.get_loops(last), tiles, strict=True)]
    outer, inner = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    sch.reorder(*outer, *inner)
    depth = len(outer)
    if after:
        sch.compute_at(registers, outer[-1], preserve_unit_loops=True)
        _unrolled(sch, sch.get_loops(registers)[depth:])
        sch.vectorize(inner[-1])
    else:
        _unrolled(sch, inner)
    sch.compute_at(core, outer[-1], preserve_unit_loops=True)
    loops = sch.get_loops(core)[depth:]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if not kind]
    sch.reorder(*reduction, *spatial)
    _unrolled(sch, spatial)
    _parallel(sch, outer, work)
    # Last: TVM no longer sees that the halves of a reduction belong together.
    start = sch.decompose_reduction(core, reduction[0])
    _unrolled(sch, sch.get_loops(start)[-len(spatial) :])


def _plain(sch: Any, _processor: Processor) -> None:
    """Anything: each nest by itself, its outer loops over threads."""
    _inline(sch)
    for block in _blocks(sch):
        if _is_spatial(sch, block):
            _elementwise(sch, block)
            continue
        kinds = _kinds(sch, block)
        leading = kinds.index(False)
        if leading:
            _parallel(sch, sch.get_loops(block)[:leading], _work(sch, block))


def _elementwise(sch: Any, block: Any) -> None:
    loops = sch.get_loops(block)
    work = _work(sch, block)
    if len(loops) > 1:
        _parallel(sch, loops[:-1], work)


# --- Tiles --------------------------------------------------------------------------------------


def _conv_tiles(sch: Any, core: Any, after: Sequence[Any], processor: Processor) -> list[int] | None:
    """Tile of a packed convolution's N, C, H, W; nothing for other reductions.

    A tile's accumulators and the pixels that the compiler keeps for the next column must fit the registers together.
    """
    if sch.get(core).name_hint != conv.NAME or not after:
        return None
    _, groups, rows, columns, lanes, *_ = _extents(sch, core)
    group, row, column = tile_sizes(groups, rows, columns, processor.registers)
    return [1, group * lanes, row, column]


def tile_sizes(groups: int, rows: int, columns: int, registers: int) -> tuple[int, int, int]:
    """How many groups of channels, rows and columns of a convolution's result to keep in registers; each divides."""
    budget = registers - 2

    def value(tile: tuple[int, int, int]) -> tuple[int, int, int]:
        group, row, column = tile
        # Twelve sums hide the latency of a multiply-add. Measured: one group is up to twice as fast as several.
        return min(group * row * column, 12), -group, column

    fitting = [
        (group, row, column)
        for group in _divisors(groups, 4)
        for row in _divisors(rows, 4)
        for column in _divisors(columns, budget)
        if group * row * column + row * column <= budget
    ]
    return max(fitting, key=value)


def _vector_tiles(sch: Any, core: Any, after: Sequence[Any], processor: Processor) -> list[int]:
    """Tile along the last dimension, if neighbours along it lie next to each other in all that is read."""
    block = sch.get(core)
    spatial = [var for var in block.iter_vars if var.iter_type == tirx.IterVar.DataPar]
    extents = _extents(sch, after[0] if after else core)[: len(spatial)]
    if not spatial or (after and extents != [int(var.dom.extent) for var in spatial]):
        raise _Unfit
    along = spatial[-1].var
    for region in block.reads:
        for index, part in enumerate(region.region):
            if index < len(region.region) - 1 and _uses(part.min, along):
                raise _Unfit
    most = 4 * processor.lanes
    for step in (processor.lanes, processor.lanes // 2, processor.lanes // 4):
        sizes = [size for size in _divisors(extents[-1], most) if step > 1 and size % step == 0]
        if sizes:
            return [1] * (len(spatial) - 1) + [max(sizes)]
    raise _Unfit


def _divisors(number: int, most: int) -> Iterator[int]:
    return (n for n in range(1, min(number, most) + 1) if number % n == 0)


# --- Steps --------------------------------------------------------------------------------------


def _inline(sch: Any) -> None:
    """Put elementwise work into the elementwise work that uses it. What a reduction reads stays: it is read often."""
    for block in _blocks(sch)[:-1]:
        consumers = sch.get_consumers(block)
        if _is_spatial(sch, block) and consumers and all(_is_spatial(sch, consumer) for consumer in consumers):
            sch.compute_inline(block)


def _parallel(sch: Any, loops: Sequence[Any], work: int) -> None:
    """Spread the outer loops over threads: as few of them as give enough shares, so that inner ones stay together."""
    if work < PARALLEL_FROM:
        return
    count = 1
    while count < len(loops) and math.prod(int(sch.get(loop).extent) for loop in loops[:count]) < SHARES:
        count += 1
    sch.parallel(sch.fuse(*loops[:count]) if count > 1 else loops[0])


def _unrolled(sch: Any, loops: Sequence[Any]) -> None:
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


# --- Looking ------------------------------------------------------------------------------------


def _blocks(sch: Any) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _position(sch: Any, blocks: Sequence[Any], wanted: Any) -> int:
    names = [sch.get(block).name_hint for block in blocks]
    return names.index(sch.get(wanted).name_hint)


def _kinds(sch: Any, block: Any) -> list[bool]:
    """For each loop of a nest that nothing was done to: whether it is spatial."""
    kinds = [var.iter_type == tirx.IterVar.DataPar for var in sch.get(block).iter_vars]
    if len(kinds) != len(sch.get_loops(block)):
        raise _Unfit
    return kinds


def _is_spatial(sch: Any, block: Any) -> bool:
    return all(var.iter_type == tirx.IterVar.DataPar for var in sch.get(block).iter_vars)


def _extents(sch: Any, block: Any) -> list[int]:
    return [int(var.dom.extent) for var in sch.get(block).iter_vars]


def _work(sch: Any, block: Any) -> int:
    return math.prod(_extents(sch, block))


def _uses(expression: Any, variable: Any) -> bool:
    return any(found.same_as(variable) for found in tirx.analysis.undefined_vars(expression))
