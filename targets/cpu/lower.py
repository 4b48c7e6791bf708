"""Which kernel runs a layer, with its specification and its packed constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.cpu import choose
from targets.cpu.database import Tuned
from targets.cpu.graph import (
    Concatenation,
    Convolution,
    GlobalAverage,
    IntegerConvolution,
    Interleaving,
    Layer,
    Matrix,
    Pointwise,
    Pooling,
    Quantisation,
    Resizing,
    Separable,
)
from targets.cpu.grouped import widen
from targets.cpu.kernels import (
    concat,
    dense,
    depthwise,
    direct,
    int8,
    interleave,
    pointwise,
    pool,
    quantise,
    resize,
    separable,
    winograd,
)
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.program import OperandType, Program
from targets.cpu.layout import ImageType, Layout
from targets.cpu.problem import Problem, Spec, chosen
from targets.cpu.processors import Processor
from targets.cpu.quantised import product
from targets.cpu.separable import plan


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel: its name, what builds it from its specification, and the constants that it reads after its inputs."""

    name: str
    build: Callable[[Any, str], Any]
    spec: Hashable
    constants: tuple[npt.NDArray[Any], ...] = ()
    #: Floating-point operations of its products.
    flops: int = 0
    #: How it does it, for a person.
    choice: str = ""
    #: Which argument the result may be written over: each of its pixels is read before, and only by who writes it.
    over: int | None = None


def lower(
    layer: Layer, inputs: Sequence[ImageType], output: ImageType, program: Program, processor: Processor, tuned: Tuned
) -> Call:
    """The call that computes ``output`` of a layer from ``inputs``; ``program`` has the layouts of the operands."""
    work, x = layer.work, inputs[0]
    match work:
        case Convolution():
            return _convolution(work, x, output, program, processor, tuned)
        case Separable():
            return _separable(work, x, output, program, processor, tuned)
        case Matrix():
            return _matrix(work, x, program, processor)
        case Pooling():
            spec = pool.Pool(x, output, work.kind, work.window, work.count_include_pad, program)  # type: ignore[arg-type]
            return Call(f"{work.kind}_pool2d", pool.pool, spec)
        case GlobalAverage():
            return Call("global_average", pool.global_average, pool.GlobalAverage(x, output, program))
        case Interleaving():
            spread = interleave.Interleave(x, output, work.stride, program)
            return Call("interleave", interleave.interleave, spread)
        case IntegerConvolution():
            return _integers(work, x, output, program, processor)
        case Quantisation() if x.layout.block == 1:
            return Call("quantize", quantise.quantise, quantise.Quantise(x, output, program))
        case Pointwise() | Quantisation():
            over = 0 if x == output else _alike(program, output, 1)
            return Call("pointwise", pointwise.pointwise, pointwise.Pointwise(x, output, program), over=over)
        case Concatenation():
            return Call("concat", concat.concat, concat.Concat(tuple(inputs), output))
        case Resizing():
            resized = resize.Resize(x, output, work.method, work.coordinates, work.rounding)
            return Call("resize2d", resize.resize, resized, resize.tables(resized))


def _alike(program: Program, output: ImageType, before: int) -> int | None:
    """The first operand that lies in memory as the output does; there are so many arguments before the operands."""
    alike = (i for i, each in enumerate(program.operands) if each.kind == "image" and each.type == output)
    return next((before + index for index in alike), None)


def _once(spec: Spec) -> bool:
    """Whether no pixel of the result is computed twice: tiles do not overlap, or only one of them writes it."""
    if not isinstance(spec, depthwise.Depthwise):
        return True
    rows, columns = spec.y.shape[2:]
    return rows % spec.rows == 0 and columns % spec.columns == 0


def _integers(work: IntegerConvolution, x: ImageType, y: ImageType, program: Program, processor: Processor) -> Call:
    tile = replace(choose.tile(x, y, work.window, 1, processor), depth=0, strip=1)
    spec = int8.Int8Conv(x, y, work.window, tile, product(processor), program)
    constants = (int8.pack(work.weights, spec), int8.fold_zero_point(work.weights, work.bias, x.zero_point, spec))
    choice = f"{spec.product.name}, {tile.blocks} blocks of {y.layout.block} channels × {tile.rows} × {tile.columns}"
    flops = 2 * math.prod(work.weights.shape[1:]) * math.prod(y.shape)
    return Call("int8_conv2d", int8.int8_conv, spec, constants, flops, choice)


def _matrix(work: Matrix, x: ImageType, program: Program, processor: Processor) -> Call:
    rows, inputs = x.shape[:2]
    outputs = len(work.weights)
    by_lane = choose.by_lane(processor)
    tile, lanes = dense.plan(
        rows,
        inputs,
        outputs,
        lanes=processor.lanes,
        registers=processor.registers,
        l1_bytes=processor.l1_bytes,
        l2_bytes=processor.l2_bytes,
        by_lane=by_lane,
    )
    spec = dense.Dense(rows, inputs, outputs, tile, lanes, program, by_lane)
    packed = dense.pack(work.weights, spec, transposed=True)
    return Call("dense", dense.dense, spec, (packed,), 2 * rows * inputs * outputs, f"matrix product, {spec.tile}")


def _convolution(
    work: Convolution, x: ImageType, y: ImageType, program: Program, processor: Processor, tuned: Tuned
) -> Call:
    flops = 2 * math.prod(work.weights.shape[1:]) * math.prod(y.shape)
    weights, groups = work.weights, work.groups
    each = groups == x.shape[1] == y.shape[1] > 1 and x.layout.block == y.layout.block
    if not each:
        weights, groups = widen(weights, groups, x.layout.block, y.layout.block)
    spec, measured = chosen(Problem(x, y, work.window, groups, program, each), processor, tuned)
    made = kernel(spec)
    choice = f"{made.words}, tuned" if measured else made.words
    over = _alike(program, y, 2) if _once(spec) else None
    return Call(made.name, made.build, spec, (made.pack(weights, spec),), flops, choice, over)


def _separable(
    work: Separable, x: ImageType, y: ImageType, program: Program, processor: Processor, tuned: Tuned
) -> Call:
    first = work.depthwise
    between = ImageType((*x.shape[:2], *y.shape[2:]), Layout(x.layout.block))
    last, measured = chosen(Problem(between, y, Window((1, 1)), 1, program), processor, tuned)
    assert isinstance(last, direct.DirectConv)
    numbers = OperandType("channel", ImageType((1, x.shape[1], 1, 1), between.layout))
    own = Program(work.steps, (numbers,) * len(work.operands))
    spec = plan(x, first.window, own, last, processor)
    constants = (
        depthwise.pack(first.weights, spec.depthwise),
        *(whole(each, between) for each in work.operands),
        direct.pack(work.weights, spec.pointwise),
    )
    flops = 2 * (math.prod(first.weights.shape[1:]) * math.prod(between.shape) + x.shape[1] * math.prod(y.shape))
    words = [kernel(part).words for part in (spec.depthwise, spec.pointwise)]
    choice = f"{words[0]}, {separable.scratch(spec).shape[2]} rows at a time, then {words[1]}"
    over = _alike(program, y, 1 + len(constants))
    choice += ", tuned" * measured
    return Call("separable_conv2d", separable.separable, spec, constants, flops, choice, over)


def whole(values: npt.NDArray[np.float32], image: ImageType) -> npt.NDArray[np.float32]:
    """One number a channel, zeros up to whole blocks."""
    padded = np.zeros(image.blocks * image.layout.block, np.float32)
    padded[: len(values)] = values
    return padded


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a specification is made code: the kernel's name, what builds it, what packs its weights, and words for it."""

    name: str
    build: Callable[[Any, str], Any]
    pack: Callable[[npt.NDArray[np.float32], Any], npt.NDArray[np.float32]]
    words: str


def kernel(spec: Spec) -> Kernel:
    """What computes a convolution in this way. Its arguments: the picture, packed weights, operands, the result."""
    if isinstance(spec, depthwise.Depthwise):
        words = f"depthwise, {spec.rows} × {spec.columns} in registers"
        return Kernel("depthwise_conv2d", depthwise.depthwise, depthwise.pack, words)
    if isinstance(spec, winograd.WinogradConv):
        words = f"Winograd F({spec.m}×{spec.m}, 3×3), {spec.tile}"
        return Kernel("winograd_conv2d", winograd.winograd_conv, winograd.pack, words)
    tile = spec.tile
    words = (
        f"direct, {tile.blocks} blocks of {spec.y.layout.block} channels × {tile.rows} × {tile.columns} in registers"
    )
    if tile.depth:
        words += f", strips of {tile.strip} with {tile.depth} blocks of inputs"
    return Kernel("conv2d", direct.direct_conv, direct.pack, words)
