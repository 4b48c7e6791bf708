"""Preparing pictures, held against torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from targets.base import FleetError, Preprocess, TensorSpec
from targets.pictures import bilinear
from targets.pictures.place import place
from targets.pictures.prepare import batch, batch_size, prepare, shape


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (100, 80), (224, 900)])
def test_crop_is_torchvisions_evaluation_transform(size: tuple[int, int]) -> None:
    from torchvision import transforms

    image = _gradient(*size)
    theirs = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )(image)
    ours = prepare(image, Preprocess(size=(224, 224), resize="crop", mean=MEAN, std=STD))
    assert ours.shape == (1, 3, 224, 224) and ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-5)


def test_stretch_is_torchvisions_resize_to_both_sides() -> None:
    from torchvision import transforms

    image = _gradient(91, 47)
    theirs = transforms.Compose([transforms.Resize((30, 50)), transforms.ToTensor()])(image)
    ours = prepare(image, Preprocess(size=(30, 50)))
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-6)


def test_colours_and_layouts() -> None:
    image = _gradient(8, 6)
    plain = prepare(image, Preprocess(size=(6, 8)))
    assert np.array_equal(plain[:, ::-1], prepare(image, Preprocess(size=(6, 8), colour="BGR")))
    last = prepare(image, Preprocess(size=(6, 8), layout="NHWC"))
    assert last.shape == (1, 6, 8, 3) and last.flags.c_contiguous
    assert np.array_equal(plain.transpose(0, 2, 3, 1), last)
    grey = prepare(image, Preprocess(size=(6, 8), colour="L", mean=(0.5,), std=(0.5,)))
    assert grey.shape == (1, 1, 6, 8)
    np.testing.assert_allclose(grey[0, 0], np.asarray(image.convert("L")) / 255 * 2 - 1, atol=1e-6)


def test_a_crop_that_is_not_square_takes_the_middle() -> None:
    image = Image.new("RGB", (100, 100), "black")
    image.paste((255, 255, 255), (40, 40, 60, 60))
    values = prepare(image, Preprocess(size=(20, 60), resize="crop", crop_ratio=1.0))
    assert values.shape == (1, 3, 20, 60)
    columns = np.flatnonzero(values[0, 0, 10] > 0.5)
    assert (columns[0], columns[-1]) == (24, 35)


# --- Detectors ----------------------------------------------------------------------------------


def _noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 2, *[st.integers(65, 200)] * 2))
def test_bilinear_is_torchs(sides: tuple[int, int, int, int]) -> None:
    """Of a network's size: for results of few pixels torch has other code, which rounds positions otherwise."""
    height, width, new_height, new_width = sides
    values = np.random.default_rng(sides).standard_normal((height, width, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(values.transpose(2, 0, 1)[None].copy()), (new_height, new_width), mode="bilinear"
    )[0].numpy()
    ours = bilinear.resize(values, (new_height, new_width))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    window = (new_height // 3, new_height), (0, new_width - new_width // 3)
    part = bilinear.resize(values, (new_height, new_width), *window)
    np.testing.assert_array_equal(part, ours[:, slice(*window[0]), slice(*window[1])])


@pytest.mark.parametrize("side", [300, 800])
@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (333, 517), (1000, 31), (31, 1000), (300, 300), (97, 61), (1920, 1080), (1, 1)]
)
def test_fit_is_torchvisions_detection_transform(size: tuple[int, int], side: int) -> None:
    image = _noise(*size)
    given = torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))
    theirs, _ = GeneralizedRCNNTransform(side, side, MEAN, STD).eval()([given])
    padded = -(-side // 32) * 32
    preprocess = Preprocess(
        size=(side, side), resize="fit", filter="bilinear", canvas=(padded, padded), mean=MEAN, std=STD
    )
    specs = [TensorSpec("images", (2, 3, padded, padded), "float32"), TensorSpec("sizes", (2, 2), "float32")]
    images, sizes = batch([image], preprocess, specs)
    assert sizes.tolist() == [list(map(float, theirs.image_sizes[0]))] * 2
    wanted = theirs.tensors[0].numpy()
    np.testing.assert_allclose(images[0][:, : wanted.shape[1], : wanted.shape[2]], wanted, atol=1e-6)
    assert np.array_equal(images[0], images[1]), "the batch is filled up"
    height, width = theirs.image_sizes[0]
    assert not images[0][:, height:].any() and not images[0][:, :, width:].any()


def test_stretched_bilinear_is_torchvisions_transform_of_single_shot_detectors() -> None:
    image = _noise(500, 333)
    given = torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))
    transform = GeneralizedRCNNTransform(300, 300, MEAN, STD, size_divisible=1, fixed_size=(300, 300))
    theirs, _ = transform.eval()([given])
    ours = prepare(image, Preprocess(size=(300, 300), filter="bilinear", mean=MEAN, std=STD))
    np.testing.assert_allclose(ours, theirs.tensors.numpy(), atol=1e-6)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 900))
def test_what_fits_fits(width: int, height: int, inside_height: int, inside_width: int) -> None:
    where = place((width, height), Preprocess(size=(inside_height, inside_width), resize="fit"))
    wide, high = where.resized
    assert where.kept == where.resized and 1 <= wide <= inside_width and 1 <= high <= inside_height
    # It could not be larger, but for what is rounded down.
    assert wide >= inside_width - 1 or high >= inside_height - 1


def test_a_picture_too_long_to_crop_is_refused_before_it_is_made_larger() -> None:
    with pytest.raises(FleetError) as caught:
        prepare(Image.new("L", (1, 300_000)), Preprocess(size=(224, 224), resize="crop"))
    assert caught.value.code == "bad-picture"
    assert prepare(Image.new("L", (1, 300_000)), Preprocess(size=(24, 24), resize="fit")).shape == (1, 3, 24, 24)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(8, 8), mean=(0.5,), std=(1.0,)),
        Preprocess(size=(8, 8), std=(1.0, 0.0, 1.0)),
        Preprocess(size=(8, 8), colour="L"),
        Preprocess(size=(0, 8)),
        Preprocess(size=(8, 8), canvas=(4, 8)),
        Preprocess(size=(8, 8), resize="crop", crop_ratio=0.0),
    ],
)
def test_rules_that_cannot_be_are_named(preprocess: Preprocess) -> None:
    with pytest.raises(FleetError) as caught:
        prepare(_gradient(), preprocess)
    assert caught.value.code == "bad-preprocess"


def test_inputs_that_no_picture_fills_are_named() -> None:
    preprocess = Preprocess(size=(8, 8))
    one = TensorSpec("x", (2, 3, 8, 8), "float32")
    sizes = TensorSpec("sizes", (2, 2), "float32")
    assert batch_size([one, sizes], preprocess, "net") == 2 and shape(preprocess) == (3, 8, 8)
    for specs in ([], [sizes], [one, one], [one, sizes, sizes]):
        with pytest.raises(FleetError, match="'net' does not take a picture"):
            batch_size(specs, preprocess, "net")
    with pytest.raises(FleetError, match="nothing says how"):
        batch_size([one], None, "net")
    for specs, code in (
        ([TensorSpec("x", (1, 3, 9, 8), "float32")], "bad-preprocess"),
        ([one, TensorSpec("sizes", (2, 3), "float32")], "bad-preprocess"),
        ([TensorSpec("x", (1, 3, 8, 8), "float7")], "bad-dtype"),
    ):
        with pytest.raises(FleetError) as caught:
            batch([_gradient()], preprocess, specs)
        assert caught.value.code == code
