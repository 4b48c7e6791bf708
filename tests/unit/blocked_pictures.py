"""Pictures in any layout for tests of kernels: packing, running a kernel on noise, and looking at what it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import tvm
from hypothesis import strategies as st

from targets.cpu.compile import tvm_target
from targets.cpu.kernels import jobs
from targets.cpu.layout import ImageType, Layout, Shape
from targets.cpu.machine import MACHINES, machine

Numbers = npt.NDArray[Any]
LANES = (4, 8, 16)


def borders(lanes: int, most: int = 3) -> st.SearchStrategy[Layout]:
    """Layouts of a width of block, with any border."""
    side = st.integers(0, most)
    return st.builds(Layout, st.just(lanes), side, side, side, side)


@contextmanager
def threads() -> Iterator[None]:
    """However little work there is, it is done by several threads."""
    with mock.patch.object(jobs, "SERIAL_BELOW", 0):
        yield


def noise(shape: Shape, seed: int = 0, dtype: str = "float32") -> Numbers:
    """Normal numbers, or all of an integer type's."""
    rng = np.random.default_rng([seed, *shape])
    if dtype != "float32":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)


def packed(values: Numbers, of: ImageType, border: float = 0.0) -> Numbers:
    """N, C, H, W in a layout; the lanes beyond C are noise that would be seen in a result."""
    (n, c, h, w), layout = of.shape, of.layout
    channels = of.blocks * layout.block
    rows, columns = layout.top + h + layout.bottom, layout.left + w + layout.right
    whole = np.full((n, channels, rows, columns), border, of.dtype)
    whole[:, c:] = 77
    whole[:, :c, layout.top : layout.top + h, layout.left : layout.left + w] = values
    if layout.block == 1:
        return whole
    parts = whole.reshape(n, of.blocks, layout.block, rows, columns).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(parts)


def unpacked(buffer: Numbers, of: ImageType, border: float = 0.0) -> Numbers:
    """The picture in a buffer, whose border must hold ``border`` everywhere."""
    (n, c, h, w), layout = of.shape, of.layout
    whole = buffer
    if layout.block > 1:
        whole = buffer.transpose(0, 1, 4, 2, 3).reshape(n, -1, *buffer.shape[2:4])
    inside = np.zeros(whole.shape[2:], bool)
    inside[layout.top : layout.top + h, layout.left : layout.left + w] = True
    assert (whole[:, :c][:, :, ~inside] == border).all()
    return whole[:, :c, layout.top : layout.top + h, layout.left : layout.left + w]


def host() -> Any:
    """TVM's target for this machine, with all that its processor has."""
    here = MACHINES[machine()]
    return tvm_target(here, here.processor("host"))


def run(function: Any, *inputs: Numbers, into: ImageType, border: float = 0.0, over: int | None = None) -> Numbers:
    """The picture that a kernel makes of its inputs: ``over`` one of them, or in a buffer of wrong numbers."""
    library: Any = tvm.compile(tvm.IRModule({"main": function}), target=host())
    wrong = np.nan if into.dtype == "float32" else 55
    given = [tvm.runtime.tensor(array) for array in inputs]
    output = tvm.runtime.tensor(np.full(into.physical, wrong, into.dtype)) if over is None else given[over]
    library["main"](*given, output)
    return unpacked(output.numpy(), into, border)
