"""Winograd convolution over blocked pictures beside torch: any size, padding, border, block, program and cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, Numbers, borders, noise, packed, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from targets.cpu.kernels import winograd_transforms as transforms
from targets.cpu.kernels.lanes import ByLane
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.kernels.winograd import WinogradConv, WinogradTile, pack, winograd_conv
from targets.cpu.kernels.winograd_plan import SCRATCH_BYTES, cost, plan, scratch
from targets.cpu.layout import PLAIN, ImageType, Layout, Shape
from targets.cpu.processors import ARM64, ARMV7, X86, Processor

SAME = (1, 1, 1, 1)


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_make_a_filter_of_three_taps(m: int) -> None:
    rng = np.random.default_rng(m)
    inputs, weights = rng.standard_normal((m + 2, 50)), rng.standard_normal((3, 50))
    pairs = zip(transforms.inputs(m, inputs), transforms.weights(m, weights), strict=True)
    got = transforms.outputs(m, [a * b for a, b in pairs])
    np.testing.assert_allclose(got, [(inputs[i : i + 3] * weights).sum(0) for i in range(m)], atol=1e-12)


def images(x: Shape, channels: int, padding: tuple[int, int, int, int], lanes: int) -> tuple[ImageType, ImageType]:
    (batch, _, height, width), (top, left, bottom, right) = x, padding
    y = (batch, channels, height + top + bottom - 2, width + left + right - 2)
    return ImageType(x, Layout(lanes, *padding)), ImageType(y, Layout(lanes, *SAME))


def conv(size: int, channels: int, processor: Processor, batch: int = 1) -> WinogradConv | None:
    x, y = images((batch, channels, size, size), channels, SAME, processor.lanes)
    figures = {"registers": processor.registers, "l2_bytes": processor.l2_bytes, "threads": processor.cores}
    return plan(x, y, SAME, by_lane="" if processor in X86 else "fmla", **figures)


@st.composite
def tiles(draw: st.DrawFn, x: ImageType, y: ImageType, m: int) -> WinogradTile:
    total = y.shape[0] * -(-y.shape[2] // m) * -(-y.shape[3] // m)
    order = draw(st.sampled_from(["groups", "strips", "registers"]))
    blocks = draw(st.sampled_from([g for g in (1, 2, 3) if order != "registers" and y.blocks % g == 0] or [1]))
    in_registers = draw(st.integers(1, min(total, 5)))
    depth = draw(st.sampled_from([d for d in range(1, x.blocks + 1) if x.blocks % d == 0]))
    if order == "registers":
        return WinogradTile(order, 1, in_registers, total, in_registers, depth)
    strip = draw(st.integers(in_registers, total))
    part = draw(st.integers(in_registers, strip))
    if order == "strips":
        return WinogradTile(order, blocks, in_registers, strip, part, x.blocks)
    part = part if depth == x.blocks else part // in_registers * in_registers
    return WinogradTile(order, blocks, in_registers, strip, part, depth)


@st.composite
def specs(draw: st.DrawFn) -> WinogradConv:
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    top, left, bottom, right = padding
    m = draw(st.sampled_from([2, 4]))
    height, width = draw(st.integers(m, 14)), draw(st.integers(m, 14))
    size = max(1, height + 2 - top - bottom), max(1, width + 2 - left - right)
    batch, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    lanes, more = draw(st.sampled_from(LANES)), draw(st.integers(0, 1))
    x = ImageType((batch, inputs, *size), Layout(lanes, top + more, left + more, bottom, right + more))
    shape = (batch, outputs, size[0] + top + bottom - 2, size[1] + left + right - 2)
    y = ImageType(shape, draw(borders(lanes, 2)))
    operands = (OperandType("channel", ImageType((1, outputs, 1, 1), Layout(lanes))), OperandType("image", y))
    # Bias, residual sum, ReLU.
    steps = (
        Step("add", (Result(0), Operand(0))),
        Step("add", (Result(1), Operand(1))),
        Step("maximum", (Result(2), 0.0)),
    )
    program = draw(st.sampled_from([NOTHING, Program(steps, operands)]))
    by_lane: ByLane = draw(st.sampled_from(["", "fmla"]))
    return WinogradConv(x, y, padding, m, draw(tiles(x, y, m)), program, by_lane)


def convolve(spec: WinogradConv) -> tuple[Numbers, Numbers]:
    """The kernel's result and the one of torch, in double precision."""
    inputs, outputs = spec.x.shape[1], spec.y.shape[1]
    values, weights = noise(spec.x.shape), noise((outputs, inputs, 3, 3), 1) / np.float32(3 * inputs**0.5)
    bias, residual = noise((1, outputs, 1, 1), 2), noise(spec.y.shape, 3)
    top, left, bottom, right = spec.padding
    x = functional.pad(torch.from_numpy(values).double(), (left, right, top, bottom))
    want = functional.conv2d(x, torch.from_numpy(weights).double()).numpy()
    operands = []
    if spec.program.operands:
        whole = packed(bias, ImageType(bias.shape, Layout(spec.y.layout.block))).reshape(-1)
        operands = [whole, packed(residual, spec.y, np.nan)]
        want = np.maximum(want + bias + residual, 0)
    picture = packed(values, spec.x)
    # What is in lanes that are no channels must not matter, even if it is no number.
    *_, spare = np.moveaxis(picture, -1, 0)
    if inputs % spec.x.layout.block:
        spare[:, -1] = np.nan
    return run(winograd_conv(spec, "main"), picture, pack(weights, spec), *operands, into=spec.y), want


@settings(max_examples=40, deadline=None)
@given(specs())
def test_any_cut_is_as_in_torch(spec: WinogradConv) -> None:
    got, want = convolve(spec)
    assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("size", "channels", "batch"), [(7, 64, 1), (7, 64, 8), (19, 48, 2), (38, 16, 1)])
def test_a_planned_convolution_is_as_in_torch(size: int, channels: int, batch: int, lanes: int) -> None:
    x, y = images((batch, channels, size, size), channels, SAME, lanes)
    spec = plan(x, y, SAME, registers=32 if lanes == 16 else 16, l2_bytes=2**20, threads=2)
    assert spec is not None
    got, want = convolve(spec)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("order", ["groups", "registers"])
def test_the_error_of_many_channels_is_far_below_a_thousandth(order: str) -> None:
    x, y = images((1, 512, 7, 7), 512, SAME, 16)
    cut = {"groups": WinogradTile("groups", 2, 4, 4, 4, 2), "registers": WinogradTile("registers", 1, 4, 4, 4, 4)}
    got, want = convolve(WinogradConv(x, y, SAME, 4, cut[order]))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_pieces_that_overlap_do_not_change_a_bit() -> None:
    # 7 × 9 has moved tiles in both directions; 3 tiles, 5 and 4 divide nothing.
    x, y = images((2, 16, 7, 9), 32, SAME, 8)
    whole = WinogradConv(x, y, SAME, 4, WinogradTile("groups", 2, 6, 12, 12, 2))
    pieces = replace(whole, tile=WinogradTile("groups", 1, 3, 5, 4, 2))
    np.testing.assert_array_equal(convolve(whole)[0], convolve(pieces)[0])


@pytest.mark.parametrize("processor", [*X86, *ARM64, *ARMV7], ids=lambda processor: processor.name)
def test_plans_fit_the_picture_the_registers_and_the_scratch(processor: Processor) -> None:
    for size, channels, batch in [(56, 64, 1), (28, 128, 8), (14, 256, 1), (7, 512, 1), (5, 24, 1), (2, 8, 1)]:
        spec = conv(size, channels, processor, batch)
        assert spec is not None
        tile = spec.tile
        sums = tile.tiles * (spec.m + 2 if tile.order == "registers" else tile.blocks)
        assert sums < processor.registers
        assert tile.tiles <= tile.part <= tile.strip <= spec.tiles
        assert spec.y.blocks % tile.blocks == 0 and spec.x.blocks % tile.depth == 0
        assert tile.order != "groups" or tile.depth == spec.x.blocks or tile.part % tile.tiles == 0
        assert scratch(spec, processor.cores) <= SCRATCH_BYTES


def test_a_plan_saves_most_multiplications_where_there_are_many_tiles() -> None:
    processor = next(processor for processor in X86 if processor.name == "sapphirerapids")
    shares = []
    for size, channels in [(56, 64), (28, 128), (14, 256), (7, 512), (3, 512)]:
        spec = conv(size, channels, processor)
        assert spec is not None
        estimate = cost(spec, l2_bytes=processor.l2_bytes, threads=2)
        shares.append(estimate / (channels**2 * 9 * size**2))
    assert shares[0] < 0.5 and shares[1] < 0.5 and shares[2] < 0.7 and shares[3] < 0.9
    # A picture of 3 × 3 has four tiles of F(2, 3) that overlap.
    assert shares[4] > 1


def test_there_is_no_plan_where_winograd_does_not_apply() -> None:
    figures = {"registers": 32, "l2_bytes": 2**20, "threads": 2}
    x, y = images((1, 16, 1, 9), 16, SAME, 8)
    assert plan(x, y, SAME, **figures) is None
    x, y = images((1, 16, 9, 9), 16, SAME, 8)
    assert plan(replace(x, layout=PLAIN), y, SAME, **figures) is None
    assert plan(x, y, SAME, **figures, scratch_bytes=1000) is None
