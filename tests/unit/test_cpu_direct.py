"""Direct convolution beside torch: any window, tile, strip, border, block and group, plain and blocked inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from targets.cpu import choose
from targets.cpu.grouped import widen
from targets.cpu.kernels.direct import DirectConv, Tile, Window, direct_conv, pack
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout
from targets.cpu.processors import X86, Processor

pairs = st.tuples(st.integers(1, 3), st.integers(1, 2))


def divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


@st.composite
def specs(draw: st.DrawFn) -> DirectConv:
    lanes = draw(st.sampled_from(LANES))
    plain = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    # Groups are whole blocks on both sides; without groups any number of channels goes.
    inputs = groups * lanes * draw(st.integers(1, 3)) if groups > 1 else draw(st.integers(1, 40))
    outputs = groups * lanes * draw(st.integers(1, 3)) if groups > 1 else draw(st.integers(1, 70))
    batch, size = draw(st.integers(1, 2)), draw(st.tuples(st.integers(1, 24), st.integers(1, 18)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = draw(pairs), draw(pairs)
    top, left, bottom, right = (draw(st.integers(0, most)) for most in (*kernel, *kernel))
    reach = [(kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)]
    padded = (size[0] + top + bottom, size[1] + left + right)
    assume(all(padded[i] >= reach[i] for i in (0, 1)))
    height, width = ((padded[i] - reach[i]) // stride[i] + 1 for i in (0, 1))
    more = draw(st.integers(0, 1))
    x = ImageType((batch, inputs, *size), Layout(1 if plain else lanes, top + more, left, bottom, right + more))
    y = ImageType((batch, outputs, height, width), draw(borders(lanes, 2)))
    rows, columns = draw(st.integers(1, min(height, 3))), draw(st.integers(1, min(width, 6)))
    whole = inputs // groups // x.layout.block
    tile = Tile(
        draw(divisors(y.blocks // groups).filter(lambda n: n <= 4)),
        rows,
        columns,
        draw(divisors(whole)) if whole and draw(st.booleans()) else 0,
        draw(st.integers(1, -(-height // rows))),
    )
    operands = (OperandType("channel", ImageType((1, outputs, 1, 1), Layout(lanes))), OperandType("image", y))
    steps = (
        Step("add", (Result(0), Operand(0))),
        Step("add", (Result(1), Operand(1))),
        Step("maximum", (Result(2), 0.0)),
    )
    program = draw(st.sampled_from([NOTHING, Program(steps, operands)]))
    window = Window(kernel, stride, dilation, (top, left, bottom, right))
    return DirectConv(x, y, window, tile, program, groups)


def check(spec: DirectConv) -> None:
    window, outputs = spec.window, spec.y.shape[1]
    per_group = spec.x.shape[1] // spec.groups
    values = noise(spec.x.shape)
    weights = noise((outputs, per_group, *window.kernel), 1) / np.float32(math.sqrt(per_group))
    bias, residual = noise((1, outputs, 1, 1), 2), noise(spec.y.shape, 3)
    top, left, bottom, right = window.padding
    x = functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    want = functional.conv2d(x, torch.from_numpy(weights), None, window.stride, 0, window.dilation, spec.groups).numpy()
    operands = []
    if spec.program.operands:
        whole = packed(bias, ImageType(bias.shape, Layout(spec.y.layout.block))).reshape(-1)
        operands = [whole, packed(residual, spec.y, np.nan)]
        want = np.maximum(want + bias + residual, 0)
    got = run(direct_conv(spec, "main"), packed(values, spec.x), pack(weights, spec), *operands, into=spec.y)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_any_convolution_is_as_in_torch(spec: DirectConv) -> None:
    check(spec)


@settings(max_examples=30, deadline=None)
@given(specs())
def test_a_sum_is_written_over_what_it_adds_to(spec: DirectConv) -> None:
    """Tiles overlap, and no pixel is added to twice."""
    y = spec.y
    sum_ = Program((Step("add", (Result(0), Operand(0))),), (OperandType("image", y),))
    spec = replace(spec, program=sum_)
    weights = noise((y.shape[1], spec.x.shape[1] // spec.groups, *spec.window.kernel), 1)
    given = packed(noise(spec.x.shape), spec.x), pack(weights, spec), packed(noise(y.shape, 2), y, np.nan)
    function = direct_conv(spec, "main")
    np.testing.assert_array_equal(run(function, *given, into=y, over=2), run(function, *given, into=y))


@settings(max_examples=20, deadline=None)
@given(specs(), st.sampled_from(X86))
def test_chosen_tiles_fit(spec: DirectConv, processor: Processor) -> None:

    tile = choose.tile(spec.x, spec.y, spec.window, spec.groups, processor)
    assert (spec.y.blocks // spec.groups) % tile.blocks == 0
    assert tile.rows <= spec.y.shape[2] and tile.columns <= spec.y.shape[3]
    assert tile.blocks * tile.rows * tile.columns < processor.registers
    direct_conv(DirectConv(spec.x, spec.y, spec.window, tile, spec.program, spec.groups), "main")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from(LANES))
@settings(max_examples=40, deadline=None)
def test_joined_groups_compute_the_same(groups: int, inputs: int, outputs: int, lanes: int) -> None:
    weights = noise((groups * outputs, inputs, 1, 1))
    wide, fewer = widen(weights, groups, lanes, lanes)
    assert fewer == 1 or (wide.shape[1] % lanes == 0 and len(wide) // fewer % lanes == 0)
    x = torch.from_numpy(noise((1, groups * inputs, 2, 2), 1))
    want = functional.conv2d(x, torch.from_numpy(weights), groups=groups)
    torch.testing.assert_close(functional.conv2d(x, torch.from_numpy(wide), groups=fewer), want)


def test_a_depth_that_does_not_divide_the_channels_is_refused() -> None:
    x, y = ImageType((1, 48, 4, 4), Layout(16)), ImageType((1, 16, 4, 4), Layout(16))
    with pytest.raises(ValueError, match="does not divide 3 blocks"):
        direct_conv(DirectConv(x, y, Window((1, 1)), Tile(1, 1, 4, depth=2, strip=4)), "main")
