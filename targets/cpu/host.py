"""The host half of the CPU targets: from a model file to a library and its weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from targets.base import (
    BuildOutput,
    FleetError,
    Option,
    Quantised,
    Requirements,
    Samples,
    SourceModel,
    TensorSpec,
    check_options,
)
from targets.cpu.compile import LIBRARY, cannot_compile, compile_module, link, write_weights
from targets.cpu.database import Tuned, keep, load, name_of
from targets.cpu.layers import write_layers
from targets.cpu.machine import Machine, Processor
from targets.tuning import Finding, Tuner

OPTIONS = {"mcpu": str, "board": str, "cores": int, "batch": int, "precision": str, "tuned": str}
#: What `precision` may be.
FLOAT, INT8 = "float32", "int8"
ENGINE = "time_evaluator"
#: How far results may be from the framework's beside `rtol`, in a network that is not quantised.
ATOL = 1e-3
MAX_BATCH = 1024
MAX_CORES = 1024


class CPUHost:
    """A :class:`targets.base.HostHalf`, :class:`targets.base.QuantisingHalf` and :class:`targets.tuning.TuningHalf`.

    Options:

    ``mcpu``: the processor to compile for, or ``host`` for the best whose features this host has too.
    ``board``: a board's name in its stead, which says its cores and caches too.
    ``cores``: threads that the release will run on, if not all of the board's.
    ``batch``: the first dimension of the model's inputs; 0 keeps the file's.
    ``precision``: ``float32``, or ``int8`` to quantise the network with samples of its inputs.
    ``tuned``: a file of `fleet tune`, or ``off`` for the default kernels.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        processor = self._resolve(options)
        return {
            **tool_versions(),
            "mcpu": processor.name,
            "cores": str(processor.cores),
            "tuned": self._tuned(options, processor).digest,
        }

    def quantises(self, options: Mapping[str, Option]) -> bool:
        return options.get("precision", FLOAT) == INT8

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        processor = self._resolve(options)
        module, inputs, outputs = self.simplified(model, options, progress)
        return self._compiled(
            model, module, processor, self._tuned(options, processor), workdir, progress, inputs, outputs
        )

    def build_quantised(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        samples: Samples,
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> Quantised:
        processor = self._resolve(options)
        module, inputs, outputs = self.simplified(model, options, progress)
        progress("calibrate", 0.3)
        from targets.cpu.calibrate import OnThisHost, calibrated

        try:
            module = calibrated(module, samples(inputs))
            reference = OnThisHost(module)
        except FleetError:
            raise
        except Exception as error:
            raise cannot_compile(model.name, self.machine, error) from error
        tuned = self._tuned(options, processor)
        output = self._compiled(model, module, processor, tuned, workdir, progress, inputs, outputs)
        return Quantised(output, reference, f"the same integers on {reference.processor.name}")

    def simplified(
        self, model: SourceModel, options: Mapping[str, Option], progress: Callable[[str, float], None]
    ) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The model as a Relax module, its inputs and outputs. Raises ModelError."""
        progress("import", 0.0)
        without_torch(model)
        from targets.cpu import passes
        from targets.relax_import import to_relax

        module, inputs, outputs = to_relax(model, int(options.get("batch", 0)))
        progress("simplify", 0.2)
        try:
            return passes.simplify()(module), inputs, outputs
        except Exception as error:
            # TVM's passes raise many types; all of them are about this model.
            raise cannot_compile(model.name, self.machine, error) from error

    def _compiled(
        self,
        model: SourceModel,
        module: Any,
        processor: Processor,
        tuned: Tuned,
        workdir: Path,
        progress: Callable[[str, float], None],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> BuildOutput:
        from targets.cpu.rounding import rounding

        progress("compile", 0.4)
        try:
            compiled = compile_module(module, self.machine, processor, tuned)
            atol = max(ATOL, rounding(module))
        except Exception as error:
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
            warnings=(*tuned.warnings, *compiled.warnings),
        )

    # --- Tuning ---------------------------------------------------------------------------------

    def tuning_file(self, options: Mapping[str, Option]) -> str:
        return name_of(self.machine.uname, self._resolve(options))

    def with_tuned(self, options: Mapping[str, Option], folder: Path) -> dict[str, Option]:
        path = folder / self.tuning_file(options)
        return {"tuned": str(path), **options} if path.is_file() else dict(options)

    def tuner(self, model: SourceModel, options: Mapping[str, Option], workdir: Path) -> Tuner:
        processor = self._resolve(options)
        if self.quantises(options):
            raise FleetError(
                "int8 kernels leave nothing to choose", code="bad-option", hint="tune with --option precision=float32"
            )
        module, _, _ = self.simplified(model, options, lambda _stage, _share: None)
        from targets.cpu.tuner import CPUTuner

        return CPUTuner(module, self.machine, processor, workdir)

    def keep(self, options: Mapping[str, Option], path: Path, found: Sequence[Finding]) -> None:
        keep(path, self.machine.uname, self._resolve(options), found, tool_versions())

    def _tuned(self, options: Mapping[str, Option], processor: Processor) -> Tuned:
        return load(self.machine.uname, processor, str(options.get("tuned", "")))

    def _resolve(self, options: Mapping[str, Option]) -> Processor:
        # Samples are the caller's business, where there are any.
        given = {name: value for name, value in options.items() if name != "calibration" or not self.quantises(options)}
        check_options(given, OPTIONS, self.machine.uname)
        check_batch(options)
        if options.get("precision", FLOAT) not in (FLOAT, INT8):
            raise FleetError(f"option 'precision' must be {FLOAT} or {INT8}", code="bad-option")
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
