"""Which intermediate results share a buffer.

TVM's planner goes by the order of the calls: it hands on what is free to the next result that fits, and a network
whose results first grow and then shrink pays for both. Here the largest results choose first, so a buffer is made in
the size that it needs: "greedy by size" of Pisarchyk and Lee 2020 (arXiv:2001.03288), for shared objects. (Offsets into
one arena would be tighter still, but TVM's calling convention takes no tensor that starts inside a buffer.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from targets.cpu.read import variables

#: A kernel's attribute: the number of the argument that its result may be written over.
OVER = "fleet.over"


@dataclass(frozen=True, slots=True)
class Life:
    """A result's size in bytes, and the first and last step at which it is needed.

    ``over`` is the number of another one that it may be written over, at the last step that needs that one.
    """

    size: int
    first: int
    last: int
    over: int = -1


def shared(lives: Sequence[Life]) -> list[int]:
    """For each result the number of its buffer. No two that are needed at the same step have the same."""
    buffers: list[list[int]] = []
    found = [0] * len(lives)

    def meet(a: int, b: int) -> bool:
        if lives[a].over == b:
            return lives[b].last > lives[a].first
        if lives[b].over == a:
            return lives[a].last > lives[b].first
        return lives[a].last >= lives[b].first and lives[a].first <= lives[b].last

    for index in sorted(range(len(lives)), key=lambda index: (-lives[index].size, lives[index].first)):
        free = [number for number, users in enumerate(buffers) if not any(meet(index, user) for user in users)]
        if not free:
            buffers.append([])
        # The smallest that is free: the first user of each was its largest.
        found[index] = min(free, key=lambda number: lives[buffers[number][0]].size, default=len(buffers) - 1)
        buffers[found[index]].append(index)
    return found


def share_buffers(module: Any) -> Any:
    """Let the tensors that a function allocates share buffers, those aside that it returns.

    ``module`` is past `CallTIRRewrite`: tensors are allocated, then filled. Functions with branches are left to TVM.
    """
    functions = {
        var: _shared(module, function) if isinstance(function, relax.Function) else function
        for var, function in module.functions_items()
    }
    return relax.transform.Normalize()(tvm.IRModule(functions, attrs=module.attrs))


def _shared(module: Any, function: Any) -> Any:
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    if any(isinstance(binding.value, relax.If | relax.Function | relax.SeqExpr) for binding in bindings):
        return function
    made, lives = _lives(module, bindings, function.body.body)
    numbers = dict(zip(made, shared(lives), strict=True))
    sizes: dict[int, int] = {}
    for var, life in zip(made, lives, strict=True):
        sizes[numbers[var]] = max(sizes.get(numbers[var], 0), life.size)
    builder = relax.BlockBuilder()
    storages: dict[int, Any] = {}
    new = []
    for binding in bindings:
        if binding.var in numbers:
            number = numbers[binding.var]
            shape, dtype = binding.value.args[:2]
            if number not in storages:
                storages[number] = relax.Var(f"buffer{number}", relax.AnyType())
                size = relax.ShapeExpr([sizes[number]])
                allocation = relax.op.memory.alloc_storage(size, 0, "global", "uint8")
                new.append(relax.VarBinding(storages[number], builder.normalize(allocation)))
            tensor = relax.op.memory.alloc_tensor(storages[number], 0, shape, dtype)
            binding = relax.VarBinding(binding.var, builder.normalize(tensor))
        new.append(binding)
    body = relax.SeqExpr([relax.BindingBlock(new)], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _lives(module: Any, bindings: Sequence[Any], result: Any) -> tuple[list[Any], list[Life]]:
    """Variables of allocated tensors that are not returned, and when each is needed.

    A tensor is needed from the call that fills it, the first that has it as an argument.
    """
    sizes: dict[Any, int] = {}
    lives: dict[Any, list[int]] = {}
    #: What a variable's value may be a view of.
    views: dict[Any, set[Any]] = {}
    over: dict[Any, Any] = {}
    for step, binding in enumerate(bindings):
        read: set[Any] = set()
        for var in variables(binding.value):
            read |= views.get(var, set())
        for var in read:
            lives.setdefault(var, [step, step])[1] = step
        over.update(_over(module, binding.value, views))
        if _operator(binding.value) == "relax.builtin.alloc_tensor" and _bytes(binding.var.ty):
            sizes[binding.var] = _bytes(binding.var.ty)
            views[binding.var] = {binding.var}
        else:
            views[binding.var] = read
    returned: set[Any] = set()
    for var in variables(result):
        returned |= views.get(var, set())
    kept = [var for var in sizes if var in lives and var not in returned]
    numbers = {var: number for number, var in enumerate(kept)}
    return kept, [Life(sizes[var], lives[var][0], lives[var][1], numbers.get(over.get(var), -1)) for var in kept]


def _over(module: Any, call: Any, views: dict[Any, set[Any]]) -> dict[Any, Any]:
    """The result of a kernel's call, with the argument that it may be written over: nothing else reads that there."""
    op = getattr(call, "op", None)
    if not isinstance(op, tvm.ir.GlobalVar) or OVER not in (module[op].attrs or {}):
        return {}
    arguments = [views.get(argument, set()) for argument in call.args]
    *others, results = arguments
    written = others.pop(int(module[op].attrs[OVER]))
    if len(results) != 1 or len(written) != 1 or any(written & other for other in others):
        return {}
    return {next(iter(results)): next(iter(written))}


def _operator(expr: Any) -> str:
    return str(getattr(getattr(expr, "op", None), "name", ""))


def _bytes(ty: Any) -> int:
    """Bytes of a tensor whose shape is known; 0 for others."""
    shape = getattr(ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr) or any(not isinstance(size, tirx.IntImm) for size in shape):
        return 0
    return math.prod(int(size) for size in shape) * int(tvm.DataType(str(ty.dtype)).itemsize)
