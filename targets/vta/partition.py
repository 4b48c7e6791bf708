"""Which parts of a network the accelerator computes: the largest regions of it that can each run in one go.

A region is convex: nothing that the CPU computes lies between two of its nodes. In the module that is left, each region
is one call of :data:`REGION`, which takes and gives float32 tensors of four dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.base import FleetError
from targets.vta.config import VtaConfig
from targets.vta.graph import Conv, Graph, Shape
from targets.vta.layout import packed_bytes
from targets.vta.lower import pool
from targets.vta.lower.blocks import block_mask
from targets.vta.lower.conv import geometry
from targets.vta.lower.tiling import why_not
from targets.vta.program import MAX_SEGMENT
from targets.vta.qgraph import LIMIT, QConv, QMaxPool
from targets.vta.regions import regions
from targets.vta.relax_nodes import read, straight
from targets.vta.units import Convolution, Function, Unit, shape_of, variables

#: The function that stands for a region: its number, its inputs, its outputs.
REGION = "fleet.vta.region"
#: So many products of two quantised values, and the bias and rounding besides, stay below 2^30 (see `qgraph`).
MAX_PRODUCTS = (1 << 29) // LIMIT**2


@dataclass(frozen=True, slots=True)
class PartitionOptions:
    """What may go to the accelerator.

    ``first_conv``: convolutions with no other layer between them and the network's inputs; ``dense``: dense layers.
    ``pools``: two operators, such as ``("max_pool2d", "global_avg_pool2d")``: only what lies between the first of the
    one and the next of the other, as in TVM's ``pack_dict``.
    """

    first_conv: bool = False
    dense: bool = False
    pools: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Partitioned:
    """``module``: what the CPU computes, with a call of :data:`REGION` for each of ``regions``.

    ``notes`` say of every operator that stays on the CPU why it does.
    """

    module: Any
    regions: tuple[Graph, ...]
    notes: tuple[str, ...]


def partition(module: Any, config: VtaConfig, options: PartitionOptions | None = None) -> Partitioned:
    """Partition a module that :func:`targets.cpu.passes.simplify` has simplified.

    Raises:
        FleetError: ``bad-option`` for pools that the network does not have.
    """
    options = options or PartitionOptions()
    main = module["main"]
    if not straight(main):
        return Partitioned(module, (), ("everything: the network has branches or loops",))
    function = read(main)
    _refuse(function.units, config, options)
    groups = _groups(function)
    names = {param: f"input-{number}" for number, param in enumerate(function.params)}
    names |= {unit.output: unit.name for unit in function.units}
    placed = [group for group in groups if not group[0].reason]
    found = [_region(f"region-{number}", group, function, names) for number, group in enumerate(placed)]
    rewritten = _rewritten(module, function, groups, found)
    return Partitioned(rewritten, tuple(region.graph for region in found), _notes(groups))


# --- What may go --------------------------------------------------------------------------------


def _refuse(units: Sequence[Unit], config: VtaConfig, options: PartitionOptions) -> None:
    """Give a reason to every unit that the accelerator cannot compute, or is not to."""
    between = _between(units, options.pools) if options.pools else range(len(units))
    for position, unit in enumerate(units):
        if unit.reason:
            continue
        if position not in between:
            unit.reason = "it is outside of the pools that were named"
        elif unit.operator == "dense" and not options.dense:
            unit.reason = "dense layers stay in float (option dense)"
        elif unit.operator == "conv2d" and unit.first and not options.first_conv:
            unit.reason = "the first convolution stays in float (option first_conv)"
        else:
            unit.reason = _unplaceable(unit, config)


def _between(units: Sequence[Unit], pools: tuple[str, str]) -> range:
    """Positions after the first ``pools[0]`` and before the next ``pools[1]``."""
    names = [name.removeprefix("relax.").removeprefix("nn.") for name in pools]

    def find(name: str, start: int) -> int:
        for position in range(start, len(units)):
            unit = units[position]
            if name in (unit.operator, *unit.operators) or (name == "global_avg_pool2d" and unit.global_average):
                return position
        there = sorted({operator for unit in units for operator in unit.operators})
        where = f" after the first {names[0]}" if start else ""
        raise FleetError(
            f"option 'pools': the network has no {name}{where}",
            code="bad-option",
            hint=f"it has: {', '.join(there)}",
        )

    start = find(names[0], 0)
    return range(start + 1, find(names[1], start + 1))


def _unplaceable(unit: Unit, config: VtaConfig) -> str:
    """Why a unit does not fit this accelerator; empty when it does."""
    work = unit.work
    assert work is not None
    source, target = shape_of(work.input), shape_of(unit.output)
    assert source is not None and target is not None
    if max(packed_bytes(source, config), packed_bytes(target, config)) > MAX_SEGMENT:
        return f"a tensor of more than {MAX_SEGMENT} bytes"
    node = unit.node(lambda _: "")
    if not isinstance(node, Conv):
        # Only the structure is read, which is the same before and after quantisation.
        window = pool.window(cast(QMaxPool, node), source, target, config)
        return window if isinstance(window, str) else ""
    if not all(np.isfinite(values).all() for values in (node.weight, node.bias)):
        return "its weights are not finite"
    outputs, _, height, width = node.weight.shape
    products = int(np.prod(node.weight.shape[1:]))
    if products > MAX_PRODUCTS:
        return f"sums of {products} products could exceed the accumulator"
    blocks = sum(block_mask(outputs, source[1], node.groups, config.block)) * height * width
    if blocks * config.wgt_bytes > MAX_SEGMENT:
        return f"weights of more than {MAX_SEGMENT} bytes"
    return why_not(geometry(cast(QConv, node), source, target, config), config)


# --- Regions ------------------------------------------------------------------------------------


def _groups(function: Function) -> list[list[Unit]]:
    """Every unit, those of a region together, in an order in which they can be computed.

    Gives a reason to units that are allowed on the accelerator and that no region takes.
    """
    units = function.units
    made = {unit.output: position for position, unit in enumerate(units)}
    needs = [sorted({made[var] for var in _reads(function, unit) if var in made}) for unit in units]
    while True:
        found = regions(needs, [not unit.reason for unit in units])
        groups = [[units[position] for position in group] for group in found]
        misplaced = [each for group in groups if not group[0].reason for each in _misplaced(group, function)]
        if not misplaced:
            return groups
        for unit, reason in misplaced:
            unit.reason = reason


def _misplaced(group: Sequence[Unit], function: Function) -> list[tuple[Unit, str]]:
    """Units of a region that are better left to the CPU, and why."""
    if all(unit.kind != "layer" for unit in group):
        return [(unit, "no layer next to it is on the accelerator") for unit in group]
    inside, outside = {unit.output for unit in group}, _read_outside(group, function)
    read = Counter(var for unit in group for var in _inputs(unit))
    found = []
    for unit in group:
        if unit.kind == "light" and not any(var in inside or read[var] > 1 for var in _inputs(unit)):
            # Floats cost nothing here: every value has to pass through the CPU on its way in.
            found.append((unit, "what comes before it is on the CPU"))
        elif unit.kind == "pool":
            if not inside.issuperset(_inputs(unit)):
                found.append((unit, "what comes before it is on the CPU"))
            elif unit.output in outside:
                found.append((unit, "what comes after it is on the CPU"))
    return found


def _inputs(unit: Unit) -> list[Any]:
    """Variables that the accelerator reads for a unit."""
    assert unit.work is not None
    residual = unit.work.residual if isinstance(unit.work, Convolution) else None
    return [unit.work.input] if residual is None else [unit.work.input, residual]


def _reads(function: Function, unit: Unit) -> list[Any]:
    """Variables that the bindings of a unit read, its own among them."""
    return [var for index in unit.bindings for var in variables(function.bindings[index].value)]


def _read_outside(group: Iterable[Unit], function: Function) -> set[Any]:
    """Variables that are read by what is not in a region: by other bindings, or as the network's result."""
    inside = {index for unit in group for index in unit.bindings}
    found = set(variables(function.result))
    for index, binding in enumerate(function.bindings):
        if index not in inside:
            found.update(variables(binding.value))
    return found


@dataclass(frozen=True, slots=True)
class _Region:
    """A region with the variables of the network that go in and come out."""

    graph: Graph
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def _region(name: str, group: Sequence[Unit], function: Function, names: Mapping[Any, str]) -> _Region:
    made = {unit.output for unit in group}
    read = dict.fromkeys(var for unit in group for var in _inputs(unit))
    outside = _read_outside(group, function)
    inputs = tuple(var for var in read if var not in made)
    outputs = tuple(unit.output for unit in group if unit.output in outside)
    graph = Graph(
        name,
        {names[var]: _shape(var) for var in (*inputs, *(unit.output for unit in group))},
        tuple(unit.node(names.__getitem__) for unit in group),
        tuple(names[var] for var in inputs),
        tuple(names[var] for var in outputs),
    )
    return _Region(graph, inputs, outputs)


def _shape(var: Any) -> Shape:
    shape = shape_of(var)
    assert shape is not None
    return shape


def _notes(groups: Iterable[Sequence[Unit]]) -> tuple[str, ...]:
    return tuple(
        f"{unit.name} ({', '.join(unit.operators)}) stays on the CPU: {unit.reason}"
        for group in groups
        for unit in group
        if unit.reason
    )


# --- What is left -------------------------------------------------------------------------------


def _rewritten(module: Any, function: Function, groups: Iterable[Sequence[Unit]], found: Sequence[_Region]) -> Any:
    """The module with one call for each region."""
    main = module["main"]
    builder = relax.BlockBuilder()
    renamed = _Renamed()
    waiting = iter(enumerate(found))
    with builder.function("main", list(function.params), attrs=dict(main.attrs or {})):
        with builder.dataflow():
            for group in groups:
                if group[0].reason:
                    for unit in group:
                        for index in unit.bindings:
                            binding = function.bindings[index]
                            renamed.vars[binding.var] = builder.emit(renamed.visit_expr(binding.value))
                else:
                    number, region = next(waiting)
                    _emit_region(builder, renamed, number, region)
            result = builder.emit_output(renamed.visit_expr(function.result))
        builder.emit_func_output(result)
    rewritten = builder.get()
    for variable, other in module.functions_items():
        if variable.name_hint != "main":
            rewritten[variable] = other
    return rewritten


def _emit_region(builder: Any, renamed: _Renamed, number: int, region: _Region) -> None:
    inputs = [_reshaped(builder, renamed.visit_expr(var), _shape(var)) for var in region.inputs]
    types = [relax.TensorType(_shape(var), "float32") for var in region.outputs]
    call = relax.call_dps_packed(REGION, relax.Tuple([relax.prim_value(number), *inputs]), types)
    results = builder.emit(call)
    for position, var in enumerate(region.outputs):
        result = results if len(types) == 1 else builder.emit(relax.TupleGetItem(results, position))
        renamed.vars[var] = _reshaped(builder, result, [int(size) for size in var.ty.shape])


def _reshaped(builder: Any, value: Any, shape: Sequence[int]) -> Any:
    if [int(size) for size in value.ty.shape] == list(shape):
        return value
    return builder.emit(relax.op.reshape(value, tuple(shape)))


@mutator
class _Renamed(PyExprMutator):  # type: ignore[misc]
    """Expressions with the new variables for the old ones."""

    def __init__(self) -> None:
        super().__init__()
        self.vars: dict[Any, Any] = {}

    def visit_var_(self, var: Any) -> Any:
        return self.vars.get(var, var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.vars.get(var, var)
