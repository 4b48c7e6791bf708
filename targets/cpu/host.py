"""The host half of the CPU targets: from a model file to a library and its weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from targets.base import BuildOutput, BuiltFile, FleetError, ModelError, Option, Requirements, SourceModel, TensorSpec
from targets.cpu.machine import Machine, Processor

OPTIONS = {"mcpu": str, "batch": int}
LIBRARY = "model.so"
ENGINE = "time_evaluator"


class CPUHost:
    """A :class:`targets.base.HostHalf`. Options:

    ``mcpu``: the processor to compile for, or ``host`` for the best level that this host has too.
    ``batch``: the first dimension of the model's inputs; 0 keeps the file's.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        resolved = self._resolve(options)
        return {
            "apache-tvm": version("apache-tvm"),
            "apache-tvm-ffi": version("apache-tvm-ffi"),
            "ziglang": version("ziglang"),
            "mcpu": resolved.mcpu,
        }

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        processor = self._resolve(options)
        progress("import", 0.0)
        if model.format == "onnx" and "torch" not in sys.modules:
            # tvm_ffi imports torch where it is installed, which takes seconds; an ONNX file does not need it.
            sys.modules["torch"] = None  # type: ignore[assignment]
        import tvm

        from targets.cpu import passes
        from targets.cpu.conv import pack_convolutions
        from targets.cpu.schedule import schedule
        from targets.relax_import import to_relax

        module, inputs, outputs = to_relax(model, int(options.get("batch", 0)))
        target = tvm.target.Target(self._target(processor))
        try:
            with target:
                progress("simplify", 0.2)
                module = passes.simplify()(module)
                module = pack_convolutions(processor)(module)
                module, weights = passes.lift_weights(module)
                progress("compile", 0.4)
                pipeline = passes.lower(schedule(processor))
                executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
        except Exception as error:
            # TVM's passes raise many types; all of them are about this model.
            raise ModelError(
                f"{model.name} cannot be compiled for {self.machine.uname}: {_words(error)}",
                hint="this is an operator, or a shape of one, that the compiler does not know",
            ) from error
        progress("link", 0.9)
        library = self._link(executable, workdir)
        files = (library, *_write_weights(weights, workdir))
        progress("built", 1.0)
        return BuildOutput(
            entry=LIBRARY,
            files=files,
            parameters=tuple(file.name for file in files[1:]),
            inputs=inputs,
            outputs=outputs,
            requirements=Requirements(
                runtime={"apache-tvm": version("apache-tvm")},
                machine=self.machine.uname,
                cpu_features=processor.features,
            ),
            engine=ENGINE,
        )

    def _resolve(self, options: Mapping[str, Option]) -> Processor:
        for name, value in options.items():
            kind = OPTIONS.get(name)
            if kind is None:
                raise FleetError(
                    f"a build for {self.machine.uname} has no option '{name}'",
                    code="bad-option",
                    hint=f"it has: {', '.join(OPTIONS)}",
                )
            if not isinstance(value, kind) or isinstance(value, bool):
                raise FleetError(f"option '{name}' must be a {kind.__name__}, not {value!r}", code="bad-option")
        if not 0 <= int(options.get("batch", 0)) <= 1024:
            raise FleetError("option 'batch' must be between 1 and 1024", code="bad-option")
        return self.machine.processor(str(options.get("mcpu", "")))

    def _target(self, processor: Processor) -> dict[str, Any]:
        target: dict[str, Any] = {"kind": "llvm", "mtriple": self.machine.triple, "mcpu": processor.mcpu}
        if processor.mattr:
            target["mattr"] = list(processor.mattr)
        if self.machine.float_abi:
            target["mfloat-abi"] = self.machine.float_abi
        return target

    def _link(self, executable: Any, workdir: Path) -> BuiltFile:
        from targets.zig import link_shared

        def link(output: str, objects: Sequence[str], **_: Any) -> None:
            link_shared(Path(output), [Path(name) for name in objects], self.machine.zig)

        objects = workdir / "objects"
        objects.mkdir()
        path = workdir / LIBRARY
        executable.export_library(str(path), fcompile=link, workspace_dir=str(objects))
        return BuiltFile(name=LIBRARY, path=str(path), role="library")


def _write_weights(weights: Sequence[tuple[str, Any]], workdir: Path) -> list[BuiltFile]:
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


def _words(error: Exception) -> str:
    """The line of TVM's message that says what is wrong; around it are its stack and its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"(\w+Error|Check failed|InternalError|Cannot|Unsupported)", line)]
    return (said or lines or [type(error).__name__])[0][:500]
