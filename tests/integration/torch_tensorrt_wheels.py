"""Released wheels of torch_tensorrt, fetched once, and what their source says. They are parsed, never imported.

The wheels are the boards': for aarch64, and the Python of the JetPack that has them. They lie in the user's cache.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Wheel:
    version: str
    platform: str
    python: str
    sha256: str


WHEELS = {
    wheel.version: wheel
    for wheel in (
        # The first and the last that are driven as weakly typed, the first that is not, and the last that is driven.
        Wheel(
            "2.8.0", "manylinux_2_28_aarch64", "310", "6adb18682d42af150bdabbf10ac6b5dcbab844574b4fe94ecbb383bc9d5873c5"
        ),
        Wheel(
            "2.9.0", "manylinux_2_28_aarch64", "310", "e8057245fec36ed1f04ad89ee92e242d86b5da8910498772bb8f289db0856fd1"
        ),
        Wheel(
            "2.10.0",
            "manylinux_2_28_aarch64",
            "310",
            "b9387ded4832a2ad7e8aff11c8381b388d3a373bb03fbf8b87aedc56a2024ef1",
        ),
        Wheel(
            "2.14.0",
            "manylinux_2_28_aarch64",
            "312",
            "15c1481225c28e0d3a300b247b4eb10b217765e617f983bf740b870267d63ece",
        ),
    )
}


def sources(version: str) -> Path:
    """The folder with the Python files of a wheel. Skips the test that asks when the wheel cannot be fetched.

    A wheel with other bytes than the pinned ones fails it.
    """
    wheel = WHEELS[version]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet" / "test-wheels"
    folder = cache / f"torch_tensorrt-{version}-{wheel.sha256[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        unpacked = Path(made, "unpacked")
        _unpack(_download(wheel, Path(made)), unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was faster.
            assert folder.is_dir()
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"torch-tensorrt=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=2", "--timeout=20"]
    command += [f"--platform={wheel.platform}", f"--python-version={wheel.python}", "--implementation=cp"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip(f"torch-tensorrt {wheel.version} could not be fetched from PyPI in time")
    assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        pytest.skip(
            f"torch-tensorrt {wheel.version} cannot be fetched from PyPI: {words[-1] if words else 'no reason'}"
        )
    (found,) = folder.glob("*.whl")
    return found


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        for info in wheel.infolist():
            if not re.fullmatch(r"torch_tensorrt[\w.-]*/([\w-]+/)*([\w-]+\.py|METADATA)", info.filename):
                continue
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


@dataclass(frozen=True)
class Parameter:
    name: str
    annotation: str
    #: As source, with the constants of ``_defaults`` put in; None for one that must be given.
    default: str | None
    #: ``positional`` or ``keyword``, as in a signature with a ``*``.
    kind: str


class Package:
    """torch_tensorrt as its source says it is. Names are dotted, below ``torch_tensorrt``."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.root = sources(version) / "torch_tensorrt"
        self._modules: dict[Path, ast.Module] = {}

    # --- Names ----------------------------------------------------------------------------------

    def function(self, dotted: str) -> ast.FunctionDef:
        found = self.find(dotted)
        assert isinstance(found, ast.FunctionDef), f"{dotted} of {self.version} is no function"
        return found

    def class_of(self, dotted: str) -> ast.ClassDef:
        found = self.find(dotted)
        assert isinstance(found, ast.ClassDef), f"{dotted} of {self.version} is no class"
        return found

    def find(self, dotted: str) -> ast.FunctionDef | ast.ClassDef | None:
        """What a name that a user writes stands for, through whatever imports it."""
        *packages, name = dotted.split(".")
        return self._named(("torch_tensorrt", *packages), name)

    def file(self, path: str) -> ast.Module:
        """The module in a file, such as ``dynamo/_compiler.py``."""
        return self._parsed(self.root / path)

    def files(self, folder: str) -> Iterator[tuple[Path, ast.Module]]:
        for path in sorted((self.root / folder).rglob("*.py")):
            yield path.relative_to(self.root), self._parsed(path)

    def methods(self, dotted: str) -> set[str]:
        return {node.name for node in self.class_of(dotted).body if isinstance(node, ast.FunctionDef)}

    def method(self, dotted: str, name: str) -> ast.FunctionDef:
        return next(
            node for node in self.class_of(dotted).body if isinstance(node, ast.FunctionDef) and node.name == name
        )

    # --- Functions ------------------------------------------------------------------------------

    def parameters(self, function: ast.FunctionDef) -> list[Parameter]:
        given = function.args
        positional = [*given.posonlyargs, *given.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        pairs = [
            (each, default, "positional")
            for each, default in zip(positional, [*defaults, *given.defaults], strict=True)
        ]
        pairs += [(each, default, "keyword") for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
        return [
            Parameter(
                each.arg,
                ast.unparse(each.annotation) if each.annotation else "Any",
                None if default is None else ast.unparse(self._constant(default)),
                kind,
            )
            for each, default, kind in pairs
        ]

    def reads(self, function: ast.FunctionDef) -> set[str]:
        """Names whose values are used."""
        return {
            node.id
            for statement in function.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }

    def keys(self, function: ast.FunctionDef, name: str = "kwargs") -> set[str]:
        """Keys that are looked up in ``**kwargs``."""
        found = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and _is(node.value, name) and isinstance(node.slice, ast.Constant):
                found.add(str(node.slice.value))
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and _is(node.func.value, name)
                and node.func.attr in ("get", "pop")
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
        return found

    def deprecated(self, function: ast.FunctionDef) -> set[str]:
        """Names that the function warns of when they are given."""
        texts = " ".join(
            str(node.value)
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.warn"
            for node in ast.walk(call)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        return set(re.findall(r"[`\"](\w+)[`\"] is deprecated", texts))

    # --- Settings -------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> dict[str, str]:
        """Fields of ``CompilationSettings`` and their defaults, as source."""
        fields = {}
        for node in self.class_of("dynamo.CompilationSettings").body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                fields[node.target.id] = ast.unparse(self._constant(node.value))
        return fields

    def options(self, function: ast.FunctionDef) -> dict[str, ast.expr]:
        """What a compiling function hands to ``CompilationSettings``, by the settings' names."""
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "compilation_options"
                and isinstance(node.value, ast.Dict)
            ):
                return {
                    str(key.value): value
                    for key, value in zip(node.value.keys, node.value.values, strict=True)
                    if isinstance(key, ast.Constant)
                }
        raise AssertionError(f"{function.name} of {self.version} makes no settings")

    @cached_property
    def settings_read(self) -> set[str]:
        """Settings that something on the way of ``dynamo.compile`` looks at (``backend`` is that of torch.compile)."""
        found: set[str] = set()
        for path, module in self.files("dynamo"):
            if path.name == "_settings.py" or path.parts[1] == "backend":
                continue
            for node in ast.walk(module):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings"):
                    found.add(node.attr)
        return found

    def statements(self, path: str, *words: str) -> list[str]:
        """The smallest statements of a file whose source has all of these words, as source."""
        found = [
            node
            for node in ast.walk(self.file(path))
            if isinstance(node, ast.stmt) and not _is_text(node) and all(word in ast.unparse(node) for word in words)
        ]
        around = [node for node in found if any(other in ast.walk(node) for other in found if other is not node)]
        return [ast.unparse(node) for node in found if node not in around]

    # --- Parsing --------------------------------------------------------------------------------

    def _constant(self, expression: ast.expr) -> ast.expr:
        """A default, with what ``_defaults`` says in place of its name there."""
        name = ""
        if isinstance(expression, ast.Attribute) and ast.unparse(expression.value).endswith("_defaults"):
            name = expression.attr
        elif isinstance(expression, ast.Name) and expression.id.isupper():
            name = expression.id
        for node in self.file("dynamo/_defaults.py").body if name else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return node.value
        return expression

    def _parsed(self, path: Path) -> ast.Module:
        if path not in self._modules:
            self._modules[path] = ast.parse(path.read_text())
        return self._modules[path]

    def _path(self, module: tuple[str, ...]) -> Path | None:
        place = self.root.parent.joinpath(*module)
        return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)

    def _named(self, module: tuple[str, ...], name: str) -> ast.FunctionDef | ast.ClassDef | None:
        path = self._path(module)
        if path is None:
            return None
        package = module if path.name == "__init__.py" else module[:-1]
        for node in _top(self._parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return node
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = (*base, *(node.module.split(".") if node.module else ()))
            if source[:1] != ("torch_tensorrt",) or source == module:
                continue
            for alias in node.names:
                original = name if alias.name == "*" else alias.name
                if name in (alias.asname or original, original) and (found := self._named(source, original)):
                    return found
        return None


def _top(module: ast.Module) -> Iterator[ast.stmt]:
    """Statements of a module that run when it is imported."""
    waiting: list[ast.stmt] = list(module.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try):
            waiting = [*node.body, *node.orelse, *waiting]


def _is(expression: ast.expr, name: str) -> bool:
    return isinstance(expression, ast.Name) and expression.id == name


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
