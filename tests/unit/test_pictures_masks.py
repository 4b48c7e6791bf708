"""Masks in the original picture, held against torchvision's, and COCO's run lengths against pycocotools'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from targets.base import Preprocess
from targets.pictures import masks
from targets.pictures.found import Mask
from targets.pictures.masks import Patch
from targets.pictures.place import place


def _whole(patch: Patch, size: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(size[::-1], patch.on.dtype)
    whole[patch.top :, patch.left :][: patch.on.shape[0], : patch.on.shape[1]] = patch.on
    return whole


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 120)] * 2),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from([7, 14, 28]),
    st.integers(0, 1000),
)
def test_pasting_is_torchvisions(
    size: tuple[int, int], edges: tuple[float, float, float, float], cells: int, seed: int
) -> None:
    x0, x1 = sorted(edge * size[0] for edge in edges[:2])
    y0, y1 = sorted(edge * size[1] for edge in edges[2:])
    box = np.array([x0, y0, x1, y1])
    mask = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    theirs = paste_masks_in_image(
        torch.from_numpy(mask)[None, None], torch.from_numpy(box[None].astype(np.float32)), size[::-1]
    )[0, 0].numpy()
    ours = masks.paste(mask, box, size)
    whole = np.zeros(size[::-1], np.float32)
    whole[ours.top :, ours.left :][: ours.values.shape[0], : ours.values.shape[1]] = ours.values
    # For results of few pixels torch rounds positions otherwise.
    np.testing.assert_allclose(whole, theirs, atol=1e-5)
    on = _whole(masks.within_box(mask, box, size), size)
    sure = np.abs(theirs - 0.5) > 1e-5
    assert np.array_equal(on[sure], (theirs > 0.5)[sure])


def test_a_large_mask_is_torchvisions_to_the_last_digits() -> None:
    noise = np.random.default_rng(0)
    mask, box = noise.random((28, 28)).astype(np.float32), np.array([113.2, 40.7, 590.1, 471.3])
    theirs = paste_masks_in_image(
        torch.from_numpy(mask)[None, None], torch.from_numpy(box[None].astype(np.float32)), (480, 640)
    )[0, 0].numpy()
    ours = masks.paste(mask, box, (640, 480))
    inside = theirs[ours.top :, ours.left :][: ours.values.shape[0], : ours.values.shape[1]]
    np.testing.assert_allclose(ours.values, inside, atol=1e-6)
    assert theirs.sum() == pytest.approx(float(inside.sum()), rel=1e-5), "nothing is outside"


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 12)] * 2), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_run_lengths_are_cocos(seed: int, size: tuple[int, int], density: float) -> None:
    noise = np.random.default_rng(seed)
    width, height = size
    wide, high = noise.integers(0, width + 1), noise.integers(0, height + 1)
    patch = Patch(
        int(noise.integers(0, width - wide + 1)),
        int(noise.integers(0, height - high + 1)),
        noise.random((high, wide)) < density,
    )
    encoded = masks.encode(patch, size)
    whole = _whole(patch, size)
    assert np.array_equal(masks.decode(encoded), whole)
    assert all(count > 0 for count in encoded.counts[1:]), "no run is empty but the first"
    compressed = coco.frPyObjects({"size": list(encoded.size), "counts": encoded.counts}, height, width)
    assert np.array_equal(coco.decode(compressed), whole)
    assert compressed["counts"] == coco.encode(np.asfortranarray(whole.astype(np.uint8)))["counts"]


def test_run_lengths_of_another_size_are_refused() -> None:
    for counts in ([5], [-1, 7], [3, 4]):
        with pytest.raises(ValueError, match="run lengths"):
            masks.decode(Mask(size=(2, 3), counts=counts))


@pytest.mark.parametrize("resize", ["fit", "stretch", "crop"])
@pytest.mark.parametrize("size", [(640, 480), (123, 217), (300, 300)])
def test_masks_of_the_whole_input_come_back_where_they_were(size: tuple[int, int], resize: str) -> None:
    canvas = (320, 320) if resize == "fit" else (0, 0)
    where = place(size, Preprocess(size=(300, 300), resize=resize, canvas=canvas))  # type: ignore[arg-type]
    mask = np.zeros(where.canvas[::-1], np.uint8)
    mask[60:140, 90:150] = 255
    patch = masks.of_input(mask, where)
    whole = _whole(patch, size)
    scale = np.array(where.original) / np.array(where.resized)
    x0, y0 = (np.array([90, 60]) + where.corner) * scale
    x1, y1 = (np.array([150, 140]) + where.corner) * scale
    rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
    np.testing.assert_allclose(
        (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), (x0, y0, x1, y1), atol=float(scale.max()) / 2 + 0.51
    )
    assert patch.on.size <= 1.2 * whole.sum() + 2000, "only the part with something is made"
    # As many pixels as torch gives for the whole of it.
    inside = np.zeros(where.resized[::-1], np.float32)
    inside[where.corner[1] :, where.corner[0] :][: where.kept[1], : where.kept[0]] = mask[
        : where.kept[1], : where.kept[0]
    ]
    theirs = torch.nn.functional.interpolate(torch.from_numpy(inside)[None, None], size[::-1], mode="bilinear")[0, 0]
    assert np.array_equal(whole, theirs.numpy() > 127.5)


def test_128_of_256_is_half_and_belongs_to_a_mask() -> None:
    where = place((4, 3), Preprocess(size=(3, 4)))
    mask = np.array([[127, 128, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert np.array_equal(_whole(masks.of_input(mask, where), (4, 3)), mask >= 128)
    assert not masks.of_input(np.zeros((3, 4), np.uint8), where).on.any()
