"""What a torch program must at least compute and keep: floating-point operations, weights, live activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """``flop`` counts a multiply-accumulate as two. Bytes are of tensors, without what an allocator adds."""

    flop: int
    weight_bytes: int
    activation_bytes: int


def count(program: Any, inputs: Sequence[Any], itemsize: int = 0) -> Counts:
    """Counts of a ``torch.export.ExportedProgram`` with fixed shapes. ``itemsize`` is the bytes of an element in the
    compiled network where that differs from the program's (1 for int8)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(*inputs)
    weights = [tensor for tensor in program.state_dict.values() if tensor.is_floating_point()]
    return Counts(
        flop=counter.get_total_flops(),
        weight_bytes=sum(tensor.numel() * (itemsize or tensor.element_size()) for tensor in weights),
        activation_bytes=live_bytes(program.run_decompositions(), itemsize),
    )


def live_bytes(program: Any, itemsize: int = 0) -> int:
    """The most bytes of activations that are alive at once while a decomposed program runs in its order.

    A tensor lives from the node that makes it to the last one that reads it; at a node its inputs and its outputs are
    alive. Views share their tensor's memory. A pointwise operator (batch norm is one here) works in place where a
    tensor of its result's size is read for the last time, which is what fusing it into its producer comes to.
    """
    signature = program.graph_signature
    given = set(signature.user_inputs)
    stored = {spec.arg.name for spec in signature.input_specs if getattr(spec.arg, "name", None) not in given}
    nodes = list(program.graph.nodes)
    number = {node: index for index, node in enumerate(nodes)}
    owner: dict[Any, Any] = {}
    for node in nodes:
        viewed = _viewed(node)
        owner[node] = owner[viewed] if viewed is not None else node
    last: dict[Any, int] = {}
    for node in nodes:
        reads = max([number[user] for user in node.users], default=number[node])
        last[owner[node]] = max(last.get(owner[node], 0), reads)
    alive: dict[Any, int] = {}
    peak = 0
    for index, node in enumerate(nodes):
        size = 0 if node.name in stored or node.op == "output" else _bytes(node, itemsize)
        if owner[node] is node and size:
            reused = next((tensor for tensor in _reusable(node, owner, last, index) if alive.get(tensor) == size), None)
            if reused is not None:
                del alive[reused]
            alive[node] = size
        peak = max(peak, sum(alive.values()))
        alive = {tensor: held for tensor, held in alive.items() if last[tensor] > index}
    return peak


def _reusable(node: Any, owner: dict[Any, Any], last: dict[Any, int], index: int) -> Iterator[Any]:
    """Tensors that a pointwise node may overwrite: not the caller's."""
    if _pointwise(node):
        for operand in node.all_input_nodes:
            tensor = owner[operand]
            if tensor.op != "placeholder" and last[tensor] == index:
                yield tensor


def _pointwise(node: Any) -> bool:
    import torch

    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    batch_norm = torch.ops.aten._native_batch_norm_legit_no_training.default
    return torch.Tag.pointwise in node.target.tags or node.target is batch_norm


def _viewed(node: Any) -> Any:
    """The node whose memory this one's result is; None when it has its own."""
    import operator

    import torch

    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        return node.args[0]
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and not argument.alias_info.is_write:
            return value
    return None


def _bytes(node: Any, itemsize: int) -> int:
    """Of a node's results; of several, those that are read (pooling makes indices that nobody asked for)."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        read = {user.args[1] for user in node.users}
        return sum(_tensor_bytes(part, itemsize) for position, part in enumerate(value) if position in read)
    return _tensor_bytes(value, itemsize)


def _tensor_bytes(value: Any, itemsize: int) -> int:
    if not hasattr(value, "numel"):
        return 0
    return int(value.numel()) * (itemsize if itemsize and value.is_floating_point() else value.element_size())
