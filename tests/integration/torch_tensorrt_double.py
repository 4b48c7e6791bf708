"""A double of torch_tensorrt: a package made from a released wheel's signatures, whose engines run on this processor.

The real one needs a GPU and libraries that PyPI does not have, so what drives it is tested against this. Names,
parameters, defaults and types are read from the wheel; what is not in it is refused, also where the real one would
swallow it. What the functions do is :mod:`torch_tensorrt_double_engine`. Its version ends in ``+double``, so that no
result of it can be taken for a real one's.
"""

from __future__ import annotations

import ast
import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

from torch_tensorrt_wheels import Package, Parameter

_ENGINE = Path(__file__).with_name("torch_tensorrt_double_engine.py")
_FUNCTIONS = ("dynamo.compile", "save", "load")
_CLASSES = ("dynamo.runtime.TorchTensorRTModule", "dynamo.runtime.PythonTorchTensorRTModule")
_TYPES = {
    **{name: [name] for name in ("bool", "int", "float", "str")},
    **{name: ["list", "tuple"] for name in ("Sequence", "List", "list")},
    **{name: ["tuple"] for name in ("Tuple", "tuple")},
    **{name: ["set", "frozenset"] for name in ("Set", "set")},
    **{name: ["dict"] for name in ("Dict", "dict")},
    "Collection": ["list", "tuple", "set", "frozenset"],
    "None": ["NoneType"],
}


def install(version: str, folder: Path) -> Path:
    """Write the double of a version below ``folder``, and beside it a Python that finds it; returns that Python."""
    wheel = Package(version)
    packages = folder / "packages"
    package = packages / "torch_tensorrt"
    (package / "dynamo" / "runtime").mkdir(parents=True)
    shutil.copyfile(_ENGINE, package / "_engine.py")
    functions = {name: wheel.parameters(wheel.function(name)) for name in _FUNCTIONS}
    classes = [name for name in _CLASSES if wheel.find(name)]
    facts = {
        "version": f"{version}+double",
        "types": {name: {each.name: types(each.annotation) for each in given} for name, given in functions.items()},
        "input": sorted(wheel.keys(wheel.method("Input", "__init__"))),
        "methods": {name.rpartition(".")[2]: sorted(wheel.methods(name)) for name in classes},
        "strong": "enabled_precisions" not in {each.name for each in functions["dynamo.compile"]},
    }
    (package / "facts.json").write_text(json.dumps(facts, indent=1))
    names = [name.rpartition(".")[2] for name in classes]
    runtime = "from torch_tensorrt import _engine\n\n" + "".join(
        f"\nclass {name}(_engine.Engine):\n    pass\n" for name in names
    )
    (package / "dynamo" / "runtime" / "__init__.py").write_text(runtime)
    (package / "dynamo" / "__init__.py").write_text(_text(functions, "dynamo."))
    head = f'__version__ = "{facts["version"]}"\n'
    (package / "__init__.py").write_text(
        _text(functions, "") + "from torch_tensorrt import dynamo\nfrom torch_tensorrt._engine import Input\n" + head
    )
    tensorrt = packages / "tensorrt"
    tensorrt.mkdir()
    (tensorrt / "__init__.py").write_text(f'__version__ = "{_tensorrt(wheel)}+double"\n')
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def types(annotation: str) -> list[Any] | None:
    """Names of the types that an annotation allows, and values that it lists; None where that is not simple."""
    return _allowed(ast.parse(annotation, mode="eval").body)


def _allowed(node: ast.expr) -> list[Any] | None:
    if isinstance(node, ast.Constant) and node.value is None:
        return ["NoneType"]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _both([node.left, node.right])
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Optional":
            return _both([*inner, ast.Constant(None)])
        if name == "Union":
            return _both(inner)
        if name == "Literal":
            return [{"value": ast.literal_eval(each)} for each in inner]
        return _TYPES.get(name)
    return _TYPES.get(ast.unparse(node))


def _both(nodes: list[ast.expr]) -> list[Any] | None:
    found: list[Any] = []
    for node in nodes:
        allowed = _allowed(node)
        if allowed is None:
            return None
        found += allowed
    return found


def _text(functions: dict[str, list[Parameter]], place: str) -> str:
    """Python of the functions of one module: their signatures, and a call of the engine's function of that name."""
    text = "from torch_tensorrt import _engine\n\n"
    for name, parameters in functions.items():
        package, _, short = name.rpartition(".")
        if f"{package}." == place or (not package and not place):
            text += f"\ndef {short}({_signature(parameters)}):\n"
            text += f"    return _engine.{short}(_engine.checked('{name}', dict(locals())))\n\n"
    return text


def _signature(parameters: list[Parameter]) -> str:
    parts = []
    star = False
    for each in parameters:
        if each.kind == "keyword" and not star:
            parts.append("*")
            star = True
        parts.append(each.name if each.default is None else f"{each.name}={_value(each.default)}")
    return ", ".join(parts)


def _value(default: str) -> str:
    """A default as it is, if it is plain; else what stands for it."""
    try:
        return repr(ast.literal_eval(default))
    except ValueError:
        return f"_engine.Default({default!r})"


def _tensorrt(wheel: Package) -> str:
    for node in wheel.file("_version.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__tensorrt_version__":
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{wheel.version} does not say for which TensorRT it is")
