"""Depthwise convolution over blocked pictures beside torch: any window, tile, border and block."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run, threads
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from targets.cpu.kernels.depthwise import Depthwise, depthwise, pack, plan
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout
from targets.cpu.processors import ARM64, ARMV7, X86

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def specs(draw: st.DrawFn) -> Depthwise:
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 40))
    size = draw(st.tuples(st.integers(1, 16), st.integers(1, 24)))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 10)))
    stride, dilation = draw(pairs), draw(pairs)
    top, left, bottom, right = (draw(st.integers(0, size)) for size in (*kernel, *kernel))
    reach = [(kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)]
    padded = (size[0] + top + bottom, size[1] + left + right)
    assume(all(padded[i] >= reach[i] for i in (0, 1)))
    height, width = ((padded[i] - reach[i]) // stride[i] + 1 for i in (0, 1))
    lanes = draw(st.sampled_from(LANES))
    more = draw(st.integers(0, 1))
    x = ImageType((batch, channels, *size), Layout(lanes, top + more, left + more, bottom, right + more))
    y = ImageType((batch, channels, height, width), draw(borders(lanes)))
    tile = draw(st.integers(1, min(height, 4))), draw(st.integers(1, min(width, 8)))
    # Bias, residual sum, ReLU6.
    operands = (OperandType("channel", ImageType((1, channels, 1, 1), Layout(lanes))), OperandType("image", y))
    steps = (
        Step("add", (Result(0), Operand(0))),
        Step("add", (Result(1), Operand(1))),
        Step("maximum", (Result(2), 0.0)),
        Step("minimum", (Result(3), 6.0)),
    )
    program = draw(st.sampled_from([NOTHING, Program(steps, operands)]))
    return Depthwise(x, y, Window(kernel, stride, dilation, (top, left, bottom, right)), *tile, program)


def check(spec: Depthwise) -> None:
    window, channels = spec.window, spec.x.shape[1]
    values, weights = noise(spec.x.shape), noise((channels, 1, *window.kernel), 1)
    bias, residual = noise((1, channels, 1, 1), 2), noise(spec.y.shape, 3)
    top, left, bottom, right = window.padding
    x = functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    want = functional.conv2d(x, torch.from_numpy(weights), None, window.stride, 0, window.dilation, channels).numpy()
    operands = []
    if spec.program.operands:
        whole = packed(bias, ImageType(bias.shape, Layout(spec.y.layout.block))).reshape(-1)
        operands = [whole, packed(residual, spec.y, np.nan)]
        want = np.clip(want + bias + residual, 0, 6)
    got = run(depthwise(spec, "main"), packed(values, spec.x), pack(weights, spec), *operands, into=spec.y)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(specs(), st.booleans())
def test_any_depthwise_convolution_is_as_in_torch(spec: Depthwise, parallel: bool) -> None:
    with threads() if parallel else nullcontext():
        check(spec)


@pytest.mark.parametrize("size", [112, 19, 7, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_plan_fits_its_picture_and_the_registers(size: int, stride: int) -> None:
    out = (size - 1) // stride + 1
    for processor in (*X86, *ARM64, *ARMV7):
        layout = Layout(processor.lanes, 1, 1, 1, 1)
        x, y = ImageType((1, 48, size, size), layout), ImageType((1, 48, out, out), layout)
        spec = plan(x, y, Window((3, 3), (stride, stride), (1, 1), (1, 1, 1, 1)), NOTHING, processor)
        assert 1 <= spec.rows <= out and 1 <= spec.columns <= out
        assert spec.rows * spec.columns + 3 + 1 < processor.registers


@pytest.mark.parametrize("processor", ["sapphirerapids", "x86-64-v3", "x86-64-v2"])
def test_planned_kernels_compute(processor: str) -> None:
    of = next(p for p in X86 if p.name == processor)
    for size, stride in ((19, 1), (19, 2), (7, 1)):
        out = (size - 1) // stride + 1
        x = ImageType((1, 20, size, size), Layout(of.lanes, 1, 1, 1, 1))
        y = ImageType((1, 20, out, out), Layout(of.lanes))
        check(plan(x, y, Window((3, 3), (stride, stride), (1, 1), (1, 1, 1, 1)), NOTHING, of))


def test_what_is_no_depthwise_convolution_is_refused() -> None:
    x, y = (ImageType((1, channels, 5, 5), Layout(8)) for channels in (8, 16))
    with pytest.raises(ValueError, match="other channels"):
        plan(x, y, Window((1, 1)), NOTHING, X86[0])
    with pytest.raises(ValueError, match="does not fit"):
        depthwise(Depthwise(x, x, Window((1, 1)), 1, 6), "main")
