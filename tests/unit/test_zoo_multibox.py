"""The training side of the detector: matching, encoding and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from controller.zoo import draw, multibox
from controller.zoo.anchors import default_boxes
from controller.zoo.networks import ShapesClassifier, ShapesSsd, fold_norms
from targets.base import Postprocess
from targets.detection import ssd

ANCHORS = torch.from_numpy(default_boxes()).float()

box = st.tuples(st.floats(0, 0.7), st.floats(0, 0.7), st.floats(0.05, 0.3), st.floats(0.05, 0.3)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(box, min_size=1, max_size=5))
def test_what_is_encoded_for_training_is_decoded_on_the_controller(boxes: list[tuple[float, ...]]) -> None:
    wanted = np.resize(np.array(boxes), (len(ANCHORS), 4))
    encoded = multibox.encode(torch.from_numpy(wanted), ANCHORS.double())
    anchors: Any = tuple(map(tuple, default_boxes().tolist()))
    post = Postprocess("ssd", anchors=anchors, variances=multibox.VARIANCES)
    decoded = ssd.decode(encoded.numpy()[None].astype(np.float32), post, (1, 1))
    np.testing.assert_allclose(decoded[0], wanted, atol=1e-6)


def _truth(boxes: list[tuple[float, ...]], labels: list[int]) -> multibox.Truth:
    padding = draw.MAX_SHAPES - len(boxes)
    return multibox.Truth(
        torch.tensor([[*boxes, *[(0.0, 0.0, 1.0, 1.0)] * padding]]), torch.tensor([[*labels, *[-1] * padding]])
    )


@given(st.lists(box, min_size=1, max_size=5))
def test_every_object_is_taught_and_padding_is_not(boxes: list[tuple[float, ...]]) -> None:
    labels = list(range(len(boxes)))
    chosen, classes = multibox.match(ANCHORS, _truth(boxes, labels))
    taught = set(classes[classes > 0].tolist())
    best = multibox.overlaps(multibox.corners(ANCHORS), torch.tensor(boxes)).argmax(0).tolist()
    # Two objects may have the same best default box: one of them gets it.
    assert len(taught) >= len(set(best))
    assert taught <= {label + 1 for label in labels}
    assert chosen.max() < len(boxes) or (classes[chosen >= len(boxes)] <= 0).all()


def test_default_boxes_match_shapes_of_every_size() -> None:
    matched = []
    for one in draw.scenes(21, 60):
        boxes = torch.from_numpy(one.boxes / draw.SCENE_SIZE).float()
        matched += multibox.overlaps(multibox.corners(ANCHORS), boxes).max(0).values.tolist()
    assert min(matched) > 0.3 and np.mean(np.array(matched) > 0.5) > 0.95


def test_the_loss_is_least_for_the_truth() -> None:
    truth = _truth([(0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.95)], [3, 7])
    chosen, classes = multibox.match(ANCHORS, truth)
    locations = multibox.encode(truth.boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), ANCHORS)
    logits = 20.0 * torch.nn.functional.one_hot(classes.clamp(min=0), 13).float()
    right = multibox.multibox_loss(locations, logits, ANCHORS, truth)
    assert 0 <= right < 1e-3
    assert multibox.multibox_loss(locations + 1, logits, ANCHORS, truth) > 1
    assert multibox.multibox_loss(locations, -logits, ANCHORS, truth) > 1


def test_networks_give_what_their_docs_say_and_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    for network, size, shapes in (
        (ShapesClassifier(), 64, [(2, 12)]),
        (ShapesSsd(), 128, [(2, len(ANCHORS), 4), (2, len(ANCHORS), 13)]),
    ):
        image = torch.randn(2, 3, size, size)
        network.train()(image)  # so that the norms have statistics of their own
        network.eval()
        before = network(image)
        after = fold_norms(network)(image)
        pairs = [(before, after)] if torch.is_tensor(before) else list(zip(before, after, strict=True))
        assert [tuple(a.shape) for a, _ in pairs] == shapes
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert sum(p.numel() for p in network.parameters()) * 4 < 2_000_000
