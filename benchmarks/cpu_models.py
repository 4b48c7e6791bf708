"""The networks of the CPU benchmark, and each as every engine takes it: one set of weights, one input.

Everything here that needs torch runs in a process of its own (`prepare` is called in one), so that the process that
takes the times has no pool of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.cpu_counts import Counts
from targets.base import SourceModel, TensorSpec

WEIGHTS = "random:0"
#: The highest latency against ONNX Runtime's that is wanted, by network, batch and dtype.
WANTED = {
    ("resnet18", 1, "float32"): 0.80,
    ("resnet50", 1, "float32"): 0.80,
    ("ssd300_resnet34", 1, "float32"): 0.80,
    ("ssd300_resnet50", 1, "float32"): 0.80,
    ("mobilenet1.0", 1, "float32"): 0.90,
    ("mobilenet_v2", 1, "float32"): 0.90,
    ("ssd300_vgg16@raw", 1, "float32"): 0.70,
    ("resnet18", 8, "float32"): 0.90,
    ("resnet50", 8, "float32"): 0.90,
    ("resnet18", 1, "int8"): 0.90,
}
#: Seconds that a build may take; only the network that it is said of.
WANTED_BUILD = {"resnet50": 60.0}
WANTED_MEMORY = 1.2
#: Of the largest output. Winograd's transforms cost a digit.
WANTED_ERROR = 1e-3
DTYPES = ("float32", "int8")
#: Samples that the int8 network's ranges are taken from.
CALIBRATED_ON = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the report. ``model`` is a name of the zoo, or the path of an ``.onnx`` or ``.pt2`` file."""

    model: str
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return Path(self.model).stem if self.is_file else self.model

    @property
    def is_file(self) -> bool:
        return self.model.endswith((".onnx", ".pt2"))

    @property
    def wanted(self) -> float | None:
        return WANTED.get((self.model, self.batch, self.dtype))


def cases(models: Sequence[str], batches: Sequence[int], dtypes: Sequence[str]) -> list[Case]:
    """The rows to make: of WANTED those that are asked for (nothing asked: all), then all that are not in it."""
    found = [
        Case(*key)
        for key in WANTED
        if (not models or key[0] in models) and (not batches or key[1] in batches) and (not dtypes or key[2] in dtypes)
    ]
    known = {key[0] for key in WANTED}
    others = [model for model in dict.fromkeys(models) if model not in known]
    return found + [Case(model, batch, "float32") for model in others for batch in batches or (1,)]


@dataclass(frozen=True)
class Prepared:
    """A case as files. ``torch`` is empty, and ``counts`` None, for what came as ONNX."""

    source: SourceModel
    inputs: tuple[TensorSpec, ...]
    onnx: str
    torch: str
    counts: Counts | None


def prepare(case: Case, folder: Path, root: Path) -> Prepared:
    """Make the files of ``case`` in ``folder``; the zoo keeps its own below ``root``.

    Raises :class:`targets.base.FleetError`, and whatever the exporters raise.
    """
    from controller import sources
    from controller.home import Home

    home = Home.find(root)
    source = sources.resolve(case.model, weights="" if case.is_file else WEIGHTS, home=home)
    inputs = tuple(TensorSpec(spec.name, (case.batch, *spec.shape[1:]), spec.dtype) for spec in source.inputs)
    onnx = folder / f"{case.name}-{case.batch}-{case.dtype}.onnx"
    if source.format == "onnx":
        if case.dtype != "float32":
            raise ValueError(f"{case.name} is an ONNX file: it is run as it is")
        _fixed(Path(source.path), case.batch, onnx)
        return Prepared(source, inputs, str(onnx), "", None)
    program, given = _program(source, inputs)
    counts = _export(program, given, case, onnx)
    if case.dtype == "int8":
        onnx = _quantise(onnx, source, inputs)
        return Prepared(sources.resolve(str(onnx), home=home), inputs, str(onnx), "", counts)
    import torch

    saved = folder / f"{case.name}-{case.batch}.pt2"
    torch.export.save(program, str(saved))
    return Prepared(source, inputs, str(onnx), str(saved), counts)


def make_inputs(inputs: Sequence[TensorSpec]) -> list[Any]:
    """The input of every engine: noise as the networks' normalised pictures are, the same in every process."""
    import numpy as np

    noise = np.random.default_rng(0)
    return [noise.standard_normal(spec.shape).astype(spec.dtype) for spec in inputs]


def _program(source: SourceModel, inputs: Sequence[TensorSpec]) -> tuple[Any, tuple[Any, ...]]:
    """The source's torch program with its shapes fixed, and its inputs."""
    import torch

    from targets import pt2_model

    given = tuple(torch.from_numpy(array) for array in make_inputs(inputs))
    program = pt2_model.read(Path(source.path)).load()
    with torch.no_grad():
        return torch.export.export(program.module(), given), given


def _export(program: Any, given: Sequence[Any], case: Case, path: Path) -> Counts:
    import torch

    from benchmarks.cpu_counts import count

    torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
    return count(program, given, itemsize=1 if case.dtype == "int8" else 0)


def _quantise(path: Path, source: SourceModel, inputs: Sequence[TensorSpec]) -> Path:
    """ONNX Runtime's own static quantisation, as its documentation recommends it for x86: QDQ, u8 activations, s8
    weights per channel; one bit less where the processor would saturate products of both."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from controller import calibration
    from targets.cpu.machine import cpu_features

    folded, quantised = path.with_suffix(".folded.onnx"), path.with_suffix(".qdq.onnx")
    quant_pre_process(str(path), str(folded))
    names = [value.name for value in onnx.load(str(folded)).graph.input]
    samples = calibration.inputs(calibration.choose(source, ""), source, inputs)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = (dict(zip(names, arrays, strict=True)) for arrays in islice(samples, CALIBRATED_ON))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    quantize_static(
        str(folded),
        str(quantised),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not cpu_features() & {"avx512_vnni", "avx_vnni"},
    )
    return quantised


def _fixed(source: Path, batch: int, path: Path) -> None:
    import onnx

    from targets import onnx_model

    onnx.save(onnx_model.fix_shapes(onnx_model.read(source), batch, source.name), str(path))
