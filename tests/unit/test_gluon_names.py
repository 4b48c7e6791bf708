"""Gluon's and GluonCV's weight files: their names, what is wrong with a file in words, and the store's archives."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mxnet_params import file_bytes

from controller import zoo
from controller.home import Home
from controller.zoo import gluon, gluon_dense, gluon_names, gluon_ssd, gluon_store, weights
from targets import pt2_model

NORM = ("gamma", "beta", "running_mean", "running_var")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def _names(name: str) -> gluon_names.Names:
    with torch.device("meta"):
        return gluon_names.of_classifier(gluon.build(name), gluon.ATTRIBUTES[2 if name.endswith("v2") else 1])


def _resnet18_v1() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Of what `save_parameters` writes, the name that counts, and the shape."""
    names: dict[str, tuple[str, tuple[int, ...]]] = {}

    def layer(reached: str, scope: str, number: int, shape: tuple[int, ...], norm: str = "") -> None:
        names[f"{reached}.weight"] = f"resnetv10_{scope}conv{number}_weight", shape
        for part in NORM:
            names[f"{norm}.{part}"] = f"resnetv10_{scope}batchnorm{number}_{part}", shape[:1]

    layer("features.0", "", 0, (64, 3, 7, 7), "features.1")
    inputs = 64
    for stage in range(4):
        outputs, number = 64 << stage, 0
        for block in range(2):
            way = f"features.{stage + 4}.{block}"
            for position in (0, 3):
                taken = inputs if (block, position) == (0, 0) else outputs
                shape = (outputs, taken, 3, 3)
                layer(f"{way}.body.{position}", f"stage{stage + 1}_", number, shape, f"{way}.body.{position + 1}")
                number += 1
            if inputs != outputs:
                shape = (outputs, inputs, 1, 1)
                layer(f"{way}.downsample.0", f"stage{stage + 1}_", number, shape, f"{way}.downsample.1")
                number += 1
            inputs = outputs
    names["output.weight"] = "resnetv10_dense0_weight", (1000, 512)
    names["output.bias"] = "resnetv10_dense0_bias", (1000,)
    return names


@pytest.mark.parametrize("counted", [False, True])
def test_v1_has_the_names_of_both_kinds(counted: bool) -> None:
    values: dict[str, Any] = {}
    for index, (name, (other, shape)) in enumerate(_resnet18_v1().items()):
        values[other if counted else name] = torch.full(shape, float(index + 1))
    state = _names("resnet18_v1").state(values, "it")
    network = gluon.build("resnet18_v1")
    weights.fit(network, state, "it")
    of_torch = network.state_dict()
    for ours, theirs in {
        "bn1.running_var": "features.1.running_var",
        "layer1.1.conv2.weight": "features.4.1.body.3.weight",
        "layer3.0.downsample.0.weight": "features.6.0.downsample.0.weight",
        "layer3.0.downsample.1.weight": "features.6.0.downsample.1.gamma",
        "layer4.1.bn2.bias": "features.7.1.body.4.beta",
        "fc.bias": "output.bias",
    }.items():
        assert (of_torch[ours] == list(_resnet18_v1()).index(theirs) + 1).all(), theirs


def _v1_values() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, (_, shape) in _resnet18_v1().items()}


def test_a_file_of_another_network_is_told_in_its_own_names() -> None:
    with pytest.raises(weights.WeightsError) as caught:
        _names("resnet34_v1").state(_v1_values(), "'x'")
    assert caught.value.message == (
        "'x' does not fit: it lacks features.4.2.body.0.weight; lacks features.4.2.body.1.gamma; "
        "lacks features.4.2.body.1.beta and 77 more"
    )
    values = _v1_values()
    values["features.4.0.body.0.weight"] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(weights.WeightsError, match=r"features.4.0.body.0.weight is \(64, 64, 1, 1\), the network's"):
        _names("resnet18_v1").state(values, "'x'")


def test_what_is_there_under_two_names_is_refused() -> None:
    values = {**_v1_values(), "resnetv13_dense0_bias": torch.zeros(1000)}
    with pytest.raises(weights.WeightsError, match="has resnetv13_dense0_bias, which the network does not"):
        _names("resnet18_v1").state(values, "it")
    twins = {f"resnetv1{number}_dense0_bias": torch.zeros(1000) for number in (0, 1)}
    with pytest.raises(weights.WeightsError, match="several networks"):
        _names("resnet18_v1").state(twins, "it")


def test_names_of_torch_pass() -> None:
    state = gluon.build("resnet18_v1").state_dict()
    assert _names("resnet18_v1").state(state, "it") == state


TOP_OF_V2 = {
    "normalise": "features.0",
    "conv1": "features.1",
    "bn1": "features.2",
    "bn2": "features.9",
    "fc": "output",
}


def test_v2_normalises_without_scale_and_shift() -> None:
    names = _names("resnet18_v2")
    with torch.device("meta"):
        network = gluon.build("resnet18_v2")
    values = {}
    for module, _, layer in gluon_names.layers(network):
        reached = TOP_OF_V2.get(module)
        if reached is None:
            _, stage, within = module.split(".", 2)
            reached = f"features.{int(stage) + 5}.{within}"
        for key, value in layer.state_dict().items():
            norm = isinstance(layer, torch.nn.BatchNorm2d)
            gluon_key = {"weight": "gamma", "bias": "beta"}.get(key, key) if norm else key
            if "num_batches" not in key:
                values[f"{reached}.{gluon_key}"] = torch.zeros(value.shape)
    values["features.0.gamma"], values["features.0.beta"] = torch.full((3,), 7.0), torch.zeros(3)
    assert len(names.state(values, "it")) == len(values) - 2
    values["features.0.beta"] = torch.ones(3)
    with pytest.raises(weights.WeightsError, match=r"features.0.beta, which is not zero"):
        names.state(values, "it")


# --- Detectors ----------------------------------------------------------------------------------

SMALL = "ssd_512_mobilenet1.0_voc"


def _detector(name: str = SMALL) -> dict[str, np.ndarray[Any, Any]]:
    """What GluonCV saves of a detector on MobileNet, all of it zero but the default boxes."""
    spec = gluon_dense.SPECS[name]
    with torch.device("meta"):
        dense = gluon_dense.Dense(spec, 20)
    values: dict[str, Any] = {}

    def add(prefix: str, layer: Any, mean: str = "running") -> None:
        for key, value in layer.state_dict().items():
            if isinstance(layer, torch.nn.BatchNorm2d):
                key = {"weight": "gamma", "bias": "beta"}.get(key, key.replace("running", mean))
            if "num_batches" not in key:
                values[prefix + key] = np.zeros(value.shape, np.float32)

    counts = {torch.nn.Conv2d: 0, torch.nn.BatchNorm2d: 0}
    for layer in dense.features.backbone.layers:
        if type(layer) in counts:
            kind = "conv" if isinstance(layer, torch.nn.Conv2d) else "batchnorm"
            add(f"features.mobilenet4_{kind}{counts[type(layer)]}_", layer)
            counts[type(layer)] += 1
    for index in range(4):
        for appended in ("expand_trans_conv", "expand_trans_bn", "expand_conv", "expand_bn"):
            add(f"features.{appended}{index}_", getattr(dense.features, appended)[index], "moving")
    for predictors in ("class_predictors", "box_predictors"):
        for index, layer in enumerate(getattr(dense, predictors)):
            add(f"{predictors}.{index}.predictor.", layer)
    for level, (boxes, cells) in enumerate(zip(spec.default_boxes(), spec.cells, strict=True)):
        made = max(128 >> level, 16)
        anchors = np.full((1, 1, made, made, boxes.size // cells**2), -1, np.float32)
        anchors[:, :, :cells, :cells] = boxes.reshape(1, 1, cells, cells, -1)
        values[f"anchor_generators.{level}.anchors"] = anchors
    return values


def _load(values: dict[str, Any], folder: Path, name: str = SMALL) -> dict[str, Any]:
    path = folder / "net.params"
    path.write_bytes(file_bytes(values))
    return gluon_ssd.load(path, gluon_dense.SPECS[name])


def test_a_detector_takes_gluoncvs_names_and_ignores_the_scales_that_mxnet_ignores(tmp_path: Path) -> None:
    values = _detector()
    values["features.expand_trans_bn2_gamma"] += 3
    values["features.mobilenet4_batchnorm26_gamma"] += 3
    values["class_predictors.5.predictor.bias"] += 4
    state = _load(values, tmp_path)
    dense = gluon_dense.Dense(gluon_dense.SPECS[SMALL], 20)
    weights.fit(dense, state, "it")
    assert dense.features.expand_trans_bn[2].weight.unique().tolist() == [1]
    assert dense.features.expand_trans_bn[2].eps == 1e-3 and dense.features.backbone.layers[1].eps == 1e-5
    assert dense.features.backbone.layers[79].weight.unique().tolist() == [3]
    assert dense.class_predictors[5].bias.unique().tolist() == [4]


def test_other_default_boxes_are_refused(tmp_path: Path) -> None:
    values = _detector()
    values["anchor_generators.2.anchors"][0, 0, 3, 3, 2] += 0.1
    with pytest.raises(weights.WeightsError, match=r"anchor_generators.2.anchors are not the network's default boxes"):
        _load(values, tmp_path)


def test_weights_for_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError) as caught:
        _load(_detector(), tmp_path, "ssd_512_mobilenet1.0_coco")
    assert "class_predictors.0.predictor.weight is (84, 512, 3, 3), the network's is (324, 512, 3, 3)" in str(
        caught.value
    )


@pytest.mark.parametrize("name", sorted(gluon_ssd.NETWORKS))
def test_default_boxes_are_as_many_as_the_predictors_give(name: str) -> None:
    spec = gluon_dense.SPECS[name]
    columns = len(gluon_ssd.labels(spec.dataset)) + 1
    with torch.device("meta"), torch.no_grad():
        offsets, logits = gluon_dense.Dense(spec, columns - 1).eval()(torch.zeros(2, 3, spec.side, spec.side))
    boxes = np.concatenate(spec.default_boxes())
    published = {"ssd_300_vgg16_atrous_voc": 8732, "ssd_512_vgg16_atrous_coco": 24564}.get(name, 6132)
    assert boxes.shape == (published, 4)
    assert offsets.shape == (2, len(boxes), 4) and logits.shape == (2, len(boxes), columns)
    # The last level is one cell in the middle.
    assert (boxes[-1][:2] == spec.side / 2).all()


def test_random_weights_find_many_boxes_of_several_classes(home: Home) -> None:
    source, raw = zoo.source(SMALL, "random:0", home), zoo.source(f"{SMALL}@raw", "random:0", home)
    assert [output.name for output in source.outputs] == ["boxes", "scores", "labels", "count"]
    assert [output.name for output in raw.outputs] == ["box_preds", "cls_preds"]
    assert source.postprocess and source.postprocess.coordinates == "pixels" and source.labels == gluon_dense.VOC
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        boxes, scores, labels, count = pt2_model.read(Path(source.path)).load().module()(torch.randn(1, 3, 512, 512))
    assert count.tolist() == [100] and len(labels.unique()) >= 3
    assert (scores[0, 1:] <= scores[0, :-1]).all() and scores[0, -1] > 0.1
    centres = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    assert (centres.std(0) > 60).all()


# --- The store ----------------------------------------------------------------------------------

PARAMS = file_bytes({"a": np.ones(4, np.float32)})
STEM = f"resnet18_v1-{hashlib.sha1(PARAMS).hexdigest()[:8]}"


def _archive(content: bytes = PARAMS, name: str = f"{STEM}.params") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../outside", b"nobody wants this")
        packed.writestr(name, content)
    return made.getvalue()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setitem(gluon_store.SHA1, "resnet18_v1", hashlib.sha1(PARAMS).hexdigest())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def put(content: bytes) -> str:
            (folder / f"{STEM}.zip").write_bytes(content)
            return f"http://127.0.0.1:{server.server_port}/"

        yield put
        server.shutdown()
        thread.join()


def test_the_stores_archives_are_unpacked_once(served: Callable[[bytes], str], home: Home) -> None:
    path = gluon_store.fetch("resnet18_v1", home, address=served(_archive()))
    assert path.read_bytes() == PARAMS
    assert [each.name for each in path.parent.iterdir()] == [path.name] and not (home.cache / "outside").exists()
    assert gluon_store.fetch("resnet18_v1", home, address="http://nowhere.invalid/") == path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_archive()[:-30], "no zip archive"),
        (b"not found", "no zip archive"),
        (_archive(name="other.params"), "no zip archive with resnet18_v1"),
        (_archive(PARAMS + b"\0"), "it should be"),
        (_archive(b""), "it should be"),
    ],
)
def test_other_archives_are_refused(content: bytes, words: str, served: Callable[[bytes], str], home: Home) -> None:
    with pytest.raises(weights.WeightsError, match=words) as caught:
        gluon_store.fetch("resnet18_v1", home, address=served(content))
    assert caught.value.code == "download-failed" and "--weights" in caught.value.hint
    assert list((home.cache / "downloads").iterdir()) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(
    served: Callable[[bytes], str], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gluon_store, "_MAX_PARAMS", 1 << 20)
    monkeypatch.setattr(gluon_store, "READ_SIZE", 1 << 16)
    bomb = bytes(64 << 20)
    with pytest.raises(weights.WeightsError, match="it should be"):
        gluon_store.fetch("resnet18_v1", home, address=served(_archive(bomb)))
