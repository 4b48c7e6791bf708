"""The zoo's ImageNet networks and SSD300 detectors have the structure, the names and the boxes of their origins."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import image_list, ssd300_vgg16

from controller import zoo
from controller.home import Home
from controller.zoo import mobilenet, resnet, ssd300, ssd300_boxes, ssd300_networks, weights
from targets import pt2_model
from targets.detection import ssd
from targets.pictures.prepare import prepare

FAMILIES = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), resnet),
    **dict.fromkeys(("mobilenet1.0", "mobilenet_v2"), mobilenet),
    **dict.fromkeys(("ssd300_resnet34", "ssd300_resnet50", "ssd300_vgg16"), ssd300),
}
OUTPUTS = {
    "ssd300_resnet34": {"ploc": (4, 8732), "plabel": (81, 8732)},
    "ssd300_resnet50": {"ploc": (4, 8732), "plabel": (81, 8732)},
    "ssd300_vgg16@raw": {"bbox_regression": (8732, 4), "cls_logits": (8732, 91)},
}


@pytest.fixture
def home() -> Iterator[Home]:
    # Not below tmp_path: pytest keeps that of the last runs, and these files have a hundred megabytes.
    with tempfile.TemporaryDirectory() as folder:
        yield Home.find(Path(folder))


def _built(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[name].build(name).eval()


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The state dict's names and shapes, less the counts of training steps."""
    state = network.state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in state if "num_batches_tracked" not in name}


def _run(source: Any, image: torch.Tensor) -> list[torch.Tensor]:
    return _outputs(pt2_model.read(Path(source.path)).load().module(), image)


def _outputs(network: Any, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        given = network(image)
    return list(given) if isinstance(given, tuple) else [given]


# --- All of them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet1.0", "mobilenet_v2", "ssd300_resnet34", "ssd300_resnet50", "ssd300_vgg16@raw"]
)
def test_a_source_takes_every_batch_and_gives_values_that_can_be_compared(name: str, home: Home) -> None:
    source = zoo.source(name, "random:4", home)
    assert source.origin == f"zoo:{name} weights=random:4"
    wanted = OUTPUTS.get(name, {"linear": (1000,)})
    assert {spec.name: spec.shape for spec in source.outputs} == {key: (-1, *shape) for key, shape in wanted.items()}
    size = 300 if name in OUTPUTS else 224
    assert source.preprocess is not None
    assert (source.inputs[0].shape, source.preprocess.size) == ((-1, 3, size, size), (size, size))

    image = torch.from_numpy(
        np.concatenate([prepare(picture, source.preprocess) for picture in zoo.samples(name, 3, 5)])
    )
    found, direct = _run(source, image), _outputs(_built(name.partition("@")[0], 4), image)
    for one, other, shape in zip(found, direct, wanted.values(), strict=True):
        assert one.shape == (3, *shape)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        # Neither vanishing nor overflowing, and not the same whatever the picture.
        assert one.isfinite().all() and 0.3 < one.std() < 10
        assert (one[0] - one[1]).std() > 0.02 * one.std()
    for one, other in zip(_run(source, image[1:2]), found, strict=True):
        torch.testing.assert_close(one, other[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", sorted(set(FAMILIES) - {"mobilenet1.0"} - set(resnet.PRETRAINED) - set(ssd300.PRETRAINED))
)
def test_there_are_no_weights_of_their_own(name: str, home: Home) -> None:
    assert "random:SEED" in zoo.describe(name)
    for text in ("", "pretrained"):
        with pytest.raises(weights.WeightsError) as caught:
            zoo.source(name, text, home)
        assert "random:SEED" in caught.value.hint and "pretrained" not in caught.value.hint


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"])
def test_torchvisions_classifiers_have_its_names_and_published_counts(name: str) -> None:
    network = _built(name)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(value.numel() for value in network.parameters()) == published
    assert _shapes(network) == _shapes(torchvision.models.get_model(name, weights=None))


# --- MobileNet v1 -------------------------------------------------------------------------------


def test_mobilenet_v1_is_gluons() -> None:
    network = _built("mobilenet1.0")
    shapes = _shapes(network)
    # The count in the table of Gluon's model zoo, which has running statistics in it.
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_253_864
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert list(convolutions) == [f"features.{index}" for index in range(0, 81, 3)]
    assert all(f"features.{index}.running_mean" in shapes for index in range(1, 81, 3))
    assert shapes["features.0.weight"] == (32, 3, 3, 3) and shapes["output.weight"] == (1000, 1024)
    depthwise = [module for module in convolutions.values() if module.groups > 1]
    assert [(module.out_channels, module.stride[0]) for module in depthwise] == [
        *((32, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2)),
        *[(512, 1)] * 5,
        *((512, 2), (1024, 1)),
    ]
    seen: list[torch.Size] = []
    network.features[81].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    _outputs(network, torch.zeros(1, 3, 224, 224))
    assert seen == [(1, 1024, 7, 7)]


# --- SSD300 on ResNets --------------------------------------------------------------------------

#: In and out of the additional blocks, and what lies between; the same for both.
_BLOCKS = ((256, 512), (256, 512), (128, 256), (128, 256), (128, 256))
#: Default boxes in each cell of a level, and cells along its side.
_CELLS = ((4, 38), (6, 19), (6, 10), (6, 5), (4, 3), (4, 1))


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def _convolution(name: str, outputs: int, inputs: int, kernel: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), **({f"{name}.bias": (outputs,)} if bias else {})}


def _stages(names: tuple[str, ...], *, deep: bool) -> dict[str, tuple[int, ...]]:
    """The first three stages of ResNet-34, or of ResNet-50 if ``deep``."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 64
    for stage, (name, count) in enumerate(zip(names, (3, 4, 6), strict=True)):
        inner = 64 << stage
        outputs = inner * 4 if deep else inner
        for index in range(count):
            block = f"{name}.{index}"
            way = ((inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)) if deep else ()
            for number, (taken, given, kernel) in enumerate(way or ((inputs, inner, 3), (inner, inner, 3)), 1):
                shapes |= _convolution(f"{block}.conv{number}", given, taken, kernel, bias=False)
                shapes |= _norm(f"{block}.bn{number}", given)
            if inputs != outputs:
                shapes |= _convolution(f"{block}.downsample.0", outputs, inputs, 1, bias=False)
                shapes |= _norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return shapes


def _mlperf() -> dict[str, tuple[int, ...]]:
    shapes = _convolution("model.0", 64, 3, 7, bias=False) | _norm("model.1", 64)
    shapes |= _stages(("model.3", "model.4", "model.5"), deep=False)
    widths = [256]
    for index, (inner, outputs) in enumerate(_BLOCKS):
        block = f"additional_blocks.{index}"
        shapes |= _convolution(f"{block}.0", inner, widths[-1], 1, bias=True)
        shapes |= _convolution(f"{block}.2", outputs, inner, 3, bias=True)
        widths.append(outputs)
    for index, (width, channels) in enumerate(zip(widths, (340, 510, 510, 510, 340, 340), strict=True)):
        shapes |= _convolution(f"mbox.{index}", channels, width, 3, bias=True)
    return shapes


def _nvidia() -> dict[str, tuple[int, ...]]:
    features = "feature_extractor.feature_extractor"
    shapes = _convolution(f"{features}.0", 64, 3, 7, bias=False) | _norm(f"{features}.1", 64)
    shapes |= _stages(tuple(f"{features}.{number}" for number in (4, 5, 6)), deep=True)
    widths = [1024]
    for index, (inner, outputs) in enumerate(_BLOCKS):
        block = f"additional_blocks.{index}"
        shapes |= _convolution(f"{block}.0", inner, widths[-1], 1, bias=False) | _norm(f"{block}.1", inner)
        shapes |= _convolution(f"{block}.3", outputs, inner, 3, bias=False) | _norm(f"{block}.4", outputs)
        widths.append(outputs)
    for index, (width, (boxes, _)) in enumerate(zip(widths, _CELLS, strict=True)):
        shapes |= _convolution(f"loc.{index}", boxes * 4, width, 3, bias=True)
        shapes |= _convolution(f"conf.{index}", boxes * 81, width, 3, bias=True)
    return shapes


@pytest.mark.parametrize(("name", "wanted"), [("ssd300_resnet34", _mlperf()), ("ssd300_resnet50", _nvidia())])
def test_ssd300_on_resnets_has_the_layers_of_its_origin(name: str, wanted: dict[str, tuple[int, ...]]) -> None:
    network = _built(name)
    assert _shapes(network) == wanted
    # What the heads take: the backbone keeps its resolution in the third stage, then it halves or loses its rim.
    heads = network.mbox if name == "ssd300_resnet34" else network.conf
    seen: list[tuple[int, ...]] = []
    for head in heads:
        head.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape[1:])))
    _outputs(network, torch.zeros(1, 3, 300, 300))
    first = 256 if name == "ssd300_resnet34" else 1024
    widths = (first, 512, 512, 256, 256, 256)
    assert seen == [(width, cells, cells) for width, (_, cells) in zip(widths, _CELLS, strict=True)]


def test_only_relus_of_the_origin_are_there() -> None:
    """A feature map is what a ReLU gives; the picture's norm is followed by one that has no name of its own."""
    network = _built("ssd300_resnet34")
    pooled: list[torch.Tensor] = []
    network.model[2].register_forward_hook(lambda _module, inputs, _output: pooled.append(inputs[0]))
    image = torch.randn(1, 3, 300, 300)
    _outputs(network, image)
    with torch.no_grad():
        stem = network.model[1](network.model[0](image))
    assert (stem < 0).any()
    torch.testing.assert_close(pooled[0], stem.clamp(min=0))


def _silence(head: nn.Conv2d) -> nn.Conv2d:
    """Make a head give the number of its channel in every cell."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(len(head.bias)))
    return head


@pytest.mark.parametrize("name", ["ssd300_resnet34", "ssd300_resnet50"])
def test_channels_of_the_heads_go_to_their_boxes(name: str) -> None:
    network = _built(name)
    for head in (*network.mbox,) if name == "ssd300_resnet34" else (*network.loc, *network.conf):
        _silence(head)
    locations, logits = (output[0].numpy() for output in _outputs(network, torch.zeros(1, 3, 300, 300)))
    # MLPerf's one head has the logits first.
    before = 81 if name == "ssd300_resnet34" else 0
    start = 0
    for boxes, cells in _CELLS:
        shape = np.arange(boxes).repeat(cells * cells)
        part = slice(start, start + boxes * cells * cells)
        np.testing.assert_array_equal(logits[:, part], np.arange(81)[:, None] * boxes + shape)
        np.testing.assert_array_equal(locations[:, part], (before + np.arange(4))[:, None] * boxes + shape)
        start = part.stop
    assert start == 8732


@pytest.mark.parametrize(("name", "prefix"), [("ssd300_resnet34", ""), ("ssd300_resnet50", "module.1.")])
def test_checkpoints_of_the_origin_load(name: str, prefix: str, home: Home, tmp_path: Path) -> None:
    network = _built(name, 9)
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 60, "iteration": 183_250, "model": state}, path)
    source = zoo.source(name, str(path), home)
    path.unlink()
    assert source.origin == f"zoo:{name} weights=file:checkpoint.pt"
    image = torch.randn(1, 3, 300, 300)
    for found, wanted in zip(_run(source, image), _outputs(network, image), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# --- SSD300 on VGG16 ----------------------------------------------------------------------------


def test_ssd300_on_vgg_is_torchvisions() -> None:
    theirs = ssd300_vgg16(weights=None, weights_backbone=None).eval()
    ours = _built("ssd300_vgg16")
    published = torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1.meta["num_params"]
    assert sum(value.numel() for value in ours.parameters()) == published
    assert _shapes(ours) == _shapes(theirs)
    ours.load_state_dict(theirs.state_dict())

    # What torchvision's own detector gives its decoder, for a picture that needs no resizing.
    given: dict[str, torch.Tensor] = {}
    theirs.head.register_forward_hook(lambda _module, _inputs, output: given.update(output))
    picture = zoo.samples("ssd300_vgg16", 1, 2)[0]
    _outputs(theirs, [torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255])
    image = torch.from_numpy(prepare(picture, ssd300._CAFFE))
    for found, name in zip(_outputs(ours, image), OUTPUTS["ssd300_vgg16@raw"], strict=True):
        torch.testing.assert_close(found, given[name], rtol=1e-4, atol=1e-4)


def test_vggs_boxes_are_torchvisions() -> None:
    generator = ssd300_vgg16(weights=None, weights_backbone=None).anchor_generator
    maps = [torch.zeros(1, 1, cells, cells) for _, cells in _CELLS]
    (corners,) = generator(image_list.ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), maps)
    boxes = ssd300_boxes.torchvision_boxes()
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    np.testing.assert_allclose(np.concatenate([low, high], 1) * 300, corners.numpy(), atol=1e-3)


def test_vggs_columns_and_boxes_are_read_as_torchvision_means_them() -> None:
    how, labels = ssd300.decoding("ssd300_vgg16"), ssd300.labels("ssd300_vgg16")
    locations, logits = np.zeros((1, 8732, 4), np.float32), np.zeros((1, 8732, 91), np.float32)
    logits[..., 0] = 20
    # COCO's ids: 1 is a person, 90 a toothbrush. The last level has one cell; the first shape of it is square.
    for box, column in ((8728, 1), (5776, 90)):
        logits[0, box, column] = 40 - column / 100
    found = ssd.detect(locations, logits, how.raw(), how.size)
    assert [labels[label] for label in found.labels[0, : found.counts[0]]] == ["person", "toothbrush"]
    square, corner = (0.5 - 0.435) * 300, 8 + 22.5
    np.testing.assert_allclose(found.boxes[0, 0], [square, square, 300 - square, 300 - square], atol=1e-3)
    np.testing.assert_allclose(found.boxes[0, 1], [0, 0, corner, corner], atol=1e-3)


# --- Default boxes and labels -------------------------------------------------------------------


def test_default_boxes_are_the_published_ones() -> None:
    boxes = ssd300_boxes.dboxes300_coco()
    assert boxes.shape == (8732, 4) and boxes.min() > 0 and boxes.max() == 1
    assert sum(level.boxes * level.cells**2 for level in ssd300_networks.LEVELS) == 8732
    step, middle = 8 / 300, np.sqrt(21 * 45) / 300
    for index, wanted in {
        0: (step / 2, step / 2, 0.07, 0.07),
        # Along a row, then down, then the next shape: square, the larger square, lying, standing.
        1: (1.5 * step, step / 2, 0.07, 0.07),
        38: (step / 2, 1.5 * step, 0.07, 0.07),
        1444: (step / 2, step / 2, middle, middle),
        2 * 1444: (step / 2, step / 2, 0.07 * np.sqrt(2), 0.07 / np.sqrt(2)),
        3 * 1444: (step / 2, step / 2, 0.07 / np.sqrt(2), 0.07 * np.sqrt(2)),
        # The first of each level.
        5776: (8 / 300, 8 / 300, 0.15, 0.15),
        7942: (16 / 300, 16 / 300, 0.33, 0.33),
        8542: (32 / 300, 32 / 300, 0.51, 0.51),
        8692: (50 / 300, 50 / 300, 0.69, 0.69),
        # Ratio 3 of the second level, lying, in its last cell: (19 - 0.5) * 16 pixels.
        5776 + 5 * 361 - 1: (296 / 300, 296 / 300, 0.15 * np.sqrt(3), 0.15 / np.sqrt(3)),
        # The third level's last cell lies outside, and is clamped.
        7942 + 99: (1, 1, 0.33, 0.33),
        8728: (0.5, 0.5, 0.87, 0.87),
        8729: (0.5, 0.5, np.sqrt(261 * 315) / 300, np.sqrt(261 * 315) / 300),
        8730: (0.5, 0.5, 1, 0.87 / np.sqrt(2)),
        8731: (0.5, 0.5, 0.87 / np.sqrt(2), 1),
    }.items():
        np.testing.assert_allclose(boxes[index], wanted, rtol=1e-12, err_msg=str(index))


def test_labels_are_cocos() -> None:
    labels = ssd300.labels("ssd300_resnet34")
    assert labels == ssd300.labels("ssd300_resnet50")
    assert (len(labels), labels[0], labels[-1], labels[11]) == (80, "person", "toothbrush", "stop sign")
    by_id = ssd300.labels("ssd300_vgg16")
    assert (len(by_id), by_id[12], by_id.count("N/A")) == (90, "stop sign", 10)
    assert not any(re.search(r"background|N/A", label) for label in labels)
