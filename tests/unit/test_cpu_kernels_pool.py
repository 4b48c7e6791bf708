"""Pools over blocked pictures beside torch: any window, stride, padding, rounding of the size, border and block."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run, threads
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.pool import GlobalAverage, Pool, global_average, pool
from targets.cpu.kernels.program import Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout, Shape

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
shapes = st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 20), st.integers(1, 30))


def expected(values: np.ndarray, kind: str, window: Window, ceil: bool, counted: bool) -> np.ndarray:
    """torch's pool; its padding is the same on both sides."""
    x, padding = torch.from_numpy(values), window.padding[:2]
    if kind == "max":
        return functional.max_pool2d(x, window.kernel, window.stride, padding, window.dilation, ceil).numpy()
    return functional.avg_pool2d(x, window.kernel, window.stride, padding, ceil, counted).numpy()


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(["max", "average"]), pairs, pairs, st.booleans(), st.booleans(), st.data())
# A window wider than the registers that hold it, and one column of the result that has all of it.
@example((1, 5, 17, 17), "max", (1, 1), (1, 1), False, True, None)
@example((2, 20, 30, 40), "average", (1, 2), (1, 1), True, False, None)
def test_a_pool_is_as_in_torch(
    shape: Shape,
    kind: str,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    ceil: bool,
    counted: bool,
    data: st.DataObject | None,
) -> None:
    if kind == "average":
        dilation = (1, 1)
    lanes, kernel, padding, parallel = 8, (17, 17), (8, 8), True
    x, border = ImageType(shape, Layout(lanes)), Layout(lanes)
    if data is not None:
        lanes, parallel = data.draw(st.sampled_from(LANES)), data.draw(st.booleans())
        kernel = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 15)))
        padding = data.draw(st.tuples(*(st.integers(0, size // 2) for size in kernel)))
        x, border = ImageType(shape, data.draw(borders(lanes))), data.draw(borders(lanes))
    window = Window(kernel, stride, dilation, (*padding, *padding))
    assume(all(shape[2 + i] + 2 * padding[i] >= (kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)))
    values = noise(shape)
    want = expected(values, kind, window, ceil, counted)
    y = ImageType(want.shape, border)
    with threads() if parallel else nullcontext():
        function = pool(Pool(x, y, kind, window, counted), "main")  # type: ignore[arg-type]
    got = run(function, packed(values, x, np.nan), into=y)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(shapes, st.sampled_from(LANES), st.data())
def test_a_mean_over_all_pixels(shape: Shape, lanes: int, data: st.DataObject) -> None:
    x, y = ImageType(shape, data.draw(borders(lanes))), ImageType((*shape[:2], 1, 1), data.draw(borders(lanes)))
    values = noise(shape)
    with threads() if data.draw(st.booleans()) else nullcontext():
        function = global_average(GlobalAverage(x, y), "main")
    got = run(function, packed(values, x, np.nan), into=y)
    np.testing.assert_allclose(got, values.mean(axis=(2, 3), keepdims=True), rtol=1e-5, atol=1e-6)


def test_padding_may_differ_on_every_side() -> None:
    x, window = ImageType((1, 8, 7, 9), Layout(8)), Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    y = ImageType((1, 8, 3, 4), Layout(8, 1, 1, 1, 1))
    values = noise(x.shape)
    padded = functional.pad(torch.from_numpy(values), (0, 1, 0, 1), value=float("-inf"))
    got = run(pool(Pool(x, y, "max", window), "main"), packed(values, x), into=y)
    assert (got == functional.max_pool2d(padded, 3, 2).numpy()).all()
    padded = functional.pad(torch.from_numpy(values), (0, 1, 0, 1))
    got = run(pool(Pool(x, y, "average", window), "main"), packed(values, x), into=y)
    np.testing.assert_allclose(got, functional.avg_pool2d(padded, 3, 2).numpy(), rtol=1e-5, atol=1e-6)


def test_a_program_follows_the_pool() -> None:
    x, y = ImageType((2, 12, 8, 8), Layout(4)), ImageType((2, 12, 4, 4), Layout(4))
    program = Program((Step("subtract", (Result(0), Operand(0))),), (OperandType("image", y),))
    values, other = noise(x.shape), noise(y.shape, 1)
    function = pool(Pool(x, y, "max", Window((2, 2), (2, 2)), program=program), "main")
    got = run(function, packed(values, x), packed(other, y), into=y)
    assert (got == functional.max_pool2d(torch.from_numpy(values), 2).numpy() - other).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_largest_of_integers_is_one_of_them(dtype: str) -> None:
    x, y = ImageType((1, 20, 9, 9), Layout(16), dtype, 3), ImageType((1, 20, 5, 5), Layout(16, 1, 1, 1, 1), dtype, 3)
    window = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    values = noise(x.shape, dtype=dtype)
    want = functional.max_pool2d(torch.from_numpy(values.astype("float32")), 3, 2, 1).numpy()
    assert (run(pool(Pool(x, y, "max", window), "main"), packed(values, x), into=y, border=3) == want).all()


def test_what_no_pool_is_refused() -> None:
    x = ImageType((1, 8, 4, 4), Layout(8))
    with pytest.raises(ValueError, match="no pool"):
        pool(Pool(x, ImageType((1, 16, 2, 2), Layout(8)), "max", Window((2, 2), (2, 2))), "main")
    with pytest.raises(ValueError, match="dilation"):
        pool(Pool(x, ImageType((1, 8, 2, 2), Layout(8)), "average", Window((2, 2), (1, 1), (2, 2))), "main")
    with pytest.raises(ValueError, match="outside"):
        pool(Pool(x, ImageType((1, 8, 9, 9), Layout(8)), "average", Window((2, 2), (1, 1))), "main")
    with pytest.raises(ValueError, match="mean"):
        global_average(GlobalAverage(x, x), "main")
