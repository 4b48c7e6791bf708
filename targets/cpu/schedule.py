"""A schedule for the loop nests that no kernel is for: tile into registers, vectors inside, threads outside.

It knows no operator: everything is scheduled by what its loops look like. A nest that a rule does not fit gets the next
one, and at last keeps its plain loops: TVM checks every step, and refuses those that would change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx

from targets.cpu.elementary import written_out
from targets.cpu.machine import Processor

Rule = Callable[[Any, Any, Processor], None]

#: Below so many operations a nest runs on one thread: waking the others costs some microseconds.
PARALLEL_FROM = 32_768
#: Fused outer loops should give each of a few threads several shares.
SHARES = 16
#: What a loop over a number of times that is only known when it runs counts for.
UNKNOWN = 1024


#: Operations from which on it is worth saying that they are plain loops.
WORTH_SAYING = 100_000


def schedule(processor: Processor, unscheduled: list[str] | None = None) -> Any:
    """A pass that schedules every function of loops in a module.

    ``unscheduled`` is given the names of operators of some weight that no rule is for.
    """
    found = unscheduled if unscheduled is not None else []

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and "tirx.is_scheduled" not in (function.attrs or {}):
                module[variable], plain = _scheduled(written_out(function), processor)
                name = _operator(str(variable.name_hint))
                if plain >= WORTH_SAYING and name not in found:
                    found.append(name)
        return module

    return run


def _operator(name: str) -> str:
    """The operator that a function was made for: TVM numbers functions that would have the same name."""
    name = name.removeprefix("fused_")
    operators = {operator.rpartition(".")[2] for operator in tvm.ir.Op.list_op_names()}
    return name if name in operators else name.rstrip("0123456789")


class _Unfit(Exception):
    """The nest does not have the form that a rule is for."""


def _scheduled(function: Any, processor: Processor) -> tuple[Any, int]:
    """The scheduled function, and how many operations of it are still plain loops."""
    sch = s_tir.Schedule(function)
    if _attempt(sch, _blocks) is None:
        # Loops that were written as such have no blocks, and no schedule.
        return function, _results(function)
    sch = _attempt(sch, _inline) or sch
    tiled = _attempt(sch, lambda trial: _tiled(trial, processor))
    sch, plain = (tiled, 0) if tiled is not None else _plain(sch, processor)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True), plain


def _results(function: Any) -> int:
    """Numbers in the largest tensor of a function."""
    shapes = (getattr(param, "shape", ()) for param in function.params)
    return max((math.prod(map(_size, shape)) for shape in shapes), default=0)


def _attempt(sch: Any, rule: Callable[[Any], object]) -> Any:
    """A schedule on which ``rule`` was applied; nothing where it does not fit."""
    trial = sch.copy()
    try:
        rule(trial)
    except (_Unfit, s_tir.ScheduleError):
        return None
    return trial


# --- Rules --------------------------------------------------------------------------------------


def _tiled(sch: Any, processor: Processor) -> None:
    """One reduction and elementwise work around it: tiles of its result stay in registers until they are complete."""
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
    tiles = _vector_tiles(sch, core, after, processor)
    for block in before:
        _elementwise(sch, block, processor)
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


def _plain(sch: Any, processor: Processor) -> tuple[Any, int]:
    """Anything: each nest by itself, by the first of the rules that fits it; and the operations that none fits."""
    plain = 0
    for name in [sch.get(block).name_hint for block in _blocks(sch)]:
        for rule in (_elementwise, _sums_of_rows, _sums_across, _outer):

            def apply(trial: Any, rule: Rule = rule, name: str = name) -> None:
                rule(trial, trial.get_sblock(name), processor)

            found = _attempt(sch, apply)
            if found is not None:
                sch = found
                break
        if found is None or rule is _outer:
            plain += _work(sch, sch.get_sblock(name))
    return sch, plain


def _elementwise(sch: Any, block: Any, _processor: Processor) -> None:
    """The last loop stays whole: LLVM makes vectors of it."""
    if not _is_spatial(sch, block):
        raise _Unfit
    loops = sch.get_loops(block)
    if len(loops) > 1:
        _parallel(sch, loops[:-1], _work(sch, block))


def _sums_of_rows(sch: Any, block: Any, processor: Processor) -> None:
    """Sum every so many numbers of a row by themselves, in vectors, then these sums: LLVM would keep to one order."""
    kinds, work = _kinds(sch, block), _work(sch, block)
    rows = kinds.count(True)
    if not rows or kinds != [*[True] * rows, False]:
        raise _Unfit
    if not _lie_in_rows(sch.get(block), sch.get(block).iter_vars[-1].var):
        raise _Unfit
    # Several vectors: a sum waits for the one before it.
    lanes = max((n for n in _divisors(_extents(sch, block)[-1], 4 * processor.lanes) if n % 4 == 0), default=0)
    if not lanes:
        raise _Unfit
    _, inner = sch.split(sch.get_loops(block)[-1], [None, lanes])
    partial = sch.rfactor(inner, factor_axis=rows)
    sch.compute_at(partial, sch.get_loops(block)[rows - 1], preserve_unit_loops=True)
    loops = sch.get_loops(partial)
    beside, steps = loops[-2:]
    sch.reorder(steps, beside)
    sch.vectorize(beside)
    _parallel(sch, sch.get_loops(block)[:rows], work)
    # Last: TVM no longer sees that the halves of a reduction belong together.
    start = sch.decompose_reduction(partial, steps)
    sch.vectorize(sch.get_loops(start)[-1])


def _sums_across(sch: Any, block: Any, _processor: Processor) -> None:
    """Neighbours of the result are summed together: the last loop is over them, and LLVM makes vectors of it."""
    kinds, work = _kinds(sch, block), _work(sch, block)
    neighbours = [var.var for var in sch.get(block).iter_vars if var.iter_type == tirx.IterVar.DataPar]
    if not neighbours or not _lie_in_rows(sch.get(block), neighbours[-1]):
        raise _Unfit
    pairs = list(zip(sch.get_loops(block), kinds, strict=True))
    spatial, reduction = ([loop for loop, kind in pairs if kind is wanted] for wanted in (True, False))
    sch.reorder(*spatial[:-1], *reduction, spatial[-1])
    if len(spatial) > 1:
        _parallel(sch, spatial[:-1], work)
    sch.decompose_reduction(block, reduction[0])


def _outer(sch: Any, block: Any, _processor: Processor) -> None:
    """The loops before the first that is summed over go to threads: nothing else is known for such a nest."""
    leading = _kinds(sch, block).index(False)
    if leading:
        _parallel(sch, sch.get_loops(block)[:leading], _work(sch, block))


# --- Tiles --------------------------------------------------------------------------------------


def _vector_tiles(sch: Any, core: Any, after: Sequence[Any], processor: Processor) -> list[int]:
    """Tile along the last dimension, if neighbours along it lie next to each other in all that is read."""
    block = sch.get(core)
    spatial = [var for var in block.iter_vars if var.iter_type == tirx.IterVar.DataPar]
    extents = _extents(sch, after[0] if after else core)[: len(spatial)]
    if not spatial or (after and extents != [_size(var.dom.extent) for var in spatial]):
        raise _Unfit
    if not _lie_in_rows(block, spatial[-1].var):
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
    while count < len(loops) and math.prod(_size(sch.get(loop).extent) for loop in loops[:count]) < SHARES:
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


def _lie_in_rows(block: Any, along: Any) -> bool:
    """Whether neighbours along a variable lie next to each other in all that a block reads."""
    return not any(_uses(index.min, along) for region in block.reads for index in region.region[:-1])


def _size(extent: Any) -> int:
    return int(extent) if isinstance(extent, tirx.IntImm) else UNKNOWN


def _extents(sch: Any, block: Any) -> list[int]:
    return [_size(var.dom.extent) for var in sch.get(block).iter_vars]


def _work(sch: Any, block: Any) -> int:
    return math.prod(_extents(sch, block))


def _uses(expression: Any, variable: Any) -> bool:
    return any(found.same_as(variable) for found in tirx.analysis.undefined_vars(expression))
