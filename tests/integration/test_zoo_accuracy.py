"""What the committed networks are worth on unseen pictures, and that TVM computes the same as ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from controller import zoo
from controller.home import Home
from controller.zoo import card, draw, evaluate, retrain
from targets.base import Preprocess, SourceModel
from targets.pictures.prepare import prepare

#: Neither the training's seed nor the one that the cards' figures were measured with.
UNSEEN = 1009


def _source(name: str, tmp_path: Path) -> tuple[SourceModel, card.Card]:
    return zoo.source(name, "", Home.find(tmp_path)), card.read(card.FOLDER / f"{name}.json")


def test_the_classifier_names_at_least_97_of_100_pictures(tmp_path: Path) -> None:
    source, made = _source("shapes-classifier", tmp_path)
    assert UNSEEN not in (made.training.seed, made.metric.seed) and made.training.seed != made.metric.seed
    reached = evaluate.top1(Path(source.path), made.preprocess, made.postprocess, UNSEEN, 1200)
    assert reached >= 0.97
    assert abs(reached - made.metric.value) < 0.015, "the card says what the network is worth"


def test_the_detector_reaches_a_map_of_60(tmp_path: Path) -> None:
    source, made = _source("shapes-ssd", tmp_path)
    assert UNSEEN not in (made.training.seed, made.metric.seed) and made.training.seed != made.metric.seed
    reached = evaluate.mean_average_precision(Path(source.path), made.preprocess, made.postprocess, UNSEEN, 250)
    assert reached >= 0.6
    assert abs(reached - made.metric.value) < 0.04, "the card says what the network is worth"


def test_the_metric_is_one_for_the_truth_and_nothing_for_noise() -> None:
    scenes = list(draw.scenes(UNSEEN, 10))
    truth = draw.coco_annotations(scenes, [f"{number}.png" for number in range(10)])
    perfect = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.9}
        for one in truth["annotations"]
    ]
    assert evaluate.coco_map(truth, perfect) == pytest.approx(1.0)
    assert evaluate.coco_map(truth, [{**one, "bbox": [0, 0, 3, 3]} for one in perfect]) == 0.0
    assert evaluate.coco_map(truth, []) == 0.0


@pytest.mark.parametrize("name", ["shapes-classifier", "shapes-ssd"])
@pytest.mark.parametrize("batch", [1, 2])
def test_tvm_computes_what_onnx_runtime_does(name: str, batch: int, tmp_path: Path) -> None:
    import tvm
    from tvm import relax

    from targets.relax_import import to_relax

    source, made = _source(name, tmp_path)
    module, _, outputs = to_relax(source, batch)
    assert [spec.shape[0] for spec in outputs] == [batch] * len(made.outputs)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

    draws = draw.picture if name == "shapes-classifier" else draw.scene
    inputs = [_input(draws(UNSEEN, index)[0], made.preprocess) for index in range(batch)]
    found = machine["main"](tvm.runtime.tensor(np.concatenate(inputs)))
    run = evaluate.onnx_session(Path(source.path))
    wanted = [np.concatenate(parts) for parts in zip(*map(run, inputs), strict=True)]
    got = [found] if name == "shapes-classifier" else list(found)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4)


def _input(pixels: draw.Picture, preprocess: Preprocess) -> np.ndarray:
    from PIL import Image

    return prepare(Image.fromarray(pixels), preprocess)


def test_retraining_changes_the_last_layer_alone_and_keeps_the_accuracy(tmp_path: Path) -> None:
    source, made = _source("shapes-classifier", tmp_path)
    retrain.main(["--seed", "7", "-o", str(tmp_path / "new.onnx")])
    retrain.main(["--seed", "7", "-o", str(tmp_path / "again.onnx")])
    data = (tmp_path / "new.onnx").read_bytes()
    assert data == (tmp_path / "again.onnx").read_bytes()
    assert hashlib.sha256(data).hexdigest() != source.sha256

    before, after = onnx.load(source.path).graph, onnx.load(tmp_path / "new.onnx").graph
    assert after.node == before.node
    changed = {
        old.name: len(old.raw_data)
        for old, new in zip(before.initializer, after.initializer, strict=True)
        if old != new
    }
    assert changed.keys() == set(before.node[-1].input[1:])
    assert sum(changed.values()) < 0.05 * sum(len(tensor.raw_data) for tensor in before.initializer)

    variant = zoo.source("shapes-classifier", str(tmp_path / "new.onnx"), Home.find(tmp_path))
    assert evaluate.top1(Path(variant.path), made.preprocess, made.postprocess, UNSEEN, 300) >= 0.97
