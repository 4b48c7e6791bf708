"""Imports point one way: the architecture's only rule that nobody would see broken in a review."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"agent", "controller", "targets", "bitstreams", "tests", "benchmarks"}
ALLOWED = {
    "targets": {"targets", "bitstreams"},
    "agent": {"agent", "targets"},
    "controller": {"controller", "targets", "bitstreams", "agent.protocol"},
    "bitstreams": {"bitstreams", "targets.base", "targets.files"},
}


def imported(path: Path) -> set[str]:
    """Every absolute module name that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            # `from agent import protocol` names a module too.
            found.update(f"{module}.{alias.name}" if module in PARTS else module for alias in node.names)
    return {name for name in found if name.split(".")[0] in PARTS}


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_one_way(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[part])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("agent.main", ["torch", "typer", "rich", "tvm", "onnx", "scipy", "PIL", "sqlalchemy"]),
        ("agent.server", ["torch", "typer", "rich", "tvm", "onnx", "scipy", "PIL", "sqlalchemy"]),
        ("controller.vta.main", ["torch", "tvm", "numba", "numpy", "zmq", "onnx", "scipy", "PIL", "sqlalchemy"]),
        ("controller.cli.main", ["torch", "tvm", "numpy", "zmq", "onnx", "scipy", "PIL", "sqlalchemy"]),
    ],
)
def test_what_a_start_must_not_load(module: str, forbidden: list[str]) -> None:
    code = f"import sys, {module}; print(*[m for m in {forbidden!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == []
