"""Shows drawn pictures to a classifier of the build cache, with its target's device half, and keeps the scores.

python run_pictures.py CACHE MANIFEST SEED COUNT OUT.npy
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from run_bundle import Loaded

from controller.zoo import draw
from targets.base import device_half
from targets.blobs import BlobDir
from targets.bundle import parse_manifest
from targets.pictures.prepare import prepare


def main() -> None:
    cache, path, seed, count, out = sys.argv[1:]
    manifest = parse_manifest(Path(path).read_bytes())
    assert manifest.model.preprocess is not None
    runner = device_half(manifest.target, True).load(Loaded(BlobDir(Path(cache) / "blobs"), manifest), 1)
    batch = manifest.inputs[0].shape[0]
    scores = []
    for start in range(0, int(count), batch):
        drawn = [Image.fromarray(draw.picture(int(seed), start + index)[0]) for index in range(batch)]
        given = np.concatenate([prepare(one, manifest.model.preprocess) for one in drawn])
        scores.append(runner.infer([given])[0])
    runner.close()
    np.save(out, np.concatenate(scores)[: int(count)])


if __name__ == "__main__":
    main()
