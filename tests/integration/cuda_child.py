"""Runs what was built for a GPU: a folder with ``built.json`` and ``inputs.npz`` gets ``outputs.npz``.

A process of its own: for the emulated GPU its libraries must be the first of their names, and torch brings the real
ones. A second argument says that it is one: ``emulated``, or ``jetson`` for the device half of that target.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from targets.base import BuiltFile, Requirements, TensorSpec

if TYPE_CHECKING:
    from targets.cuda.device import CUDARunner


class Built(msgspec.Struct):
    """What the runner needs of a manifest."""

    entry: str
    files: list[BuiltFile]
    parameters: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    requirements: Requirements = Requirements()


def runner_of(bundle: Any, which: str) -> CUDARunner:
    if which == "jetson":
        from targets.jetson.tvm_device import load_tvm

        return load_tvm(bundle, 1)
    from targets.cuda.device import CUDARunner, start_cuda
    from targets.cuda.gpu import GPU, find

    start_cuda(1)
    return CUDARunner(bundle, GPU("emulated", 90, "0", (13, 0)) if which else find())


def main(folder: Path, which: str) -> None:
    built = msgspec.json.decode((folder / "built.json").read_bytes(), type=Built)
    paths = {file.name: Path(file.path) for file in built.files}
    files = [SimpleNamespace(path=file.name, tensor=file.tensor) for file in built.files]
    manifest = SimpleNamespace(
        entry=built.entry,
        files=files,
        parameters=built.parameters,
        inputs=built.inputs,
        outputs=built.outputs,
        requirements=built.requirements,
    )
    runner = runner_of(SimpleNamespace(manifest=manifest, path=paths.__getitem__), which)
    with np.load(folder / "inputs.npz") as given:
        outputs = runner.infer([given[spec.name] for spec in built.inputs])
    assert runner.measure(1).shape == (1,)
    np.savez(folder / "outputs.npz", *outputs)
    (folder / "conditions.json").write_bytes(msgspec.json.encode(runner.conditions()))
    runner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "".join(sys.argv[2:]))
