"""The operators of :mod:`targets.detection.operators` in Relax: calls of packed functions, which targets replace.

A call's arguments are the operator's tensors in the order of its schema, those of lists one after the other, and then
its numbers in that order, lists likewise; truth values are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

#: Operators, and the packed functions that stand for them.
NAMES = ("class_nms", "roi_align", "begin_rows", "end_rows", "paste_masks")
PREFIX = "fleet."


def converters() -> dict[str, Callable[[Any, Any], Any]]:
    """For TVM's torch importer: what makes a call of each operator's node."""
    return {f"{name}.default": _converter(name) for name in NAMES}


def name_of(call: Any) -> str:
    """The operator that a Relax expression is a call of; empty for anything else."""
    if getattr(getattr(call, "op", None), "name", "") != "relax.call_dps_packed":
        return ""
    function = str(getattr(call.args[0], "global_symbol", ""))
    return function.removeprefix(PREFIX) if function.startswith(PREFIX) else ""


def arguments(call: Any) -> tuple[list[Any], list[float]]:
    """Tensors and numbers of a call."""
    fields = list(call.args[1].fields)
    tensors = [each for each in fields if not hasattr(each, "value")]
    return tensors, [each.value for each in fields[len(tensors) :]]


def packed(name: str, tensors: list[Any], numbers: list[float], results: list[Any]) -> Any:
    """A call whose results have the types ``results``."""
    values = [relax.prim_value(each if isinstance(each, float) else int(each)) for each in numbers]
    return relax.call_dps_packed(PREFIX + name, relax.Tuple([*tensors, *values]), results)


def _converter(name: str) -> Callable[[Any, Any], Any]:
    def convert(node: Any, importer: Any) -> Any:
        tensors, numbers = [], []
        for each in node.args:
            for one in each if isinstance(each, list | tuple) else [each]:
                if hasattr(one, "op"):
                    tensors.append(importer.env[one])
                else:
                    numbers.append(one)
        results = node.meta["val"]
        several = isinstance(results, list | tuple)
        types = [_type(each) for each in (results if several else [results])]
        emit = importer.block_builder.emit
        whole = emit(packed(name, tensors, numbers, types))
        if len(types) == 1:
            return [whole] if several else whole
        return [emit(relax.TupleGetItem(whole, index)) for index in range(len(types))]

    return convert


def _type(result: Any) -> Any:
    """The Relax type of a tensor of torch whose sizes are all known."""
    return relax.TensorType([int(size) for size in result.shape], str(result.dtype).removeprefix("torch."))
