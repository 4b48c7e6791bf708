"""Static AIPP: what a picture is before the network, held against arithmetic done here."""

from __future__ import annotations

import numpy as np
import pytest

from targets.ascend.sim import aipp
from targets.ascend.sim.atc_messages import AtcError
from targets.ascend.sim.om import Aipp

#: BT.601 of JPEG files, in 256ths.
JPEG = """csc_switch: true
matrix_r0c0: 256 matrix_r0c1: 0 matrix_r0c2: 359
matrix_r1c0: 256 matrix_r1c1: -88 matrix_r1c2: -183
matrix_r2c0: 256 matrix_r2c1: 454 matrix_r2c2: 0
input_bias_0: 0 input_bias_1: 128 input_bias_2: 128"""


def block(text: str) -> Aipp:
    (found,) = aipp.parse(f"aipp_op {{ aipp_mode: static {text} }}")
    return found


def test_luma_and_chroma_become_colours() -> None:
    found = block(f"input_format: YUV420SP_U8 src_image_size_w: 4 src_image_size_h: 2 {JPEG}")
    assert aipp.input_shape(found, (1, 3, 2, 4), "NCHW") == (1, 3, 4, 1)
    picture = np.empty((1, 3, 4, 1), np.uint8)
    picture[0, :2] = 100
    # A grey pair of pixels, then a reddish one.
    picture[0, 2, :, 0] = [128, 128, 128, 228]
    values = aipp.apply(found, picture, (1, 3, 2, 4), "NCHW")
    np.testing.assert_array_equal(values[0, :, 0, 0], [100, 100, 100])
    np.testing.assert_array_equal(values[0, :, 1, 3], [(25600 + 359 * 100) >> 8, (25600 - 183 * 100) >> 8, 100])


def test_stages_come_in_their_order() -> None:
    found = block(
        "input_format: RGB888_U8 rbuv_swap_switch: true crop: true load_start_pos_w: 1 crop_size_w: 2 crop_size_h: 2 "
        "src_image_size_w: 3 src_image_size_h: 2 mean_chn_0: 1 min_chn_1: 0.5 var_reci_chn_2: 2 "
        "padding: true left_padding_size: 1 top_padding_size: 2"
    )
    assert aipp.input_shape(found, (1, 3, 4, 3), "NCHW") == (1, 2, 3, 3)
    picture = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    values = aipp.apply(found, picture, (1, 3, 4, 3), "NCHW")
    assert values.shape == (1, 3, 4, 3)
    expected = np.zeros((3, 4, 3), np.float32)
    swapped = picture[0, :, 1:, ::-1].astype(np.float32)
    expected[0, 2:, 1:] = swapped[..., 0] - 1
    expected[1, 2:, 1:] = swapped[..., 1] - 0.5
    # Padding is after the mean: it is nought whatever the mean is.
    expected[2, 2:, 1:] = swapped[..., 2] * 2
    np.testing.assert_array_equal(values[0], expected)


def test_the_unused_byte_of_four_goes() -> None:
    picture = np.array([[[[9, 1, 2, 3]]]], np.uint8)
    kept = aipp.apply(block("input_format: XRGB8888_U8"), picture, (1, 1, 1, 3), "NHWC")
    np.testing.assert_array_equal(kept[0, 0, 0], [1, 2, 3])
    first = aipp.apply(block("input_format: XRGB8888_U8 ax_swap_switch: true"), picture, (1, 1, 1, 3), "NHWC")
    np.testing.assert_array_equal(first[0, 0, 0], [9, 1, 2])


def test_grey_pictures_have_one_channel() -> None:
    found = block("input_format: YUV400_U8 var_reci_chn_0: 0.5")
    assert aipp.input_shape(found, (2, 1, 3, 5), "NCHW") == (2, 3, 5, 1)
    values = aipp.apply(found, np.full((2, 3, 5, 1), 7, np.uint8), (2, 1, 3, 5), "NCHW")
    assert values.shape == (2, 1, 3, 5)
    assert (values == 3.5).all()


@pytest.mark.parametrize(
    ("text", "network", "reason"),
    [
        ("input_format: RGB888_U8", (1, 4, 8, 8), "gives 3 channels"),
        ("input_format: RGB888_U8", (1, 3), "has 2 axes"),
        ("input_format: RGB888_U8 src_image_size_w: 9", (1, 3, 8, 8), "the network takes 8x8"),
        (
            "input_format: RGB888_U8 crop: true load_start_pos_w: 9 src_image_size_w: 16",
            (1, 3, 8, 8),
            "leaves the picture",
        ),
    ],
)
def test_a_picture_that_cannot_become_the_input_is_refused(text: str, network: tuple[int, ...], reason: str) -> None:
    with pytest.raises(AtcError) as error:
        aipp.input_shape(block(text), network, "NCHW")
    assert error.value.code == "E10052"
    assert reason in error.value.arguments[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aipp_op {",
        "aipp_op { input_format: RGB }",
        "aipp_op { aipp_mode: dynamic }",
        "aipp_op { related_input_rank: -1 }",
        "aipp_op { mean_chn_0: 0.5 }",
        "aipp_op { matrix_r0c0: 1e300 }",
        "aipp_op { input_bias_3: 1 }",
        "aipp_op { left_padding_size: 33 }",
        "aipp_op { src_image_size_w: 1 }",
        "aipp_op { crop_size_w: -4 }",
        "aipp_op { input_format: YUV420SP_U8 src_image_size_w: 5 }",
        "aipp_op { } aipp_op { }",
        "aipp_op { crop }",
        "aipp_op { crop: \x00 }",
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(AtcError) as error:
        aipp.parse(text)
    assert error.value.code == "E10052"
