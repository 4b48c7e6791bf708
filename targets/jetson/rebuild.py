"""The board's end of a program: from its graph as data and its weights to a module of the torch that is here.

Runs in the board's own Python, 3.8 or newer, with nothing but torch. Operators are looked up among torch's by name, and
only those that compute on tensors and numbers (`OPERATOR`) may be named; nothing is evaluated or unpickled.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
#: As `targets.pt2_model` allows them. Checked on both ends: the host's check is not this machine's.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision|fleet)\.(\w+)\.(\w+)"
    r"|torch\.(sym_(?:int|float|not|max|min|sum|sqrt|ite))"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt|prod)"
)
#: torch._export.serde.schema's numbers.
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"}
_DTYPES.update({12: "bool", 13: "bfloat16"})
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7
_KEYWORD = 2


class ProgramError(Exception):
    """A program that cannot be built here, in words."""


def read(path: str) -> dict[str, Any]:
    """The program in a file. Raises :class:`ProgramError`."""
    program = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(program, dict) or program.get("format") != FORMAT:
        raise ProgramError("the program is of another format than this helper reads: deploy it again")
    return program


def uses(program: dict[str, Any], prefix: str) -> bool:
    """Whether it has an operator whose name begins so."""
    return any(node["target"].startswith(prefix) for node in program["nodes"])


def build(program: dict[str, Any], weights: list[Any], device: Any, widen: bool = False) -> torch.fx.GraphModule:
    """The module, its weights being buffers ``weight_0`` …; what it makes anew is made on ``device``.

    With ``widen`` the operators of detectors get float32 whatever comes before them: positions in a picture are more
    than half precision can tell apart. Raises :class:`ProgramError`.
    """
    root = torch.nn.Module()
    graph = torch.fx.Graph()
    values: dict[str, Any] = {name: graph.placeholder(name) for name in program["inputs"]}
    for index, (spec, tensor) in enumerate(zip(program["weights"], weights)):
        root.register_buffer(f"weight_{index}", tensor)
        values[spec["name"]] = graph.get_attr(f"weight_{index}")
    for node in program["nodes"]:
        positional, named = [], {}
        for given in node["inputs"]:
            value = _argument(given["arg"], values, device)
            if given["kind"] == _KEYWORD:
                named[given["name"]] = value
            else:
                positional.append(value)
        if widen and node["target"].startswith("torch.ops.fleet."):
            positional = [_widened(graph, value) for value in positional]
        made = graph.call_function(_function(node["target"]), tuple(positional), named)
        _name_results(graph, made, node["outputs"], values)
    results = tuple(values[name] for name in program["outputs"])
    graph.output(results if len(results) > 1 else results[0])
    graph.eliminate_dead_code()
    graph.lint()
    return torch.fx.GraphModule(root, graph)


def _widened(graph: torch.fx.Graph, value: Any) -> Any:
    if isinstance(value, list):
        return [_widened(graph, each) for each in value]
    return graph.call_function(in_float32, (value,)) if isinstance(value, torch.fx.Node) else value


def in_float32(value: Any) -> Any:
    """Floats of any type as float32; everything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _name_results(graph: torch.fx.Graph, made: Any, outputs: list[dict[str, Any]], values: dict[str, Any]) -> None:
    names: list[Any] = []
    packed = False
    for output in outputs:
        kind, value = _only(output)
        if kind == "as_tensors":
            packed = True
            names += [each["name"] for each in value]
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            names.append(value.get("as_name"))
        elif kind == "as_tensor":
            names.append(value["name"])
        else:
            names.append(None)
    if len(names) == 1 and not packed:
        values[names[0]] = made
        return
    for index, name in enumerate(names):
        if name is not None:
            values[name] = graph.call_function(operator.getitem, (made, index))


def _argument(argument: dict[str, Any], values: dict[str, Any], device: Any) -> Any:
    kind, value = _only(argument)
    convert = _PLAIN.get(kind)
    if convert is not None:
        return convert(value)
    if kind == "as_tensor":
        return values[value["name"]]
    if kind == "as_tensors":
        return [values[each["name"]] for each in value]
    if kind == "as_optional_tensors":
        return [values[each["as_tensor"]["name"]] if "as_tensor" in each else None for each in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _symbol(value, values)
    if kind in ("as_sym_ints", "as_sym_floats"):
        return [_symbol(each, values) for each in value]
    if kind == "as_device":
        return device
    raise ProgramError(f"an argument is {kind}, which this helper does not know")


def _symbol(value: dict[str, Any], values: dict[str, Any]) -> Any:
    kind, content = _only(value)
    return values[content] if kind == "as_name" else content


def _layout(number: int) -> Any:
    if number != _STRIDED:
        raise ProgramError(f"an argument is a layout ({number}) that is not strided")
    return torch.strided


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": int,
    "as_ints": list,
    "as_float": float,
    "as_floats": list,
    "as_bool": bool,
    "as_bools": list,
    "as_string": str,
    "as_scalar_type": lambda number: getattr(torch, _DTYPES[number]),
    "as_memory_format": lambda number: getattr(torch, _MEMORY_FORMATS[number]),
    "as_layout": _layout,
}


def _function(target: str) -> Any:
    match = OPERATOR.fullmatch(target)
    if match is None:
        raise ProgramError(f"the operator {target[:80]} is none that may be called")
    space, name, overload, symbolic, plain, number = match.groups()
    try:
        if space:
            return getattr(getattr(getattr(torch.ops, space), name), overload)
        if symbolic:
            return getattr(torch, symbolic)
    except (AttributeError, RuntimeError):
        raise ProgramError(f"torch {torch.__version__} has no operator {target}") from None
    return getattr(operator, plain) if plain else getattr(math, number)


def _only(tagged: dict[str, Any]) -> tuple[str, Any]:
    ((kind, value),) = tagged.items()
    return kind, value
