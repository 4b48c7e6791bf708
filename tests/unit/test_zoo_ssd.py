"""Single-shot detectors: boxes found inside of the network are those found outside, and those of the originals."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch import nn
from torchvision.models.detection import ssd300_vgg16

from controller import zoo
from controller.home import Home
from controller.zoo import card, gluon_dense, gluon_ssd, networks, ssd, ssd300
from targets import pt2_model
from targets.base import FleetError
from targets.detection import ssd as outside
from targets.pictures.prepare import prepare

DECODINGS = {
    **{name: ssd300.decoding(name) for name in ssd300.NETWORKS},
    **{name: gluon_ssd.decoding(gluon_dense.SPECS[name]) for name in gluon_ssd.NETWORKS},
    "shapes-ssd": networks.shapes_ssd_decoding(),
    # What none of the above has: pixels that are not square, no limit of sizes, boxes last, few of all classes.
    "pixels": ssd.Decoding(
        networks.shapes_ssd_decoding().default_boxes,
        (96, 160),
        score_threshold=0.02,
        iou_threshold=0.3,
        most=40,
        total=60,
        per_class=10,
        variances=(0.1, 0.2, 0.3, 0.15),
        boxes_last=True,
        clip=True,
        coordinates="pixels",
        shifted=True,
    ),
}


class Recorded(nn.Module):  # type: ignore[misc]
    """A dense part that gives what it was given."""

    def __init__(self, locations: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.locations, self.logits = torch.from_numpy(locations), torch.from_numpy(logits)

    def forward(self, _image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.locations, self.logits


@pytest.mark.parametrize("name", sorted(DECODINGS))
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    columns=st.sampled_from([2, 5, 21]),
    certain=st.sampled_from([0.5, 3.0]),
)
def test_both_forms_find_the_same(name: str, seed: int, batch: int, columns: int, certain: float) -> None:
    how = DECODINGS[name]
    noise = np.random.default_rng(seed)
    count = len(how.default_boxes)
    locations = noise.normal(0, 1.5, (batch, count, 4)).astype(np.float32)
    # Each in a place of its own among 100,000: no two scores are the same, whatever the last digit of an exponential.
    logits = noise.normal(0, certain, (batch, count, columns))
    logits = (np.round(logits * 1e4) / 1e4).astype(np.float32)
    if how.boxes_last:
        locations, logits = (np.ascontiguousarray(each.transpose(0, 2, 1)) for each in (locations, logits))
    inside = ssd.Ssd(Recorded(locations, logits), how)(torch.zeros(1))
    # Through JSON, as a manifest brings it to whoever decodes.
    raw = msgspec.json.decode(msgspec.json.encode(how.raw()), type=type(how.raw()))
    found = outside.detect(locations, logits, raw, how.size)
    assert found.counts.tolist() == inside[3].tolist()
    for row in range(batch):
        _same(found.boxes[row], found.scores[row], found.labels[row], *(each[row].numpy() for each in inside[:3]))


def _same(boxes: Any, scores: Any, labels: Any, other_boxes: Any, other_scores: Any, other_labels: Any) -> None:
    """The same rows in the same order, but for those whose scores are the same to the last digits."""
    np.testing.assert_allclose(scores, other_scores, rtol=1e-5)
    for one, other in ((boxes, other_boxes), (labels[:, None], other_labels[:, None])):
        swapped = ~np.isclose(one, other, rtol=1e-4, atol=1e-4).all(-1)
        for row in np.flatnonzero(swapped):
            near = np.isclose(scores, scores[row], rtol=1e-5)
            assert np.isclose(one[row], other[near], rtol=1e-4, atol=1e-4).all(-1).any(), row


def test_outputs_of_other_shapes_are_refused() -> None:
    raw = networks.shapes_ssd_decoding().raw()
    good = np.zeros((1, 672, 4), np.float32), np.zeros((1, 672, 13), np.float32)
    for wrong in (
        (good[0][:, :-1], good[1]),
        (good[0], good[1][:, :-1]),
        (good[0][..., :3], good[1]),
        (good[0], good[1][..., :1]),
        (good[0][0], good[1]),
        (np.repeat(good[0], 2, 0), good[1]),
        tuple(each.transpose(0, 2, 1) for each in good),
    ):
        with pytest.raises(FleetError, match=r"\(N, 672, 4\)") as caught:
            outside.detect(*wrong, raw, (128, 128))
        assert caught.value.code == "bad-output"
    assert outside.detect(*good, raw, (128, 128)).counts.tolist() == [100]


def test_huge_offsets_are_no_boxes_that_nobody_can_compare() -> None:
    how = networks.shapes_ssd_decoding()
    locations = np.full((1, 672, 4), 1e6, np.float32)
    corners = outside.decode(locations, how.raw(), how.size)
    assert np.isfinite(corners).all()
    sides = corners[..., 2:] - corners[..., :2]
    np.testing.assert_allclose(sides / how.default_boxes[:, 2:], 1000 / 16, rtol=0.05)


# --- shapes-ssd ---------------------------------------------------------------------------------


def test_the_card_of_shapes_ssd_says_its_decoding() -> None:
    assert card.read(card.FOLDER / "shapes-ssd.json").postprocess == networks.shapes_ssd_decoding().raw()


def test_shapes_ssd_finds_the_same_in_both_forms(tmp_path: Path) -> None:
    from controller.zoo.evaluate import onnx_session

    home = Home.find(tmp_path)
    raw, whole = zoo.source("shapes-ssd", "", home), zoo.source("shapes-ssd@boxes", "", home)
    assert (raw.format, whole.format) == ("onnx", "pt2")
    assert whole.origin == "zoo:shapes-ssd@boxes weights=committed"
    assert tuple(spec.name for spec in whole.outputs) == ssd.OUTPUTS
    assert raw.preprocess is not None and raw.postprocess is not None and whole.postprocess is not None
    assert (whole.postprocess.kind, whole.preprocess, whole.labels) == ("detections", raw.preprocess, raw.labels)
    pictures = np.concatenate([prepare(picture, raw.preprocess) for picture in zoo.samples("shapes-ssd", 3, 11)])
    run = onnx_session(Path(raw.path))
    outputs = [run(pictures[row : row + 1]) for row in range(3)]
    found = outside.detect(*(np.concatenate(each) for each in zip(*outputs, strict=True)), raw.postprocess, (128, 128))
    inside = pt2_model.read(Path(whole.path)).load().module()(torch.from_numpy(pictures))
    assert found.counts.tolist() == inside[3].tolist() and found.counts.min() > 0
    for ours, theirs in zip(found[:3], inside[:3], strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    # The same words name a file, and random weights.
    path = tmp_path / "own.onnx"
    path.write_bytes(Path(raw.path).read_bytes())
    again = zoo.source("shapes-ssd@boxes", str(path), home)
    assert again.origin == "zoo:shapes-ssd@boxes weights=file:own.onnx"
    drawn = zoo.source("shapes-ssd@boxes", "random:1", home)
    assert drawn.sha256 != again.sha256


@pytest.mark.parametrize(
    "name", ["shapes-ssd@raw", "shapes-classifier@boxes", "ssd300_vgg16@boxes", "ssd300_vgg16@300"]
)
def test_variants_that_there_are_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        zoo.source(name, "random:0", Home.find(tmp_path))
    assert caught.value.code == "unknown-model"


# --- torchvision's ------------------------------------------------------------------------------


@cache
def _vgg() -> Any:
    """torchvision's detector with weights that find something: a few hundred boxes of some classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = ssd300_vgg16(weights=None, weights_backbone=None).eval()
        theirs.load_state_dict(ssd300.build("ssd300_vgg16").state_dict())
    # Most is background: 20 classes are told from it here and there.
    with torch.no_grad():
        for convolution in theirs.head.classification_head.module_list:
            bias = convolution.bias.view(-1, 91)
            bias[:, 0] += 4
            bias[:, 21:] -= 20
    return theirs


def test_ssd300_vgg16_finds_what_torchvision_finds(tmp_path: Path) -> None:
    theirs = _vgg()
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    source = zoo.source("ssd300_vgg16", str(path), Home.find(tmp_path))
    path.unlink()
    assert source.preprocess is not None and source.postprocess is not None
    assert (source.postprocess.kind, source.postprocess.coordinates) == ("detections", "pixels")
    ours = pt2_model.read(Path(source.path)).load().module()
    Path(source.path).unlink()
    noise = np.random.default_rng(5)
    drawn = [np.asarray(picture) for picture in zoo.samples("ssd300_vgg16", 2, 3)]
    # Another size than the network's, in both directions.
    drawn += [
        noise.integers(0, 256, (120, 400, 3), dtype=np.uint8),
        noise.integers(0, 256, (500, 333, 3), dtype=np.uint8),
    ]
    found = 0
    for pixels in drawn:
        height, width = pixels.shape[:2]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            (wanted,) = theirs([image])
            given = ours(torch.from_numpy(prepare(Image.fromarray(pixels), source.preprocess)))
        boxes, scores, labels, count = (each[0].numpy() for each in given)
        assert len(wanted["scores"]) == count
        found += int(count)
        boxes = boxes * np.array([width / 300, height / 300] * 2, np.float32)
        # torchvision's labels count the background.
        _same(
            boxes[:count],
            scores[:count],
            labels[:count] + 1,
            *(wanted[each].numpy() for each in ("boxes", "scores", "labels")),
        )
    assert found > 50


def test_torchvisions_thresholds_are_its_own() -> None:
    theirs, how = _vgg(), ssd300.decoding("ssd300_vgg16")
    assert (how.score_threshold, how.iou_threshold) == (theirs.score_thresh, theirs.nms_thresh)
    assert (how.per_class, how.most) == (theirs.topk_candidates, theirs.detections_per_img)
    assert how.max_log_size == theirs.box_coder.bbox_xform_clip == math.log(1000 / 16)
    assert np.allclose(how.variances, 1 / np.array(theirs.box_coder.weights))
