"""Runs what was built for a GPU: a folder with ``built.json`` and ``inputs.npz`` gets ``outputs.npz``.

A process of its own: for the emulated GPU its libraries must be the first of their names, and torch brings the real
ones. A second argument, ``emulated``, says that it is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np

from targets.base import BuiltFile, TensorSpec


class Built(msgspec.Struct):
    """What the runner needs of a manifest."""

    entry: str
    files: list[BuiltFile]
    parameters: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def main(folder: Path, emulated: bool) -> None:
    from targets.cuda.device import CUDARunner, start_cuda
    from targets.cuda.gpu import GPU, find

    start_cuda(1)
    built = msgspec.json.decode((folder / "built.json").read_bytes(), type=Built)
    paths = {file.name: Path(file.path) for file in built.files}
    files = [SimpleNamespace(path=file.name, tensor=file.tensor) for file in built.files]
    manifest = SimpleNamespace(
        entry=built.entry, files=files, parameters=built.parameters, inputs=built.inputs, outputs=built.outputs
    )
    found = GPU("emulated", 90, "0", (13, 0)) if emulated else find()
    runner = CUDARunner(SimpleNamespace(manifest=manifest, path=paths.__getitem__), found)
    with np.load(folder / "inputs.npz") as given:
        outputs = runner.infer([given[spec.name] for spec in built.inputs])
    assert runner.measure(1).shape == (1,)
    np.savez(folder / "outputs.npz", *outputs)
    runner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "emulated" in sys.argv[2:])
