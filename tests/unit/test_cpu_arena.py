"""Tensors in one piece of memory: apart from each other, aligned, and alive as long as one of them is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.cpu.arena import ALIGNMENT, Arena

shapes = st.lists(st.integers(1, 40), max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(["float32", "int64", "int8", "bool"])), max_size=8))
def test_tensors_do_not_touch(wanted: list[tuple[tuple[int, ...], str]]) -> None:
    arena = Arena([math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in wanted])
    tensors = [arena.tensor(shape, dtype) for shape, dtype in wanted]
    del arena
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 2, shape).astype(dtype) for shape, dtype in wanted]
    for tensor, value in zip(tensors, values, strict=True):
        view = np.from_dlpack(tensor)
        assert view.ctypes.data % ALIGNMENT == 0 and not view.any()
        tensor.copyfrom(value)
    for tensor, value in zip(tensors, values, strict=True):
        assert (tensor.shape, str(tensor.dtype)) == (value.shape, str(value.dtype))
        np.testing.assert_array_equal(tensor.numpy(), value)


def test_what_no_room_was_asked_for_is_refused() -> None:
    arena = Arena([400])
    arena.tensor((10, 10), "float32")
    with pytest.raises(ValueError, match="no room"):
        arena.tensor((10, 10), "float32")
