"""From a Relax module to a library of one machine, and its weights as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.base import BuiltFile, ModelError, TensorSpec
from targets.cpu.database import Tuned
from targets.cpu.layers import LayerTable
from targets.cpu.machine import Machine, Processor

LIBRARY = "model.so"


def tvm_target(machine: Machine, processor: Processor) -> Any:
    """TVM's target for this machine."""
    import tvm

    target: dict[str, Any] = {"kind": "llvm", "mtriple": machine.triple, "mcpu": processor.mcpu}
    if processor.mattr:
        target["mattr"] = list(processor.mattr)
    if machine.float_abi:
        target["mfloat-abi"] = machine.float_abi
    return tvm.target.Target(target)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What was made of a module."""

    #: A ``tvm.runtime.Executable``.
    executable: Any
    #: Names and ``tvm.runtime.Tensor``s of what ``main`` takes after its inputs.
    weights: list[tuple[str, Any]]
    layers: LayerTable
    #: What a person should know of it.
    warnings: tuple[str, ...] = ()


def compile_module(module: Any, machine: Machine, processor: Processor, tuned: Tuned | None = None) -> Compiled:
    """Compile a simplified module. TVM's passes raise many types for what they cannot compile."""
    import tvm

    from targets.cpu import operators, passes
    from targets.cpu.optimise import optimise
    from targets.cpu.rows import guard
    from targets.cpu.schedule import schedule

    target = tvm_target(machine, processor)
    with target:
        module, layers = optimise(module, processor, tuned)
        module, weights = passes.lift_weights(operators.kernels(processor)(module))
        module = guard(module)
        plain: list[str] = []
        pipeline = passes.lower(schedule(processor, plain))
        executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
    warnings = tuple(f"operator {name} has no fast code for this processor: it runs, slowly" for name in plain)
    return Compiled(executable, weights, layers, warnings)


def link(executable: Any, machine: Machine, workdir: Path) -> BuiltFile:
    """The executable as a shared library below ``workdir``."""
    from targets.zig import link_shared

    def with_zig(output: str, objects: Sequence[str], **_: Any) -> None:
        link_shared(Path(output), [Path(name) for name in objects], machine.zig)

    objects = workdir / "objects"
    objects.mkdir()
    path = workdir / LIBRARY
    executable.export_library(str(path), fcompile=with_zig, workspace_dir=str(objects))
    return BuiltFile(name=LIBRARY, path=str(path), role="library")


def write_weights(weights: Sequence[tuple[str, Any]], workdir: Path) -> list[BuiltFile]:
    """Each weight as a file of its raw bytes, in the order in which the library takes them."""
    folder = workdir / "weights"
    folder.mkdir()
    files = []
    for name, value in weights:
        array = value.numpy()
        path = folder / name
        path.write_bytes(array.tobytes())
        spec = TensorSpec(name=name, shape=tuple(int(size) for size in array.shape), dtype=array.dtype.name)
        files.append(BuiltFile(name=f"weights/{name}", path=str(path), role="weight", tensor=spec))
    return files


def cannot_compile(name: str, machine: Machine, error: Exception) -> ModelError:
    """What to say when TVM raised ``error`` for the model ``name``."""
    return ModelError(
        f"{name} cannot be compiled for {machine.uname}: {_words(error)}",
        hint="this is an operator, or a shape of one, that the compiler does not know",
    )


def _words(error: Exception) -> str:
    """The line of TVM's message that says what is wrong; around it are its stack and its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"(\w+Error|Check failed|InternalError|Cannot|Unsupported)", line)]
    return (said or lines or [type(error).__name__])[0][:500]
