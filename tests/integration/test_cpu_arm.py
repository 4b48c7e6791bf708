"""Kernels for ARM, run by an emulator and compared with torch: what LLVM makes of them for a board is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arm_programs import EMULATED, Call, Numbers, run
from blocked_pictures import noise, packed, unpacked
from torch.nn import functional

from benchmarks import cpu_arm, mca
from targets.cpu import choose
from targets.cpu.kernels import (
    concat,
    convert,
    dense,
    depthwise,
    direct,
    int8,
    pointwise,
    pool,
    resize,
    winograd,
    winograd_plan,
)
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import PLAIN, ImageType, Layout, Shape
from targets.cpu.processors import Processor
from targets.cpu.quantised import product

#: A call, and what is asserted of what it wrote.
Case = tuple[Call, Callable[[Numbers], None]]


@pytest.mark.parametrize("uname", EMULATED)
def test_kernels_compute_what_torch_does(uname: str, tmp_path: Path) -> None:
    machine, processor, *_ = EMULATED[uname]
    cases = list(Draw(machine.processor(processor), seed=20).cases())
    results = run(uname, [call for call, _ in cases], tmp_path)
    for (_, check), result in zip(cases, results, strict=True):
        check(result)


def test_inner_loops_keep_the_multiplier_busy() -> None:
    try:
        mca.tool()
    except mca.NoAnalyser as error:
        pytest.skip(str(error))
    rows = list(cpu_arm.measure(show=False))
    assert {row["processor"] for row in rows} == {"cortex-a72", "cortex-a9"}
    for row in rows:
        assert row["utilisation"] is not None and row["utilisation"] >= cpu_arm.WANTED, row


def epilogue(y: ImageType) -> Program:
    """Bias, residual sum, ReLU6."""
    channel = ImageType((1, y.shape[1], 1, 1), Layout(y.layout.block))
    steps = (
        Step("add", (Result(0), Operand(0))),
        Step("add", (Result(1), Operand(1))),
        Step("maximum", (Result(2), 0.0)),
        Step("minimum", (Result(3), 6.0)),
    )
    return Program(steps, (OperandType("channel", channel), OperandType("image", y)))


class Draw:
    """Kernels of sizes, strides, borders and tiles that are drawn, the same ones for a seed."""

    def __init__(self, processor: Processor, seed: int) -> None:
        self.processor, self.block, self.count = processor, processor.lanes, 0
        self.rng = np.random.default_rng(seed)

    def cases(self) -> Iterator[Case]:
        for planned in (True, False) * 3:
            yield self.convolution(planned)
        yield self.convolution(planned=True, plain=True)
        yield self.convolution(planned=False, plain=True)
        yield self.convolution(planned=True, groups=2)
        # Weights of these do not stay in the first-level cache, and few tiles use each.
        yield self.convolution(planned=True, channels=200)
        for shape in ((1, 70, 33), (9, 50, 41), (33, 130, 64), (3, 20, 3), (5, 9, 1)):
            yield self.matrix(*shape)
        for _ in range(3):
            yield self.depths()
        for order in ("groups", "strips", "registers"):
            yield self.winograd(order)
        yield self.winograd(None)
        yield self.pooling("max")
        yield self.pooling("average")
        yield self.mean()
        yield self.conversion(plain_x=True)
        yield self.conversion(plain_x=False)
        yield self.pointwork()
        yield self.joined()
        yield self.resized()
        yield self.integers()

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def shape(self, channels: int = 0) -> Shape:
        return self.number(1, 2), channels or self.number(1, 30), self.number(5, 12), self.number(5, 15)

    def border(self, least: tuple[int, ...] = (0, 0, 0, 0)) -> Layout:
        return Layout(self.block, *(side + self.number(0, 1) for side in least))

    def window(self, size: int = 3) -> direct.Window:
        kernel = self.number(1, size), self.number(1, size)
        stride, dilation = ((self.number(1, 2), self.number(1, 2)) for _ in range(2))
        return direct.Window(kernel, stride, dilation, tuple(self.number(0, k - 1) for k in kernel * 2))  # type: ignore[arg-type]

    def result(self, x: Shape, window: direct.Window, channels: int) -> ImageType:
        top, left, bottom, right = window.padding
        padded = x[2] + top + bottom, x[3] + left + right
        sizes = (
            (padded[i] - (window.kernel[i] - 1) * window.dilation[i] - 1) // window.stride[i] + 1 for i in range(2)
        )
        return ImageType((x[0], channels, *sizes), self.border())  # type: ignore[arg-type]

    def case(self, function: Any, inputs: list[Numbers], y: ImageType, want: Any, tolerance: float = 2e-5) -> Case:
        """``function`` builds a kernel of a name; its output must be a picture that is as ``want``."""
        name = f"kernel{self.count}"
        self.count += 1
        wrong = np.full(y.physical, np.nan if y.dtype == "float32" else 55, y.dtype)
        numbers = np.asarray(want, np.float64)

        def check(made: Numbers) -> None:
            got = unpacked(made, y, border=y.zero_point)
            np.testing.assert_allclose(
                got, numbers, tolerance, tolerance * np.abs(numbers).max(), err_msg=str(function)
            )

        return Call(name, function(name), (*inputs, wrong)), check

    def finished(self, sums: torch.Tensor, y: ImageType, program: Program) -> tuple[list[Numbers], torch.Tensor]:
        """The operands of :func:`epilogue` in their layouts, and what it makes of ``sums``."""
        if program is NOTHING:
            return [], sums
        bias, residual = noise((1, y.shape[1], 1, 1), 2), noise(y.shape, 3)
        channel = program.operands[0].type
        operands = [packed(bias, channel)[0, :, 0, 0].reshape(-1), packed(residual, y, np.nan)]
        return operands, (sums + torch.from_numpy(bias) + torch.from_numpy(residual)).clamp(0, 6)

    def program(self, y: ImageType) -> Program:
        return epilogue(y) if self.number(0, 1) else NOTHING

    def convolution(self, planned: bool, plain: bool = False, groups: int = 1, channels: int = 0) -> Case:
        shape = self.shape(channels or (groups * self.block * 2 if groups > 1 else 0))
        shape = (1, channels, 4, 6) if channels else shape
        window = direct.Window((3, 3), padding=(1, 1, 1, 1)) if channels else self.window()
        outputs = groups * self.block * self.number(1, 3) if groups > 1 else self.number(1, 40)
        x = ImageType(shape, Layout(1, *window.padding) if plain else self.border(window.padding))
        y = self.result(shape, window, outputs)
        form = choose.by_lane(self.processor)
        tile = choose.tile(x, y, window, groups, self.processor, by_lane=form)
        assert not channels or tile.depth
        if not planned:
            blocks = self.rng.choice([g for g in (1, 2, 3) if y.blocks % g == 0])
            tile = direct.Tile(int(blocks), self.number(1, min(y.shape[2], 2)), self.number(1, min(y.shape[3], 4)))
        spec = direct.DirectConv(x, y, window, tile, self.program(y), groups, form)
        values = noise(shape)
        weights = noise((outputs, shape[1] // groups, *window.kernel), 1) / np.float32(np.sqrt(shape[1]))
        top, left, bottom, right = window.padding
        padded = functional.pad(torch.from_numpy(values), (left, right, top, bottom))
        geometry = (None, window.stride, 0, window.dilation, groups)
        operands, want = self.finished(functional.conv2d(padded, torch.from_numpy(weights), *geometry), y, spec.program)
        inputs = [packed(values, x), direct.pack(weights, spec), *operands]
        return self.case(lambda name: direct.direct_conv(spec, name), inputs, y, want)

    def matrix(self, rows: int, inputs: int, outputs: int) -> Case:
        p, form = self.processor, choose.by_lane(self.processor)
        caches = {"l1_bytes": p.l1_bytes, "l2_bytes": p.l2_bytes}
        tile, width = dense.plan(rows, inputs, outputs, lanes=p.lanes, registers=p.registers, **caches, by_lane=form)
        y = ImageType((rows, outputs, 1, 1))
        spec = dense.Dense(rows, inputs, outputs, tile, width, NOTHING, form)
        x, weights = noise((rows, inputs, 1, 1)), noise((inputs, outputs, 1, 1), 1)
        want = (x[..., 0, 0] @ weights[..., 0, 0])[..., None, None]
        given = [x[..., 0, 0], dense.pack(weights[..., 0, 0], spec)]
        call, check = self.case(lambda name: dense.dense(spec, name), given, y, want)
        flat = (*given, np.full((rows, outputs), np.nan, np.float32))
        return Call(call.name, call.function, flat), lambda made: check(made[..., None, None])

    def depths(self) -> Case:
        shape, window = self.shape(), self.window()
        x, y = ImageType(shape, self.border(window.padding)), self.result(shape, window, shape[1])
        spec = depthwise.plan(x, y, window, self.program(y), self.processor)
        values, weights = noise(shape), noise((shape[1], 1, *window.kernel), 1)
        top, left, bottom, right = window.padding
        padded = functional.pad(torch.from_numpy(values), (left, right, top, bottom))
        geometry = (None, window.stride, 0, window.dilation, shape[1])
        operands, want = self.finished(functional.conv2d(padded, torch.from_numpy(weights), *geometry), y, spec.program)
        inputs = [packed(values, x), depthwise.pack(weights, spec), *operands]
        return self.case(lambda name: depthwise.depthwise(spec, name), inputs, y, want)

    def winograd(self, order: winograd.Order | None) -> Case:
        """With the cut that is planned, or one in an order that is given."""
        shape, outputs, padding = self.shape(), 4 * self.block, (1, 1, 1, 1)
        x, y = ImageType(shape, self.border(padding)), ImageType((shape[0], outputs, *shape[2:]), self.border())
        program, form = self.program(y), choose.by_lane(self.processor)
        if order is None:
            p = self.processor
            figures = {"registers": p.registers, "l2_bytes": p.l2_bytes, "threads": p.cores, "by_lane": form}
            spec = winograd_plan.plan(x, y, padding, program, **figures)
            assert spec is not None
        else:
            total = shape[0] * -(-shape[2] // 4) * -(-shape[3] // 4)
            blocks, tiles = (1 if order == "registers" else 2), min(3, total)
            cut = winograd.WinogradTile(order, blocks, tiles, total, tiles, x.blocks)
            spec = winograd.WinogradConv(x, y, padding, 4, cut, program, form)
        values, weights = noise(shape), noise((outputs, shape[1], 3, 3), 1) / np.float32(np.sqrt(9 * shape[1]))
        sums = functional.conv2d(torch.from_numpy(values), torch.from_numpy(weights), padding=1)
        operands, want = self.finished(sums, y, program)
        inputs = [packed(values, x), winograd.pack(weights, spec), *operands]
        return self.case(lambda name: winograd.winograd_conv(spec, name), inputs, y, want, tolerance=2e-4)

    def pooling(self, kind: Any) -> Case:
        shape = self.shape()
        window = direct.Window((3, 2), (2, 1), (1, 1), (1, 0, 1, 1))
        x, y = ImageType(shape, self.border()), self.result(shape, window, shape[1])
        values = noise(shape)
        fill = -np.inf if kind == "max" else 0.0
        padded = functional.pad(torch.from_numpy(values), (0, 1, 1, 1), value=fill)
        pooled = functional.max_pool2d if kind == "max" else functional.avg_pool2d
        want = pooled(padded, window.kernel, window.stride)
        spec = pool.Pool(x, y, kind, window)
        return self.case(lambda name: pool.pool(spec, name), [packed(values, x, np.nan)], y, want)

    def mean(self) -> Case:
        shape = self.shape()
        x, y = ImageType(shape, self.border()), ImageType((*shape[:2], 1, 1), self.border())
        values = noise(shape)
        want = values.mean(axis=(2, 3), keepdims=True)
        spec = pool.GlobalAverage(x, y)
        return self.case(lambda name: pool.global_average(spec, name), [packed(values, x, np.nan)], y, want)

    def conversion(self, plain_x: bool) -> Case:
        shape = self.shape()
        layouts = (PLAIN, self.border()) if plain_x else (self.border(), PLAIN)
        x, y = (ImageType(shape, layout) for layout in layouts)
        values = noise(shape)
        spec = convert.Convert(x, y)
        return self.case(lambda name: convert.convert(spec, name), [packed(values, x, np.nan)], y, values, 0)

    def pointwork(self) -> Case:
        shape = self.shape()
        x, y = ImageType(shape, self.border()), ImageType(shape, self.border())
        values = noise(shape)
        operands, want = self.finished(torch.from_numpy(values), y, epilogue(y))
        spec = pointwise.Pointwise(x, y, epilogue(y))
        inputs = [packed(values, x, np.nan), *operands]
        return self.case(lambda name: pointwise.pointwise(spec, name), inputs, y, want)

    def joined(self) -> Case:
        n, _, h, w = self.shape()
        xs = tuple(ImageType((n, c, h, w), self.border()) for c in (2 * self.block, self.block, 3))
        y = ImageType((n, 3 * self.block + 3, h, w), self.border())
        values = [noise(x.shape, i) for i, x in enumerate(xs)]
        inputs = [packed(value, x, np.nan) for value, x in zip(values, xs, strict=True)]
        spec = concat.Concat(xs, y)
        return self.case(lambda name: concat.concat(spec, name), inputs, y, np.concatenate(values, axis=1), 0)

    def resized(self) -> Case:
        shape = self.shape()
        x, y = ImageType(shape, self.border()), ImageType((*shape[:2], 17, 9), self.border())
        values = noise(shape)
        want = functional.interpolate(torch.from_numpy(values), (17, 9), mode="bilinear", align_corners=False)
        spec = resize.Resize(x, y, "linear", "half_pixel")
        inputs = [packed(values, x, np.nan), *resize.tables(spec)]
        return self.case(lambda name: resize.resize(spec, name), inputs, y, want)

    def integers(self) -> Case:
        """Bytes in, exact 32-bit sums, float32 out."""
        way = product(self.processor)
        shape, outputs = self.shape(24), 20
        window = direct.Window((3, 3), padding=(1, 1, 1, 1))
        x = ImageType(shape, Layout(max(self.block, way.word), 1, 1, 1, 1), way.activations, 3)
        y = ImageType((shape[0], outputs, *shape[2:]), self.border())
        tile = choose.tile(x, y, window, 1, self.processor)
        spec = int8.Int8Conv(x, y, window, tile, way)
        values = self.rng.integers(-128, 128, shape).astype(way.activations)
        weights = self.rng.integers(-127, 128, (outputs, shape[1], 3, 3)).astype(np.int8)
        bias = self.rng.integers(-999, 999, outputs).astype(np.int32)
        floats = torch.from_numpy(values.astype(np.float64) - 3)
        want = functional.conv2d(floats, torch.from_numpy(weights).double(), torch.from_numpy(bias).double(), padding=1)
        constants = [int8.pack(weights, spec), int8.fold_zero_point(weights, bias, 3, spec)]
        inputs = [packed(values, x, 3), *constants]
        return self.case(lambda name: int8.int8_conv(spec, name), inputs, y, want, 0)
