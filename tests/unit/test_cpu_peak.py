"""The kernels that measure the machine do what they are counted for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from targets.cpu.kernels.peak import Peak, Stream, peak, stream
from targets.cpu.machine import X86_MACHINE

TARGET = {"kind": "llvm", "mcpu": X86_MACHINE.processor("host").mcpu}


def call(function: Any, x: Any, shape: tuple[int, int]) -> Any:
    y = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
    library: Any = tvm.compile(tvm.IRModule({"main": function}), target=TARGET)
    library["main"](tvm.runtime.tensor(x), y)
    return y.numpy()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_multiply_add_of_the_peak_is_done(lanes: int) -> None:
    spec = Peak(lanes, sums=5, jobs=3, steps=7)
    x = np.random.default_rng(lanes).uniform(-1, 1, (2, lanes)).astype("float32")
    sums = np.tile(np.arange(5, dtype="float64")[:, None], (1, lanes))
    for _ in range(7):
        sums = sums * x[0] + x[1]
    got = call(peak(spec, "main"), x, (3, lanes))
    np.testing.assert_allclose(got, np.tile(sums.sum(0), (3, 1)), rtol=1e-4, atol=1e-4)
    assert spec.flops == 2 * 3 * 7 * 5 * lanes


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_number_of_the_stream_is_read_and_written(lanes: int) -> None:
    spec = Stream(lanes, jobs=3, numbers=64)
    x = np.random.default_rng(lanes).standard_normal((3, 64)).astype("float32")
    np.testing.assert_array_equal(call(stream(spec, "main"), x, (3, 64)), x + np.float32(1))
    assert spec.bytes == 2 * x.nbytes
