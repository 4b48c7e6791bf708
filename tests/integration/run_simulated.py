"""Runs a ``.fleet`` file with its target's simulated device half, as a worker does, and prints what it finds (JSON).

python run_simulated.py FILE FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import psutil

from targets.archive import read_archive
from targets.base import device_half
from targets.blobs import BlobDir


class Loaded:
    def __init__(self, file: Path, folder: Path) -> None:
        self._blobs = BlobDir(folder)
        self.manifest, _ = read_archive(file, self._blobs)
        self._files = {file.path: file for file in self.manifest.files}

    def path(self, name: str) -> Path:
        return self._blobs.path(self._files[name].sha256)

    def array(self, name: str) -> np.ndarray:
        spec = self._files[name].tensor
        assert spec is not None
        return np.fromfile(self.path(name), dtype=spec.dtype).reshape(spec.shape)


def main() -> None:
    bundle = Loaded(Path(sys.argv[1]), Path(sys.argv[2]))
    manifest = bundle.manifest
    device = device_half(manifest.target, True)
    assert device.unmet(manifest.requirements) == ""
    runner = device.load(bundle, 0)
    errors = []
    for given, expected in zip(manifest.golden.inputs, manifest.golden.outputs, strict=True):
        outputs = runner.infer([bundle.array(name) for name in given])
        errors += [float(np.abs(a - bundle.array(b)).max()) for a, b in zip(outputs, expected, strict=True)]
    try:
        runner.infer([np.zeros((1, 2, 3), np.float32)])
        refused = ""
    except ValueError as error:
        refused = str(error)
    found = {
        "errors": errors,
        "refused": refused,
        "memory_mb": psutil.Process().memory_info().rss / 1e6,
        "compiler": "tvm.relax" in sys.modules or sys.modules.get("torch") is not None,
    }
    runner.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
