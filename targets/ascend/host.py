"""The host half for Ascend boards: from a model to its ONNX graph and what ATC is to make of it, on the board."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from targets.ascend import plan as plans
from targets.ascend.plan import AIPP, ENTRY, GRAPH, HEAD
from targets.base import BuildOutput, BuiltFile, FleetError, Option, Requirements, Role, SourceModel, TensorSpec

ENGINE = "ais_bench"
_PACKAGES = ("onnx", "torch", "onnxscript")


class AscendHost:
    """A :class:`targets.base.HostHalf`. Nothing is compiled here: ATC runs on the board, for the chip that is there.

    Options:

    ``batch``: the first dimension of the inputs; 0 keeps the file's own.
    ``batches``: several, such as ``1,4,8``, that the one compiled model can be set to (``--dynamic_batch_size``).
    ``soc_version``: the one chip that may run it, such as ``Ascend310P3``; otherwise the board's own is compiled for.
    ``precision_mode``: of ``--precision_mode`` or ``--precision_mode_v2``; ATC computes in half precision otherwise.
    ``aipp``: pictures travel as bytes, and the chip normalises them.
    ``opset``: the ONNX opset; 11 for what is exported here, as published, and a file's own.
    ``tolerance``: how far outputs may be from those of the source framework, relative and absolute.
    """

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        plans.checked(options)
        return {name: found for name in _PACKAGES if (found := _version(name))}

    def build(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        workdir: Path,
        progress: Callable[[str, float], None],
    ) -> BuildOutput:
        batch, batches = plans.checked(options)
        progress("export", 0.0)
        from targets.ascend import aipp
        from targets.ascend.onnx_export import export
        from targets.ascend.onnx_parts import split

        exported = export(model, batch=batch, batches=batches, opset=_opset(options))
        names = [spec.name for spec in _graph_inputs(exported.model)]
        inputs, preprocess = exported.inputs, None
        files: list[BuiltFile] = []
        if options.get("aipp"):
            own = aipp.prepared(inputs[0], model.preprocess, model.name)
            picture, preprocess = aipp.taken(inputs[0], own)
            inputs = (picture, *inputs[1:])
            files.append(_write(workdir, AIPP, aipp.configuration(own).encode(), "extra"))
        progress("weights", 0.6)
        parts = split(exported.model)
        tensors = []
        for number, (tensor, data) in enumerate(parts.tensors):
            spec = TensorSpec(tensor.name, tuple(tensor.dims), _dtype(tensor.data_type))
            file = _write(workdir, f"weights/{number:04}", data, "weight", spec)
            files.append(file)
            tensors.append(plans.Tensor(tensor.name, tuple(tensor.dims), tensor.data_type, file.name))
        soc_version = str(options.get("soc_version", ""))
        plan = plans.Plan(
            inputs=tuple(
                plans.Input(name, (-1, *spec.shape[1:]) if batches else spec.shape)
                for name, spec in zip(names, exported.inputs, strict=True)
            ),
            tensors=tuple(tensors),
            batch=inputs[0].shape[0] if inputs[0].shape else 1,
            batches=batches,
            soc_version=soc_version,
            precision_mode=str(options.get("precision_mode", "")),
            aipp=bool(options.get("aipp")),
        )
        files.append(_write(workdir, HEAD, parts.head, "extra"))
        files.append(_write(workdir, GRAPH, parts.graph, "extra"))
        files.append(_write(workdir, ENTRY, plans.encode(plan), "library"))
        progress("built", 1.0)
        tolerance = plans.tolerance(options)
        return BuildOutput(
            entry=ENTRY,
            files=tuple(files),
            parameters=tuple(tensor.file for tensor in tensors),
            inputs=inputs,
            outputs=exported.outputs,
            requirements=Requirements(accelerator=soc_version),
            engine=ENGINE,
            rtol=tolerance,
            atol=tolerance,
            warnings=exported.warnings,
            preprocess=preprocess,
        )


def _graph_inputs(model: object) -> tuple[TensorSpec, ...]:
    from targets.onnx_model import inputs_and_outputs

    return inputs_and_outputs(model)[0]


def _opset(options: Mapping[str, Option]) -> int:
    opset = int(options.get("opset", 0))
    if opset and not 11 <= opset <= 18:
        raise FleetError("option 'opset' must be between 11 and 18", code="bad-option")
    return opset


def _dtype(element_type: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name)


def _write(workdir: Path, name: str, data: bytes, role: Role, spec: TensorSpec | None = None) -> BuiltFile:
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return BuiltFile(name=name, path=str(path), role=role, tensor=spec)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
