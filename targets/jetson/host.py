"""The host half of target ``jetson``: from a model file to a program of torch, which the board compiles for itself.

Engines for a Jetson's GPU cannot be built anywhere else: TensorRT checks platform and GPU when it loads one. So what is
made here is the same for every engine of torch but ``tvm``, whose code is compiled on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from targets.base import BuildOutput, FleetError, ModelError, Option, Requirements, SourceModel
from targets.jetson.options import Options, resolve

if TYPE_CHECKING:
    from targets.base import Quantised, Samples

#: Allowed difference from the reference, relative and as a share of the largest result, by precision. Halves carry 11
#: bits and autocast on a processor 8, over some fifty layers; TensorFloat32 has 11 as well.
_TOLERANCES = {"fp32": (1e-3, 1e-4), "tf32": (1e-2, 5e-3), "fp16": (2e-2, 1e-2), "autocast": (5e-2, 3e-2)}
#: Of integers both the reference and the engine round: a step of the last layer's scale may lie between them.
_TOLERANCES["int8"] = (5e-2, 3e-2)
_LEAST_ATOL = 1e-3


class JetsonHost:
    """A :class:`targets.base.HostHalf`, and for ``precision=int8`` a :class:`targets.base.QuantisingHalf`.

    Options: see :mod:`targets.jetson.options`. ``calibration`` is the caller's.
    """

    def quantises(self, options: Mapping[str, Option]) -> bool:
        return resolve(options).precision == "int8"

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        resolved = resolve(options)
        if resolved.engine == "tvm":
            from targets.jetson import tvm_cuda

            return tvm_cuda.toolchain(options)
        return {
            "torch": _version("torch"),
            "onnx": _version("onnx"),
            "engine": resolved.engine,
            "precision": resolved.precision,
        }

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        resolved = resolve(options)
        if resolved.engine == "tvm":
            from targets.jetson import tvm_cuda

            return tvm_cuda.build_tvm(model, options, workdir, progress)
        _require_torch()
        from targets.jetson import program

        progress("export", 0.0)
        exported = program.export(model, resolved.batch, resolved.dynamic)
        progress("write", 0.7)
        return _output(exported, resolved, workdir, progress)

    def build_quantised(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        samples: Samples,
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> Quantised:
        from targets.base import Quantised

        resolved = resolve(options)
        if resolved.engine == "tvm":
            raise FleetError("engine tvm has no precision int8", code="bad-option", hint="it computes in float32")
        _require_torch()
        from targets.jetson import program, quantise

        progress("export", 0.0)
        exported = program.export(model, resolved.batch, resolved.dynamic)
        progress("calibrate", 0.2)
        quantised = quantise.quantise(exported, samples(exported.inputs))
        progress("write", 0.7)
        output = _output(quantised, resolved, workdir, progress)
        return Quantised(output, quantise.reference(quantised), f"torch {_version('torch')} with Q/DQ nodes")


def _output(exported: object, resolved: Options, workdir: Path, progress: Callable[[str, float], None]) -> BuildOutput:
    from targets.jetson import program

    assert isinstance(exported, program.Exported)
    if resolved.precision == "fp16" and exported.detects:
        raise ModelError(
            "this network finds boxes inside, and halves cannot tell apart positions in a picture",
            hint="--option precision=autocast computes the convolutions in halves and the boxes in float32",
        )
    if resolved.engine == "torchscript" and exported.detects:
        raise ModelError(
            "this network finds boxes inside, which TorchScript cannot trace",
            hint="engines eager, inductor and torch-tensorrt can run it",
        )
    entry, weights = program.write(exported.program, workdir)
    rtol, share = _TOLERANCES["tf32" if resolved.tf32 and resolved.precision == "fp32" else resolved.precision]
    progress("built", 1.0)
    return BuildOutput(
        entry=entry.name,
        files=(entry, *weights),
        parameters=tuple(file.name for file in weights),
        inputs=exported.inputs,
        outputs=exported.outputs,
        requirements=Requirements(accelerator=resolved.engine),
        engine=resolved.engine,
        rtol=rtol,
        atol=max(_LEAST_ATOL, share * exported.largest),
    )


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise FleetError(
            f"a build for jetson needs PyTorch, which cannot be imported: {error}",
            code="torch-missing",
            hint="make setup, or pip install 'fleet-edge[torch]'",
        ) from None


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
