"""Shows drawn scenes to a detector of the build cache, with its target's device half; writes COCO results (JSON).

python run_detector.py CACHE MANIFEST SEED COUNT OUT.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from run_bundle import Loaded

from controller.zoo import draw
from targets.base import device_half
from targets.blobs import BlobDir
from targets.bundle import parse_manifest
from targets.pictures.answers import detect, of_picture
from targets.pictures.place import place
from targets.pictures.prepare import prepare


def main() -> None:
    cache, path, seed, count, out = sys.argv[1:]
    manifest = parse_manifest(Path(path).read_bytes())
    model = manifest.model
    assert model.preprocess is not None and model.postprocess is not None
    runner = device_half(manifest.target, True).load(Loaded(BlobDir(Path(cache) / "blobs"), manifest), 1)
    batch = manifest.inputs[0].shape[0]
    scenes = [Image.fromarray(scene.picture) for scene in draw.scenes(int(seed), int(count))]
    results = []
    for start in range(0, len(scenes), batch):
        outputs = runner.infer(
            [np.concatenate([prepare(one, model.preprocess) for one in scenes[start : start + batch]])]
        )
        for row in range(batch):
            where = place(scenes[start + row].size, model.preprocess)
            found = detect(
                of_picture(outputs, row), manifest.outputs, model.postprocess, where, classes=len(model.labels)
            )
            for (x0, y0, x1, y1), label, score in zip(
                found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
            ):
                box = [x0, y0, x1 - x0, y1 - y0]
                results.append({"image_id": start + row + 1, "category_id": label + 1, "bbox": box, "score": score})
    runner.close()
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
