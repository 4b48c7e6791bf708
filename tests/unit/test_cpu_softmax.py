"""Softmax, its logarithm and layer norm against torch: any shape, any axis, every vector width."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.cpu.kernels.softmax import LayerNorm, Softmax, layer_norm, softmax
from targets.cpu.machine import X86_MACHINE

LANES = (16, 8, 4)
TARGET = {"kind": "llvm", "mcpu": X86_MACHINE.processor("host").mcpu}
shapes = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple).filter(lambda shape: math.prod(shape) < 30_000)


def compiled(function: Any) -> Any:
    return tvm.compile(tvm.IRModule({"main": function}), target=TARGET)


def run(function: Any, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    y = tvm.runtime.tensor(np.full_like(inputs[0], np.nan))
    compiled(function)["main"](*map(tvm.runtime.tensor, inputs), y)
    return y.numpy()


@settings(max_examples=40, deadline=None)
@given(shape=shapes, data=st.data(), lanes=st.sampled_from(LANES), log=st.booleans())
def test_softmax_of_any_axis(shape: tuple[int, ...], data: st.DataObject, lanes: int, log: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = (np.random.default_rng(len(shape)).standard_normal(shape) * 4).astype("float32")
    got = run(softmax(Softmax(shape, axis, lanes, log), "main"), x)
    function = torch.log_softmax if log else torch.softmax
    np.testing.assert_allclose(got, function(torch.from_numpy(x).double(), axis).numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 8732, 81), (1, 1000), (7, 21, 300), (3, 5)])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_extremes(shape: tuple[int, ...], axis: int) -> None:
    """Numbers far apart, masked ones at minus infinity, all the same: probabilities that sum to one."""
    x = (np.random.default_rng(3).standard_normal(shape) * 60).astype("float32")
    x.flat[:: max(2, x.size // 50)] = -np.inf
    x[0] = np.where(np.isinf(x[0]), -np.inf, 1e4)
    # A row of nothing but minus infinity has no softmax.
    x[np.broadcast_to(np.isinf(x).all(axis, keepdims=True), x.shape)] = 0
    got = run(softmax(Softmax(shape, axis, 16), "main"), x)
    np.testing.assert_allclose(got.sum(axis, dtype="float64"), 1, rtol=1e-5)
    assert (got[np.isinf(x)] == 0).all()
    np.testing.assert_allclose(got, torch.softmax(torch.from_numpy(x).double(), axis).numpy(), rtol=3e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, data=st.data(), lanes=st.sampled_from(LANES))
def test_layer_norm_of_any_axes(shape: tuple[int, ...], data: st.DataObject, lanes: int) -> None:
    axes = data.draw(st.integers(1, len(shape)))
    normal = np.random.default_rng(axes)
    # Far from zero: the variance must not be a difference of large numbers.
    x = (normal.standard_normal(shape) + 30).astype("float32")
    scale, shift = (normal.standard_normal(shape[-axes:]).astype("float32") for _ in range(2))
    y = tvm.runtime.tensor(np.full_like(x, np.nan))
    spec = LayerNorm(shape, axes, 1e-5, lanes)
    compiled(layer_norm(spec, "main"))["main"](*map(tvm.runtime.tensor, (x, scale, shift)), y)
    doubles = (torch.from_numpy(part).double() for part in (x, scale, shift))
    tx, tscale, tshift = doubles
    expected = torch.nn.functional.layer_norm(tx, shape[-axes:], tscale, tshift, 1e-5).numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-3, atol=2e-3)


def test_rows_are_not_allocated() -> None:
    """A call of the runtime's allocator for every row took three times as long as the row."""
    for function in (
        softmax(Softmax((1, 8732, 81), 2, 16), "main"),
        softmax(Softmax((1, 81, 8732), 1, 16), "main"),
        layer_norm(LayerNorm((197, 768), 1, 1e-5, 16), "main"),
    ):
        calls = [line for line in compiled(function).mod.inspect_source("ll").splitlines() if "AllocWorkspace" in line]
        assert not [line for line in calls if "load" in line]
