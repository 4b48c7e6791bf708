"""The host half of target ``cuda``: from a model file to a library, its kernels for each architecture, and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from targets.base import BuildOutput, BuiltFile, FleetError, Option, Requirements, SourceModel, check_options
from targets.cores import usable
from targets.cpu.compile import LIBRARY, cannot_compile, link, write_weights
from targets.cpu.host import check_batch, tool_versions, without_torch
from targets.cpu.machine import X86_MACHINE, Machine
from targets.cuda import architectures
from targets.cuda.nvrtc import CUDA_13, Release, compile_source, compiler_version

OPTIONS = {"arch": str, "batch": int}
ENGINE = "time_evaluator"


@dataclass(frozen=True, slots=True)
class Boards:
    """What one library is for."""

    machine: Machine
    #: Kernels are written for GPUs from this architecture on, and compiled for each of `architectures`.
    least: str
    architectures: tuple[str, ...]
    release: Release


class CUDAHost:
    """A :class:`targets.base.HostHalf`.

    Options:

    ``arch``: architectures to compile for, with commas: see :mod:`targets.cuda.architectures`.
    ``batch``: the first dimension of the model's inputs; 0 keeps the file's.
    """

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        return {**tool_versions(), "nvrtc": compiler_version(), "arch": ",".join(_architectures(options))}

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        chosen = _architectures(options)
        boards = Boards(X86_MACHINE, f"sm_{architectures.OLDEST}", chosen, CUDA_13)
        return build_library(model, int(options.get("batch", 0)), boards, workdir, progress)


def build_library(
    model: SourceModel,
    batch: int,
    boards: Boards,
    workdir: Path,
    progress: Callable[[str, float], None],
) -> BuildOutput:
    """A library for ``boards``, its kernels and its weights; ``batch`` 0 keeps the file's.

    Raises :class:`ModelError` for what cannot be compiled, and `targets.cuda.nvrtc.CUDACompilerError`.
    """
    machine = boards.machine
    progress("import", 0.0)
    without_torch(model)
    from targets.cpu import passes
    from targets.cuda.compile import compile_module, tvm_target
    from targets.relax_import import to_relax

    module, inputs, outputs = to_relax(model, batch)
    progress("compile", 0.2)
    try:
        compiled = compile_module(passes.simplify()(module), tvm_target(boards.least, machine))
    except FleetError:
        raise
    except Exception as error:
        # TVM's passes raise many types; all of them are about this model.
        raise cannot_compile(model.name, machine, error) from error
    progress("kernels", 0.5)
    kernels = write_kernels(compiled.source, boards, workdir)
    progress("link", 0.9)
    weights = write_weights(compiled.weights, workdir)
    library = link(compiled.executable, machine, workdir)
    progress("built", 1.0)
    return BuildOutput(
        entry=LIBRARY,
        files=(library, *weights, *kernels),
        parameters=tuple(file.name for file in weights),
        inputs=inputs,
        outputs=outputs,
        requirements=Requirements(
            runtime={"apache-tvm": version("apache-tvm")},
            machine=machine.uname,
            accelerator=",".join(boards.architectures),
        ),
        engine=ENGINE,
    )


def write_kernels(source: str, boards: Boards, workdir: Path) -> list[BuiltFile]:
    """The kernels for each architecture as a file below ``workdir``. Raises `targets.cuda.nvrtc.CUDACompilerError`."""
    (workdir / architectures.FOLDER).mkdir()
    # The compiler runs outside of Python's lock.
    with ThreadPoolExecutor(usable().default) as pool:
        codes = list(pool.map(lambda name: compile_source(source, name, boards.release), boards.architectures))
    files = []
    for name, code in zip(boards.architectures, codes, strict=True):
        inside = architectures.file_name(name)
        path = workdir / inside
        path.write_bytes(code)
        files.append(BuiltFile(name=inside, path=str(path), role="extra"))
    return files


def _architectures(options: Mapping[str, Option]) -> tuple[str, ...]:
    check_options(options, OPTIONS, "cuda")
    check_batch(options)
    return architectures.parse(str(options.get("arch", architectures.DEFAULT)))
