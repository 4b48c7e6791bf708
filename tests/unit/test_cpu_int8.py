"""Convolution of small integers: every sum exact, with each instruction that this processor has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from targets.cpu.kernels.direct import Tile, Window
from targets.cpu.kernels.int8 import Int8Conv, fold_zero_point, int8_conv, pack
from targets.cpu.kernels.pointwise import Pointwise, pointwise
from targets.cpu.kernels.pool import GlobalAverage, Pool, global_average, pool
from targets.cpu.kernels.products import PLAIN, PMADDWD, VPDPBUSD, Product
from targets.cpu.kernels.program import Operand, OperandType, Program, Result, Step
from targets.cpu.kernels.quantise import Quantise, quantise
from targets.cpu.layout import ImageType, Layout
from targets.cpu.machine import cpu_features, machine

PRODUCTS = {product.name: product for product in (VPDPBUSD, PMADDWD, PLAIN)}

needs_x86 = pytest.mark.skipif(machine() != "x86_64", reason="this processor is no x86-64")
needs_vnni = pytest.mark.skipif(
    not {"avx512_vnni", "avx512vl"} <= cpu_features(), reason="this processor has no AVX512-VNNI"
)
every_product = pytest.mark.parametrize(
    "name",
    [
        pytest.param("vpdpbusd", marks=[needs_x86, needs_vnni]),
        pytest.param("pmaddwd", marks=needs_x86),
        "plain",
    ],
)


def of_type(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """All numbers of 8 bits, of a sign or two: 16 bits hold what is left of them when a zero point is taken off."""
    return noise(shape, dtype=dtype) if dtype != "int16" else noise(shape, dtype="int16") % 511 - 255  # type: ignore[arg-type]


def sums(
    x: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], window: Window, zero_point: int
) -> np.ndarray[Any, Any]:
    """What a convolution of whole numbers gives: float64 holds each of these sums exactly."""
    top, left, bottom, right = window.padding
    image = np.pad(x.astype(np.float64) - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
    kernel = torch.from_numpy(weights.astype(np.float64))
    return torch.nn.functional.conv2d(
        torch.from_numpy(image), kernel, stride=window.stride, dilation=window.dilation
    ).numpy()


@every_product
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sums_are_exact(name: str, data: st.DataObject) -> None:
    product = PRODUCTS[name]
    lanes = data.draw(st.sampled_from(LANES))
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (2, 40, 12, 20))
    block = data.draw(st.sampled_from([lanes, 4] if c <= 4 else [lanes]))
    kernel, stride, dilation = (data.draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (3, 2, 2))
    padding = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    window = Window(kernel, stride, dilation, padding)
    top, left, bottom, right = padding
    rows, columns = h + top + bottom - (kernel[0] - 1) * dilation[0], w + left + right - (kernel[1] - 1) * dilation[1]
    assume(rows > 0 and columns > 0)
    out_h, out_w = (rows - 1) // stride[0] + 1, (columns - 1) // stride[1] + 1
    blocks = data.draw(st.integers(1, 4))
    outputs = data.draw(st.integers((blocks - 1) * lanes + 1, blocks * lanes))
    zero_point = data.draw(st.integers(0, 255)) if product.activations == "uint8" else 0
    x = ImageType((n, c, h, w), Layout(block, *padding), product.activations, zero_point)
    y = ImageType((n, outputs, out_h, out_w), data.draw(borders(lanes)))
    tile = Tile(
        data.draw(st.sampled_from([d for d in range(1, blocks + 1) if blocks % d == 0])),
        data.draw(st.integers(1, min(2, out_h))),
        data.draw(st.integers(1, min(5, out_w))),
    )
    spec = Int8Conv(x, y, window, tile, product)
    values, weights = of_type(product.activations, n, c, h, w), noise((outputs, c, *kernel), dtype="int8")
    bias = np.random.default_rng(outputs).integers(-(2**20), 2**20, outputs, np.int32)
    got = run(
        int8_conv(spec, "main"),
        packed(values, x, zero_point),
        pack(weights, spec),
        fold_zero_point(weights, bias, zero_point, spec),
        into=y,
    )
    want = sums(values, weights, window, zero_point) + bias[:, None, None]
    np.testing.assert_array_equal(got, want.astype(np.float32))


@every_product
def test_the_largest_products_do_not_overflow(name: str) -> None:
    """Where a vector instruction adds in 16 bits, or takes a sign for another, this is where it would be seen."""
    product = PRODUCTS[name]
    largest = {"uint8": 255, "int16": -255}[product.activations]
    shape, outputs = (1, 512, 7, 7), 16
    x, y = ImageType(shape, Layout(4), product.activations), ImageType((1, outputs, 5, 5), Layout(4))
    spec = Int8Conv(x, y, Window((3, 3)), Tile(2, 1, 5), product)
    weights = np.full((outputs, 512, 3, 3), -128, np.int8)
    values = np.full(shape, largest, product.activations)
    arguments = (packed(values, x), pack(weights, spec), np.zeros(outputs, np.int32))
    got = run(int8_conv(spec, "main"), *arguments, into=y)
    assert (got == np.float32(512 * 9 * largest * -128)).all()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["uint8", "int8", "int16"]), st.sampled_from(LANES), st.data())
def test_a_store_rounds_halves_to_even_and_adds_the_zero_point(dtype: str, lanes: int, data: st.DataObject) -> None:
    """As ONNX's QuantizeLinear does, residual sum of integers included."""
    shape = (1, data.draw(st.integers(1, 33)), 3, data.draw(st.integers(1, 9)))
    info = np.iinfo("int8" if dtype == "int16" else dtype)
    zero_point = 0 if dtype == "int16" else data.draw(st.integers(info.min, info.max))
    low, high = info.min - zero_point, info.max - zero_point
    x, y = ImageType(shape, Layout(lanes)), ImageType(shape, data.draw(borders(lanes)), dtype, zero_point)
    other = ImageType(shape, data.draw(borders(lanes)), "uint8", 3)
    steps = (
        Step("subtract", (Operand(0), 3.0)),
        Step("add", (Result(0), Result(1))),
        Step("maximum", (Result(2), float(low))),
        Step("minimum", (Result(3), float(high))),
    )
    # Halves, which go to the nearest even number.
    values = np.round(noise(shape) * 200) / 2
    residual = noise(shape, 1, "uint8")
    program = Program(steps, (OperandType("image", other),))
    got = run(
        pointwise(Pointwise(x, y, program), "main"),
        packed(values, x),
        packed(residual, other, 3),
        into=y,
        border=zero_point,
    )
    want = np.clip(np.rint(values + (residual.astype(np.float32) - 3)), low, high) + zero_point
    np.testing.assert_array_equal(got, want)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(4, 21), st.sampled_from(["uint8", "int8", "int16"]), st.data())
def test_few_channels_become_one_word_a_pixel(channels: int, width: int, dtype: str, data: st.DataObject) -> None:
    shape = (2, channels, 3, width)
    zero_point = 100 if dtype == "uint8" else 5
    x, y = ImageType(shape), ImageType(shape, data.draw(borders(4)), dtype, zero_point)
    scale = np.arange(1, 5, dtype=np.float32)
    program = Program(
        (Step("multiply", (Result(0), Operand(0))),), (OperandType("channel", ImageType(shape, Layout(4))),)
    )
    values = np.clip(noise(shape) * 8, -25, 25)
    got = run(quantise(Quantise(x, y, program), "main"), values, scale, into=y, border=zero_point)
    np.testing.assert_array_equal(got, np.rint(values * scale[:channels, None, None]) + zero_point)


def test_a_row_is_not_shorter_than_a_block() -> None:
    shape = (1, 3, 4, 3)
    with pytest.raises(ValueError, match="does not hold"):
        quantise(Quantise(ImageType(shape), ImageType(shape, Layout(4), "uint8"), Program()), "main")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
@pytest.mark.parametrize("lanes", LANES)
def test_the_maximum_of_integers_is_one_of_them(dtype: str, lanes: int) -> None:
    shape = (1, 20, 9, 11)
    x, y = ImageType(shape, Layout(lanes), dtype, 9), ImageType((1, 20, 5, 6), Layout(lanes, 1, 1, 1, 1), dtype, 9)
    values = noise(shape, dtype=dtype)
    spec = Pool(x, y, "max", Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)))
    got = run(pool(spec, "main"), packed(values, x), into=y, border=9)
    want = torch.nn.functional.max_pool2d(torch.from_numpy(values.astype(np.float32)), 3, 2, 1).numpy()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("lanes", LANES)
def test_a_mean_of_integers(lanes: int) -> None:
    shape = (2, 20, 7, 9)
    x, y = ImageType(shape, Layout(lanes), "uint8"), ImageType((2, 20, 1, 1), Layout(lanes))
    values = noise(shape, dtype="uint8")
    got = run(global_average(GlobalAverage(x, y), "main"), packed(values, x), into=y)
    np.testing.assert_allclose(got, values.mean(axis=(2, 3), keepdims=True), rtol=1e-6)


def test_products_say_how_wide_their_words_are() -> None:
    def words(product: Product) -> tuple[int, str]:
        return product.word, product.word_dtype

    assert [words(product) for product in PRODUCTS.values()] == [(4, "int32"), (2, "int32"), (1, "int16")]
