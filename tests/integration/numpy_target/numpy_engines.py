"""The NumPy target with several engines for one network: right and quick, wrong, and one that no board has.

Its networks are ONNX files with one matrix product by a constant.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy_target import NumpyDevice, NumpyHost, NumpyRunner

from targets.base import BuildOutput, BuiltFile, Engine, Option, Requirements, SourceModel, TensorSpec, check_options

PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {"sleep": 0.004},
    "quick": {"sleep": 0.001},
    "wrong": {"sleep": 0.001, "bias": 1.0},
    "absent": {},
}


class EnginesRunner(NumpyRunner):
    def conditions(self) -> dict[str, str]:
        types = {"weight_dtype": str(self.weight.dtype), "input_dtype": "float32"}
        return {**super().conditions(), **types, "program": str(self.program["engine"])}


class EnginesDevice(NumpyDevice):
    def load(self, bundle: Any, threads: int) -> NumpyRunner:
        return EnginesRunner(bundle, threads)

    @property
    def exclusive(self) -> bool:
        return "NUMPY_EXCLUSIVE" in os.environ


class EnginesHost(NumpyHost):
    def build(self, model: SourceModel, options: Mapping[str, Option], workdir: Path, progress: Any) -> BuildOutput:
        from onnx import numpy_helper

        from targets import onnx_model

        check_options(options, {"engine": str, "precision": str, "batch": int}, "numpy-engines")
        name, half = str(options.get("engine", "plain")), options.get("precision") == "fp16"
        (constant,) = onnx_model.read(Path(model.path)).graph.initializer
        weight = numpy_helper.to_array(constant).astype("float16" if half else "float32")
        entry, tensor = workdir / "program.json", workdir / "weight.bin"
        entry.write_text(json.dumps({"engine": name, **PROGRAMS[name]}))
        tensor.write_bytes(weight.tobytes())
        spec = TensorSpec(name="weight", shape=weight.shape, dtype=str(weight.dtype))
        batch = int(options.get("batch", 1))
        inputs, outputs = (
            tuple(TensorSpec(one.name, (batch, *one.shape[1:]), one.dtype) for one in specs)
            for specs in (model.inputs, model.outputs)
        )
        return BuildOutput(
            entry="program.json",
            files=(
                BuiltFile("program.json", str(entry), "library"),
                BuiltFile("weight.bin", str(tensor), "weight", spec),
            ),
            parameters=("weight.bin",),
            inputs=inputs,
            outputs=outputs,
            requirements=Requirements(accelerator="abacus of brass" if name == "absent" else ""),
            engine=NumpyRunner.engine,
            rtol=1e-2,
            atol=1e-2,
        )


class EnginesTarget:
    name = "numpy-engines"
    description = "NumPy with several engines, for tests"
    engines = tuple(
        Engine(name, precision, {"engine": name, "precision": precision}, baseline=name == "plain")
        for name, precision in (("plain", "fp32"), ("quick", "fp16"), ("wrong", "fp32"), ("absent", "fp16"))
    )

    def host(self) -> EnginesHost:
        return EnginesHost()

    def device(self) -> EnginesDevice:
        return EnginesDevice()


def network(path: Path) -> Path:
    """An ONNX file of one product, its batch left open."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(3).standard_normal((8, 4)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
