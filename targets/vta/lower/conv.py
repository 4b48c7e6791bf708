"""Instructions of a convolution: its tiles one after the other, each from zero to stored.

The epilogue is as short as the instruction set allows: rounding constants are part of the bias, so an output vector
costs ADD (bias), SHR, MAX, MIN. A residual is added by the GEMM core, with weights that hold a power of two on their
diagonal, which moves a quarter of the bytes that 32-bit operands would; it costs one SHR more at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from targets.vta.config import VtaConfig
from targets.vta.isa import AluOp, Memory
from targets.vta.lower.blocks import block_mask, identity_block, weight_blocks
from targets.vta.lower.stream import Stream
from targets.vta.lower.tiling import (
    Chunk,
    Geometry,
    Schedule,
    Tile,
    best,
    input_window,
    residual_parts,
    spans,
)
from targets.vta.qgraph import LIMIT, QConv

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.graph import Shape
    from targets.vta.lower.stream import Uops

#: The hardware takes five signed bits of a shift.
MAX_SHIFT = 15
#: Parts in which a tile is finished and stored: the store of one overlaps with the work on the next.
STORE_PARTS = 4


def geometry(node: QConv, source: Shape, target: Shape, config: VtaConfig) -> Geometry:
    """The convolution in blocks; ``source`` and ``target`` are the shapes of its input and output."""
    outputs, _, kh, kw = node.weight.shape
    return Geometry(
        n=-(-source[0] // config.batch),
        ci=-(-source[1] // config.block),
        co=-(-target[1] // config.block),
        h=source[2],
        w=source[3],
        oh=target[2],
        ow=target[3],
        kernel=(kh, kw),
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        mask=block_mask(outputs, source[1], node.groups, config.block),
        residual=bool(node.residual),
    )


class ConvLowering:
    """One convolution on its way to instructions.

    ``weights`` and ``bias`` are the bytes of its constants. Addresses are given when it is emitted, in bytes.
    """

    def __init__(self, node: QConv, source: Shape, target: Shape, config: VtaConfig) -> None:
        self._node = node
        self._config = config
        self._geometry = geometry(node, source, target, config)
        self._schedule: Schedule = best(self._geometry, config)
        self._offsets: dict[tuple[int, ...], int] = {}
        self.weights = self._pack_weights()
        self.bias = self._pack_bias()

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    # --- Constants ------------------------------------------------------------------------------

    def _pack_weights(self) -> bytes:
        """Blocks in the order in which chunks load them; last, for a residual, the diagonal one."""
        blocks = weight_blocks(self._node.weight, self._node.groups, self._config.block)
        packed: list[npt.NDArray[np.int8]] = []
        count = 0
        for tile, group in zip(self._schedule.tiles, self._schedule.chunks, strict=True):
            for chunk in group:
                if chunk.wgt in self._offsets:
                    continue
                self._offsets[chunk.wgt] = count
                for ci in chunk.ci:
                    chosen = blocks[self._outputs_of(tile, ci), ci].transpose(1, 2, 0, 3, 4)
                    packed.append(chosen.reshape(-1))
                count += chunk.pairs * blocks.shape[2] * blocks.shape[3]
        if self._node.residual:
            packed.append(identity_block(self._config.block, 1 << self._node.residual_shift).reshape(-1))
        self._diagonal = count
        return np.concatenate(packed).tobytes()

    def _pack_bias(self) -> bytes:
        """(channel blocks, batch, block) int32: the bias with every rounding constant that the epilogue needs."""
        node = self._node
        shift = node.shift.astype(np.int64)
        bias = node.bias.astype(np.int64) + np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
        if node.final_shift > 0:
            # ((x + r << n) >> n) == (x >> n) + r, so the second rounding goes in before the first shift.
            bias += (1 << node.final_shift - 1) << shift
        padded = np.zeros(self._geometry.co * self._config.block, np.int64)
        padded[: len(bias)] = bias
        blocks = padded.astype(np.int32).reshape(self._geometry.co, 1, self._config.block)
        return np.ascontiguousarray(
            np.broadcast_to(blocks, (len(blocks), self._config.batch, blocks.shape[2]))
        ).tobytes()

    def _outputs_of(self, tile: Tile, ci: int) -> list[int]:
        """Output blocks of a tile that have weights for an input block."""
        return [co for co in range(*tile.co) if self._geometry.mask[co * self._geometry.ci + ci]]

    # --- Instructions ---------------------------------------------------------------------------

    def emit(self, stream: Stream, *, source: int, target: int, weights: int, bias: int, residual: int = 0) -> None:
        """Append the instructions; the arguments are the addresses of the tensors and constants in bytes."""
        config, schedule = self._config, self._schedule
        tiling = schedule.tiling
        size = tiling.rows * tiling.columns * tiling.co
        bias_at = size * tiling.accumulators
        inp, wgt = iter(schedule.inp), iter(schedule.wgt)
        if self._node.residual:
            stream.load(Memory.WGT, config.wgt_depth - 1, weights // config.wgt_bytes + self._diagonal, 1, 1, 1)
        loaded_bias = (-1, -1)
        for number, (tile, group) in enumerate(zip(schedule.tiles, schedule.chunks, strict=True)):
            start = size * (number % tiling.accumulators)
            if tile.co != loaded_bias:
                loaded_bias = tile.co
                stream.load(Memory.ACC, bias_at, bias // config.acc_bytes + tile.co[0], 1, tile.blocks, tile.blocks)
            stream.reset(start, tile.pixels * tile.blocks)
            for chunk in group:
                place = next(inp)
                inp_at = place.slot * schedule.inp_slot
                if place.load:
                    self._load_input(stream, tile, chunk, inp_at, source)
                place = next(wgt)
                wgt_at = place.slot * schedule.wgt_slot
                if place.load:
                    count = chunk.pairs * self._geometry.kernel[0] * self._geometry.kernel[1]
                    stream.load(
                        Memory.WGT, wgt_at, weights // config.wgt_bytes + self._offsets[chunk.wgt], 1, count, count
                    )
                self._multiply(stream, tile, chunk, start, inp_at, wgt_at)
            self._add_bias(stream, tile, start, bias_at)
            if self._node.residual:
                for low, high in residual_parts(tile, schedule.inp_slot):
                    place = next(inp)
                    inp_at = place.slot * schedule.inp_slot
                    if place.load:
                        self._load_residual(stream, tile, (low, high), inp_at, residual)
                    self._add_residual(stream, tile, (low, high), start, inp_at)
            for low, high in spans(tile.blocks, -(-tile.blocks // STORE_PARTS)):
                at, count = start + low * tile.pixels, (high - low) * tile.pixels
                _shift(stream, at, count, self._node.final_shift)
                stream.immediate(AluOp.MAX, at, count, 0 if self._node.relu else -LIMIT)
                stream.immediate(AluOp.MIN, at, count, LIMIT)
                self._store(stream, tile, (tile.co[0] + low, tile.co[0] + high), at, target)

    def _load_input(self, stream: Stream, tile: Tile, chunk: Chunk, inp_at: int, source: int) -> None:
        shape = self._geometry
        rows, columns = input_window(shape, tile)
        height = shape.input_rows(tile.y[1] - tile.y[0])
        width = shape.input_columns(tile.x[1] - tile.x[0])
        top = max(shape.padding[0] - tile.y[0] * shape.stride[0], 0)
        left = max(shape.padding[1] - tile.x[0] * shape.stride[1], 0)
        real = (rows[1] - rows[0], columns[1] - columns[0])
        pads = (top, left, height - top - real[0], width - left - real[1])
        step = shape.row_step
        for number, ci in enumerate(chunk.ci):
            plane = source // self._config.inp_bytes + (tile.n * shape.ci + ci) * shape.h * shape.w
            dram = plane + rows[0] * step * shape.w + columns[0]
            sram = inp_at + number * height * width
            if real[1] == shape.w and step == 1 and not any(pads):
                stream.load(Memory.INP, sram, dram, 1, real[0] * real[1], real[0] * real[1])  # one burst
            else:
                stream.load(Memory.INP, sram, dram, real[0], real[1], shape.w * step, pads)

    def _multiply(self, stream: Stream, tile: Tile, chunk: Chunk, start: int, inp_at: int, wgt_at: int) -> None:
        """One instruction for each input block and kernel position: it touches every output vector just once."""
        shape = self._geometry
        rows, columns = tile.y[1] - tile.y[0], tile.x[1] - tile.x[0]
        height, width = shape.input_rows(rows), shape.input_columns(columns)
        lists: list[Uops] = []
        for number, ci in enumerate(chunk.ci):
            outputs = np.array(self._outputs_of(tile, ci), np.int64)
            for ky in range(shape.kernel[0]):
                for kx in range(shape.kernel[1]):
                    uops = np.zeros((len(outputs), 3), np.int64)
                    uops[:, 0] = start + (outputs - tile.co[0]) * tile.pixels
                    uops[:, 1] = (
                        inp_at + number * height * width + ky * shape.dilation[0] * width + kx * shape.dilation[1]
                    )
                    uops[:, 2] = wgt_at + np.arange(len(outputs))
                    wgt_at += len(outputs)
                    lists.append(uops)
        base = stream.place(np.concatenate(lists))
        down = width if shape.row_step > 1 else shape.stride[0] * width
        outer = (rows, columns, down) if rows > 1 else (1, 0, 0)
        for uops in lists:
            stream.gemm(uops, base, outer, (columns, 1, shape.stride[1]))
            base += len(uops)

    def _add_bias(self, stream: Stream, tile: Tile, start: int, bias_at: int) -> None:
        pixels = tile.pixels
        outer = (tile.blocks, pixels, 1) if tile.blocks > 1 else (1, 0, 0)
        stream.alu(AluOp.ADD, start, bias_at, outer, (pixels, 1, 0))
        for shift, blocks in _runs(self._node.shift[:: self._config.block][slice(*tile.co)]):
            _shift(stream, start + blocks[0] * pixels, (blocks[1] - blocks[0]) * pixels, shift)

    def _load_residual(self, stream: Stream, tile: Tile, part: tuple[int, int], inp_at: int, residual: int) -> None:
        shape, pixels = self._geometry, tile.pixels
        plane = shape.oh * shape.ow
        first = residual // self._config.inp_bytes + (tile.n * shape.co + part[0]) * plane
        dram = first + tile.y[0] * shape.ow + tile.x[0]
        if tile.x == (0, shape.ow):
            stream.load(Memory.INP, inp_at, dram, part[1] - part[0], pixels, plane)
            return
        for number in range(part[1] - part[0]):
            rows, columns = tile.y[1] - tile.y[0], tile.x[1] - tile.x[0]
            stream.load(Memory.INP, inp_at + number * pixels, dram + number * plane, rows, columns, shape.ow)

    def _add_residual(self, stream: Stream, tile: Tile, part: tuple[int, int], start: int, inp_at: int) -> None:
        count = part[1] - part[0]
        at = start + (part[0] - tile.co[0]) * tile.pixels
        uops = np.array([[at, inp_at, self._config.wgt_depth - 1]], np.int64)
        stream.gemm(uops, stream.place(uops), inner=(count * tile.pixels, 1, 1))

    def _store(self, stream: Stream, tile: Tile, part: tuple[int, int], at: int, target: int) -> None:
        shape, pixels = self._geometry, tile.pixels
        plane = shape.oh * shape.ow
        first = target // self._config.out_bytes + (tile.n * shape.co + part[0]) * plane
        dram = first + tile.y[0] * shape.ow + tile.x[0]
        if tile.x == (0, shape.ow):
            stream.store(at, dram, part[1] - part[0], pixels, plane)
            return
        for number in range(part[1] - part[0]):
            rows, columns = tile.y[1] - tile.y[0], tile.x[1] - tile.x[0]
            stream.store(at + number * pixels, dram + number * plane, rows, columns, shape.ow)


def _shift(stream: Stream, at: int, count: int, shift: int) -> None:
    """Arithmetic shift right of ``count`` ACC elements, left when negative, in steps that the hardware can take."""
    while shift > 0:
        step = min(shift, MAX_SHIFT)
        stream.immediate(AluOp.SHR, at, count, step)
        shift -= step
    if shift < 0:
        stream.immediate(AluOp.SHR, at, count, shift)


def _runs(shifts: npt.NDArray[np.int32]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Each shift with the half-open range of neighbouring blocks that share it."""
    at = 0
    for shift, group in groupby(shifts.tolist()):
        size = len(list(group))
        yield int(shift), (at, at + size)
        at += size
