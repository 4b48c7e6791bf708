"""The host half of the CPU targets: from a model file to a library and its weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from targets.base import BuildOutput, FleetError, Option, Requirements, SourceModel, check_options
from targets.cpu.compile import LIBRARY, cannot_compile, compile_module, link, write_weights
from targets.cpu.layers import write_layers
from targets.cpu.machine import Machine, Processor

OPTIONS = {"mcpu": str, "board": str, "cores": int, "batch": int}
ENGINE = "time_evaluator"
#: How far results may be from the framework's beside `rtol`, in a network that is not quantised.
ATOL = 1e-3
MAX_BATCH = 1024
MAX_CORES = 1024


class CPUHost:
    """A :class:`targets.base.HostHalf`. Options:

    ``mcpu``: the processor to compile for, or ``host`` for the best whose features this host has too.
    ``board``: a board's name in its stead, which says its cores and caches too.
    ``cores``: threads that the release will run on, if not all of the board's.
    ``batch``: the first dimension of the model's inputs; 0 keeps the file's.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        processor = self._resolve(options)
        return {**tool_versions(), "mcpu": processor.name, "cores": str(processor.cores)}

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        processor = self._resolve(options)
        progress("import", 0.0)
        without_torch(model)
        from targets.cpu import passes
        from targets.cpu.rounding import rounding
        from targets.relax_import import to_relax

        module, inputs, outputs = to_relax(model, int(options.get("batch", 0)))
        try:
            progress("simplify", 0.2)
            module = passes.simplify()(module)
            atol = max(ATOL, rounding(module))
            progress("compile", 0.4)
            compiled = compile_module(module, self.machine, processor)
        except Exception as error:
            # TVM's passes raise many types; all of them are about this model.
            raise cannot_compile(model.name, self.machine, error) from error
        progress("link", 0.9)
        weights = write_weights(compiled.weights, workdir)
        library, layers = link(compiled.executable, self.machine, workdir), write_layers(compiled.layers, workdir)
        progress("built", 1.0)
        return BuildOutput(
            entry=LIBRARY,
            files=(library, *weights, layers),
            parameters=tuple(file.name for file in weights),
            inputs=inputs,
            outputs=outputs,
            requirements=Requirements(
                runtime={"apache-tvm": version("apache-tvm")},
                machine=self.machine.uname,
                cpu_features=processor.features,
            ),
            engine=ENGINE,
            atol=atol,
        )

    def _resolve(self, options: Mapping[str, Option]) -> Processor:
        check_options(options, OPTIONS, self.machine.uname)
        check_batch(options)
        mcpu, board, cores = str(options.get("mcpu", "")), str(options.get("board", "")), int(options.get("cores", 0))
        if mcpu and board:
            raise FleetError(
                "options 'board' and 'mcpu' both name the processor", code="bad-option", hint="give one of them"
            )
        if not 0 <= cores <= MAX_CORES:
            raise FleetError(f"option 'cores' must be between 1 and {MAX_CORES}", code="bad-option")
        processor = self.machine.on_board(board) if board else self.machine.processor(mcpu)
        return replace(processor, cores=cores) if cores else processor


def tool_versions() -> dict[str, str]:
    """Versions of what compiles for a CPU."""
    return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi", "ziglang")}


def check_batch(options: Mapping[str, Option]) -> None:
    """Raises :class:`FleetError` (``bad-option``)."""
    if not 0 <= int(options.get("batch", 0)) <= MAX_BATCH:
        raise FleetError(f"option 'batch' must be between 1 and {MAX_BATCH}", code="bad-option")


def without_torch(model: SourceModel) -> None:
    """Before TVM is imported: tvm_ffi imports torch where it is installed, for seconds, and ONNX does without it."""
    if model.format == "onnx" and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
