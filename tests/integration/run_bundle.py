"""Loads a bundle of the build cache with its target's device half, as a worker does, and prints what it finds (JSON).

python run_bundle.py CACHE MANIFEST THREADS
"""

import json
import sys
from pathlib import Path

import numpy as np
import psutil

from targets.base import find
from targets.blobs import BlobDir
from targets.bundle import Manifest, parse_manifest


class Loaded:
    def __init__(self, blobs: BlobDir, manifest: Manifest) -> None:
        self.manifest = manifest
        self._files = {file.path: file for file in manifest.files}
        self._blobs = blobs

    def path(self, name: str) -> Path:
        return self._blobs.path(self._files[name].sha256)

    def array(self, name: str) -> np.ndarray:
        spec = self._files[name].tensor
        assert spec is not None
        return np.fromfile(self.path(name), dtype=spec.dtype).reshape(spec.shape)


def main() -> None:
    cache, manifest_path, threads = sys.argv[1:]
    manifest = parse_manifest(Path(manifest_path).read_bytes())
    bundle = Loaded(BlobDir(Path(cache) / "blobs"), manifest)
    device = find(manifest.target).device()
    unmet = device.unmet(manifest.requirements)
    runner = device.load(bundle, int(threads))
    errors, scale = [], []
    for given, expected in zip(manifest.golden.inputs, manifest.golden.outputs, strict=True):
        outputs = runner.infer([bundle.array(name) for name in given])
        for name, output in zip(expected, outputs, strict=True):
            reference = bundle.array(name)
            assert output.shape == reference.shape and output.dtype == reference.dtype
            errors.append(float(np.abs(output - reference).max()))
            scale.append(float(np.abs(reference).max()))
    try:
        runner.infer([np.zeros((1, 2, 3), np.float32)])
        refused = ""
    except ValueError as error:
        refused = str(error)
    samples = runner.measure(25)
    print(
        json.dumps(
            {
                "unmet": unmet,
                "errors": errors,
                "scale": scale,
                "samples": samples.tolist(),
                "engine": runner.engine,
                "conditions": runner.conditions(),
                "refused": refused,
                "memory": psutil.Process().memory_info().rss,
                "compiler": "tvm.relax" in sys.modules or sys.modules.get("torch") is not None,
            }
        )
    )
    runner.close()


if __name__ == "__main__":
    main()
