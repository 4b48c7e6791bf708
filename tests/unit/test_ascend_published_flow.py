"""SSD-ResNet34 as it was published for Ascend: pictures become the same numbers, numbers the same rows of detections.

What the published programs (``ssd_preprocess.py``, ``ssd_postprocess.py`` of ModelZoo-PyTorch) do is written down
step by step in `_published`, by torchvision's own operators, which share no code with what is tested.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from controller.zoo import ssd300
from controller.zoo.ssd300_boxes import dboxes300_coco
from targets.pictures.answers import detect
from targets.pictures.place import place
from targets.pictures.prepare import prepare
from targets.published import published

_POST = ssd300.raw("ssd300_resnet34", ssd300.decoding("ssd300_resnet34"))
_PRE = ssd300._IMAGENET


def _published(locations: np.ndarray, logits: np.ndarray, width: int, height: int) -> np.ndarray:
    """Rows of x, y, width, height, score, class from 0; best first."""
    ploc = torch.from_numpy(locations).permute(0, 2, 1)
    plabel = torch.from_numpy(logits).permute(0, 2, 1)
    default = torch.from_numpy(dboxes300_coco().astype(np.float32)).clamp(0, 1)
    xy = 0.1 * ploc[..., :2] * default[:, 2:] + default[:, :2]
    wh = (0.2 * ploc[..., 2:]).exp() * default[:, 2:]
    boxes = torch.cat([xy - 0.5 * wh, xy + 0.5 * wh], -1)[0]
    scores = plabel.softmax(-1)[0, :, 1:]
    best = scores.max(1).values
    keep = best > 0.05
    boxes, scores, best = boxes[keep], scores[keep], best[keep]
    if len(best) > 200:
        order = best.topk(200).indices
        boxes, scores = boxes[order], scores[order]
    every = boxes.repeat_interleave(80, 0)
    labels = torch.arange(80).repeat(len(boxes))
    flat = scores.reshape(-1)
    kept = torchvision.ops.batched_nms((every + 1) / 2, flat, labels, 0.5)
    rows = torch.cat([(2 * ((every + 1) / 2) - 1)[kept], flat[kept, None], labels[kept, None].float()], 1).numpy()
    rows = rows[np.argsort(-rows[:, 4], kind="stable")][:200]
    scale = np.array([width, height, width, height], np.float32)
    corners = rows[:, :4] * scale
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2], rows[:, 4:]], 1).astype(np.float32)


def _random(seed: int, spread: float, background: float) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    logits = noise.standard_normal((1, 81, 8732)).astype(np.float32) * spread
    logits[:, 0] += background
    return noise.standard_normal((1, 4, 8732)).astype(np.float32) * 2, logits


@pytest.mark.parametrize(
    ("seed", "spread", "background"),
    # Thousands of boxes above the threshold, some hundred, a dozen (which torchvision suppresses in another way), none.
    [(0, 1.0, 0.0), (1, 2.0, 6.5), (2, 1.5, 11.6), (3, 0.5, 12.0)],
)
def test_boxes_are_those_of_the_published_post_processing(seed: int, spread: float, background: float) -> None:
    locations, logits = _random(seed, spread, background)
    width, height = 640, 427
    where = place((width, height), _PRE)
    found = detect([locations, logits], (), _POST, where, classes=80)
    wanted = _published(locations, logits, width, height)
    assert len(found) == len(wanted)
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    # Scores may differ in the last bit, and then two of a like may change places: rows are matched by what they are.
    np.testing.assert_allclose(found.scores, wanted[:, 4], rtol=1e-5, atol=1e-7)
    rows = sorted(zip(found.labels.tolist(), boxes.tolist(), strict=True), key=lambda one: (one[0], one[1]))
    others = sorted(
        zip(wanted[:, 5].astype(int).tolist(), wanted[:, :4].tolist(), strict=True), key=lambda one: (one[0], one[1])
    )
    assert [label for label, _ in rows] == [label for label, _ in others]
    if rows:
        np.testing.assert_allclose([box for _, box in rows], [box for _, box in others], rtol=1e-4, atol=2e-2)


def test_random_outputs_reach_every_branch_of_it() -> None:
    counts = []
    for seed, spread, background in [(0, 1.0, 0.0), (1, 2.0, 6.5), (2, 1.5, 11.6), (3, 0.5, 12.0)]:
        _, logits = _random(seed, spread, background)
        best = torch.from_numpy(logits).softmax(1)[0, 1:].max(0).values
        counts.append(int((best > 0.05).sum()))
    many, some, few, none = counts
    assert many > 1000 and some > 200 and 0 < few <= 12 and none == 0


def test_the_published_rule_is_not_mlperfs() -> None:
    locations, logits = _random(2, 1.5, 11.6)
    where = place((640, 427), _PRE)
    ours = detect([locations, logits], (), _POST, where, classes=80)
    mlperf = detect([locations, logits], (), ssd300.decoding("ssd300_resnet34").raw(), where, classes=80)
    # A box that is worth keeping stands for all 80 classes; MLPerf's thresholds look at each class alone.
    assert len(ours) == 200 and len(mlperf) == 4


def test_boxes_reach_beyond_the_picture_as_published() -> None:
    locations, logits = _random(0, 1.0, 0.0)
    found = detect([locations, logits], (), _POST, place((100, 80), _PRE), classes=80)
    assert found.boxes.min() < 0 and found.boxes[:, 2].max() > 100


@pytest.mark.parametrize("size", [(640, 427), (300, 300), (51, 33), (333, 500)])
def test_pictures_become_the_published_bytes(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(7)
    picture = Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    steps = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize((300, 300)),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    wanted = steps(picture).numpy()
    prepared = prepare(picture, _PRE)
    prepared.tofile(tmp_path / "picture.bin")
    assert (tmp_path / "picture.bin").stat().st_size == 1_080_000
    np.testing.assert_allclose(prepared[0], wanted, rtol=0, atol=1e-6)


def test_published_throughput_is_there() -> None:
    table = published("ascend", "ssd300_resnet34")
    assert table is not None
    found = {(row.chip, row.batch): row.throughput for row in table.rows}
    assert len(found) == 12 and found["310", 1] == 711.356 and found["310", 16] == 862.468
    assert found["310P", 1] == 960.2 and found["310P", 8] == 1550.3
