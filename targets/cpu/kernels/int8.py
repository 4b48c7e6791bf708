"""Convolution of integers with exact 32-bit sums: the direct convolution's loops over words of channels.

A dense layer is a convolution over one pixel. Sums begin with the bias, into which a zero point z of the activations is
folded: Σ w·(x − z) = Σ w·x − z·Σ w holds because the border around a picture is filled with z too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.direct import Tile, Window
from targets.cpu.kernels.images import Image, Registers, argument, kernel, ramp
from targets.cpu.kernels.jobs import split_job
from targets.cpu.kernels.products import Product
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Int8Conv:
    """``x`` is blocked by words or more, ``y`` by lanes; its number of blocks is a multiple of the tile's.

    The program sees the sums as float32 and scales them; where ``y`` is of integers it clips them to what fits.
    """

    x: ImageType
    y: ImageType
    window: Window
    tile: Tile
    product: Product
    program: Program = NOTHING

    @property
    def words(self) -> int:
        """Words in a block of ``x``."""
        return self.x.layout.block // self.product.word


def pack(weights: Integers, spec: Int8Conv) -> Integers:
    """O, I, KH, KW to O/(g·b), I/a, KH, KW, a/w, g, b·w: in the order in which the kernel reads them.

    ``a`` is the input's block, ``b`` the output's, ``g`` the tile's blocks, ``w`` a word; missing channels are zeros.
    """
    outputs, inputs, height, width = weights.shape
    a, b, g, word = spec.x.layout.block, spec.y.layout.block, spec.tile.blocks, spec.product.word
    padded = np.zeros((spec.y.blocks * b, spec.x.blocks * a, height, width), spec.product.weights)
    padded[:outputs, :inputs] = weights
    parts = padded.reshape(spec.y.blocks // g, g, b, spec.x.blocks, a // word, word, height, width)
    ordered = parts.transpose(0, 3, 6, 7, 4, 1, 2, 5)
    return np.ascontiguousarray(ordered).reshape(*ordered.shape[:-2], b * word)


def fold_zero_point(weights: Integers, bias: Integers, zero_point: int, spec: Int8Conv) -> npt.NDArray[np.int32]:
    """The kernel's bias, whole blocks of channels: what the sums begin with so that activations count from zero."""
    folded = np.zeros(spec.y.blocks * spec.y.layout.block, np.int32)
    folded[: weights.shape[0]] = bias - zero_point * weights.sum(axis=(1, 2, 3), dtype=np.int32)
    return folded


def int8_conv(spec: Int8Conv, name: str) -> Any:
    """Arguments: x, packed weights, bias (int32), the program's operands, y."""
    (batch, channels, _, _), (_, _, out_height, out_width) = spec.x.shape, spec.y.shape
    (kernel_h, kernel_w), (stride_h, stride_w) = spec.window.kernel, spec.window.stride
    (dilation_h, dilation_w), (top, left, _, _) = spec.window.dilation, spec.window.padding
    b, word, tile, product = spec.y.layout.block, spec.product.word, spec.tile, spec.product
    groups = spec.y.blocks // tile.blocks
    row_tiles, column_tiles = -(-out_height // tile.rows), -(-out_width // tile.columns)
    full_blocks, rest = divmod(channels, spec.x.layout.block)

    def body() -> None:
        x = Image.argument("x", spec.x)
        weights = argument(
            "weights",
            (groups, spec.x.blocks, kernel_h, kernel_w, spec.words, tile.blocks, b * word),
            product.weights,
        )
        bias = argument("bias", (spec.y.blocks * b,), "int32")
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        words = words_of(x, product)
        pixels = [(r, c) for r in range(tile.rows) for c in range(tile.columns)]

        def register(g: int, pixel: int) -> int:
            return g * len(pixels) + pixel

        with T.parallel(0, groups * batch * row_tiles) as job:
            n, group, strip = split_job(job, spec.y, groups, row_tiles)
            # The last tile of a row or column is moved back so that it ends with the picture.
            row = tirx.min(strip * tile.rows, out_height - tile.rows)
            sums = Registers(tile.blocks * len(pixels), b, "int32")
            with T.serial(0, column_tiles) as column_tile:
                column = tirx.min(column_tile * tile.columns, out_width - tile.columns)
                for g in range(tile.blocks):
                    for pixel in range(len(pixels)):
                        first = bias[ramp((group * tile.blocks + g) * b, b)]
                        sums[register(g, pixel)] = first

                def multiply(block: Any, count: int) -> None:
                    with T.serial(0, kernel_h) as ky, T.serial(0, kernel_w) as kx, T.serial(0, count) as w:
                        for pixel, (r, c) in enumerate(pixels):
                            source_y = (row + r) * stride_h + ky * dilation_h - top
                            source_x = (column + c) * stride_w + kx * dilation_w - left
                            value = words.scalar(n, block, source_y, source_x, w)
                            for g in range(tile.blocks):
                                index = register(g, pixel)
                                ws = weights[group, block, ky, kx, w, g, ramp(0, b * word)]
                                sums[index] = product.multiply(sums[index], ws, value, b)

                if full_blocks:
                    with T.serial(0, full_blocks) as block:
                        multiply(block, spec.words)
                if rest:
                    multiply(full_blocks, -(-rest // word))
                for g in range(tile.blocks):
                    for pixel, (r, c) in enumerate(pixels):
                        where = (n, group * tile.blocks + g, row + r, column + c)
                        value = program(tirx.Cast(f"float32x{b}", sums[register(g, pixel)]), b, *where)
                        y.put(*where, value)
            for g in range(tile.blocks):
                y.clear_border(n, group * tile.blocks + g, row, tile.rows)

    return kernel(name, body)


def words_of(x: Image, product: Product) -> Image:
    """The same buffer, its elements words of channels."""
    n, _, h, w = x.type.shape
    words = x.type.layout.block // product.word
    seen = ImageType((n, x.type.blocks * words, h, w), replace(x.type.layout, block=words), product.word_dtype)
    return Image(seen, T.decl_buffer(seen.physical, product.word_dtype, data=x.buffer.data))
