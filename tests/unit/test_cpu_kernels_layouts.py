"""Kernels that move pictures: conversion between layouts, pointwise programs, concatenation, resizing; beside torch."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from targets.cpu.kernels.concat import Concat, concat
from targets.cpu.kernels.convert import Convert, convert
from targets.cpu.kernels.pointwise import Pointwise, pointwise
from targets.cpu.kernels.program import Operand, OperandType, Program, Result, Step
from targets.cpu.kernels.resize import Resize, resize, tables
from targets.cpu.layout import PLAIN, ImageType, Layout, Shape

shapes = st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 20), st.integers(1, 40))


@st.composite
def conversions(draw: st.DrawFn) -> Convert:
    shape, lanes = draw(shapes), draw(st.sampled_from(LANES))
    dtype = draw(st.sampled_from(["float32", "float32", "int8", "uint8"]))
    zero = 0 if dtype == "float32" else draw(st.integers(0, 127))
    x, y = (ImageType(shape, draw(borders(draw(st.sampled_from([1, lanes])))), dtype, zero) for _ in range(2))
    return Convert(x, y)


@settings(max_examples=60, deadline=None)
@given(conversions(), st.booleans())
def test_a_conversion_changes_no_number(spec: Convert, parallel: bool) -> None:
    values = noise(spec.x.shape, dtype=spec.x.dtype)
    with threads() if parallel else nullcontext():
        function = convert(spec, "main")
    got = run(function, packed(values, spec.x, border=33), into=spec.y, border=spec.y.zero_point)
    assert (got == values).all()


def test_a_conversion_fills_lanes_and_border() -> None:
    x, y = ImageType((1, 3, 5, 7)), ImageType((1, 3, 5, 7), Layout(8, 1, 1, 1, 1))
    values = noise(x.shape)
    assert (run(convert(Convert(x, y, fill=9), "main"), values, into=y, border=9) == values).all()


def test_a_conversion_converts_layouts_only() -> None:
    x = ImageType((1, 8, 5, 7))
    for other in (
        ImageType((1, 8, 7, 5)),
        ImageType(x.shape, dtype="int8"),
        ImageType(x.shape, zero_point=1),
    ):
        with pytest.raises(ValueError, match="more than their layout"):
            convert(Convert(x, other), "main")
    with pytest.raises(ValueError, match="one width"):
        convert(Convert(ImageType(x.shape, Layout(4)), ImageType(x.shape, Layout(8))), "main")


@settings(max_examples=20, deadline=None)
@given(shapes, st.sampled_from(LANES), st.data())
def test_a_pointwise_program_reads_every_kind_of_operand(shape: Shape, lanes: int, data: st.DataObject) -> None:
    x, y, image = (ImageType(shape, data.draw(borders(lanes))) for _ in range(3))
    gate = ImageType((*shape[:2], 1, 1), Layout(lanes))
    channel = ImageType((1, shape[1], 1, 1), Layout(lanes))
    operands = (OperandType("image", image), OperandType("gate", gate), OperandType("channel", channel))
    # max(2 x - image, gate) · channel + x
    steps = (
        Step("multiply", (2.0, Result(0))),
        Step("subtract", (Result(1), Operand(0))),
        Step("maximum", (Result(2), Operand(1))),
        Step("multiply", (Result(3), Operand(2))),
        Step("add", (Result(4), Result(0))),
    )
    a, b, c, d = (noise(s, i) for i, s in enumerate((shape, shape, gate.shape, channel.shape)))
    with threads() if data.draw(st.booleans()) else nullcontext():
        function = pointwise(Pointwise(x, y, Program(steps, operands)), "main")
    whole_channel = packed(d, channel)[0, :, 0, 0].reshape(-1)
    got = run(function, packed(a, x, np.nan), packed(b, image, np.nan), packed(c, gate), whole_channel, into=y)
    np.testing.assert_allclose(got, np.maximum(2 * a - b, c) * d + a, rtol=1e-5, atol=1e-5)


def test_pointwise_pictures_have_one_shape_and_block() -> None:
    x = ImageType((1, 8, 5, 7), Layout(8))
    for y in (ImageType((1, 8, 7, 5), Layout(8)), ImageType(x.shape, Layout(4)), ImageType(x.shape)):
        with pytest.raises(ValueError, match="border"):
            pointwise(Pointwise(x, y, Program()), "main")


@settings(max_examples=20, deadline=None)
@given(shapes, st.sampled_from(LANES), st.lists(st.integers(0, 3), max_size=3), st.data())
def test_pictures_are_joined(last: Shape, lanes: int, wholes: list[int], data: st.DataObject) -> None:
    n, c, h, w = last
    channels = [*(lanes * blocks for blocks in wholes if blocks), c]
    xs = tuple(ImageType((n, count, h, w), data.draw(borders(lanes))) for count in channels)
    y = ImageType((n, sum(channels), h, w), data.draw(borders(lanes)))
    values = [noise(x.shape, i) for i, x in enumerate(xs)]
    with threads() if data.draw(st.booleans()) else nullcontext():
        function = concat(Concat(xs, y), "main")
    got = run(function, *(packed(v, x, np.nan) for v, x in zip(values, xs, strict=True)), into=y)
    assert (got == np.concatenate(values, axis=1)).all()


def test_only_whole_blocks_are_joined() -> None:
    def image(channels: int, lanes: int = 8, width: int = 3) -> ImageType:
        return ImageType((1, channels, 3, width), Layout(lanes))

    with pytest.raises(ValueError, match="within a block"):
        concat(Concat((image(12), image(8)), image(20)), "main")
    with pytest.raises(ValueError, match="one width"):
        concat(Concat((image(8), image(8, lanes=4)), image(16)), "main")
    with pytest.raises(ValueError, match="together"):
        concat(Concat((image(8), image(8)), image(24)), "main")
    with pytest.raises(ValueError, match="together"):
        concat(Concat((image(8), image(8, width=4)), image(16)), "main")


@settings(max_examples=25, deadline=None)
@given(shapes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(LANES), st.data())
def test_resizing_is_as_in_torch(shape: Shape, size: tuple[int, int], lanes: int, data: st.DataObject) -> None:
    mode, coordinates, rounding = data.draw(
        st.sampled_from(
            [
                ("nearest", "asymmetric", "floor"),
                ("nearest", "asymmetric", ""),
                ("bilinear", "half_pixel", ""),
                ("bilinear", "pytorch_half_pixel", ""),
                ("bilinear", "align_corners", ""),
            ]
        )
    )
    if coordinates == "pytorch_half_pixel" and 1 in size:
        # ONNX's definition: one pixel is the first. PyTorch itself takes the middle.
        coordinates = "half_pixel"
    x, y = ImageType(shape, data.draw(borders(lanes))), ImageType((*shape[:2], *size), data.draw(borders(lanes)))
    spec = Resize(x, y, "linear" if mode == "bilinear" else "nearest_neighbor", coordinates, rounding)
    values = noise(shape)
    align = {"align_corners": coordinates == "align_corners"} if mode == "bilinear" else {}
    expected = functional.interpolate(torch.from_numpy(values), size, mode=mode, **align).numpy()
    with threads() if data.draw(st.booleans()) else nullcontext():
        function = resize(spec, "main")
    got = run(function, packed(values, x, np.nan), *tables(spec), into=y)
    # A place is the difference of numbers that are as large as the picture: its weight has their rounding.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(shape[2:]))


@pytest.mark.parametrize(
    ("coordinates", "rounding", "to", "places"),
    [
        ("half_pixel", "round_prefer_floor", 2, [0, 2]),
        ("half_pixel", "round_prefer_ceil", 2, [1, 3]),
        ("half_pixel", "round", 2, [1, 3]),
        ("half_pixel", "floor", 8, [0, 0, 0, 1, 1, 2, 2, 3]),
        ("half_pixel", "ceil", 8, [0, 1, 1, 2, 2, 3, 3, 3]),
        ("align_corners", "", 3, [0, 2, 3]),
        ("align_corners", "floor", 3, [0, 1, 3]),
        ("asymmetric", "", 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        ("tf_half_pixel_for_nn", "floor", 2, [1, 3]),
        ("pytorch_half_pixel", "floor", 1, [0]),
    ],
)
def test_the_nearest_pixel_is_that_of_onnx(coordinates: str, rounding: str, to: int, places: list[int]) -> None:
    spec = Resize(ImageType((1, 4, 1, 4)), ImageType((1, 4, 1, to)), "nearest_neighbor", coordinates, rounding)
    assert tables(spec)[0].tolist() == [0, *places]


def test_resizing_refuses_what_it_does_not_know() -> None:
    x, y = ImageType((1, 4, 4, 4), Layout(4)), ImageType((1, 4, 8, 8), Layout(4))
    with pytest.raises(ValueError, match="cubic"):
        resize(Resize(x, y, "cubic", "half_pixel"), "main")
    with pytest.raises(ValueError, match="no resized"):
        resize(Resize(x, ImageType((1, 4, 8, 8), PLAIN), "linear", "half_pixel"), "main")
    with pytest.raises(ValueError, match="tf_crop"):
        tables(Resize(x, y, "linear", "tf_crop_and_resize"))
    with pytest.raises(ValueError, match="stochastic"):
        tables(Resize(x, y, "nearest_neighbor", "half_pixel", "stochastic"))
