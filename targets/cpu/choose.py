"""Which kernel computes a convolution, with which tile: from the processor's figures, without a search.

Every kernel that can compute it is a candidate with an estimate of its cycles; the cheapest is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from targets.cpu.kernels.direct import DirectConv, Tile, Window
from targets.cpu.kernels.jobs import by_rows
from targets.cpu.kernels.lanes import AHEAD, ByLane
from targets.cpu.kernels.program import Program
from targets.cpu.kernels.winograd import WinogradConv
from targets.cpu.kernels.winograd_plan import cost, plan, plans
from targets.cpu.layout import ImageType
from targets.cpu.processors import Processor

#: Cycles from the start of a multiply-add to its sum (Intel and AMD since 2015: 4; Cortex-A72: 7, A76: 4).
LATENCY = 4
#: Registers that x86's form keeps for a broadcast pixel and for weights.
NOT_SUMS = 4
#: Bytes of pixels that cost as much to read again as one byte of weights (measured).
STRIP_GAIN = 1.5
#: How much longer a strip takes whose weights of one step do not stay in the first-level cache (measured).
CROWDED = 1.3
#: Tiles of a picture up to which weights that come from memory are what a convolution waits for.
FEW_TILES = 16
#: How much of the first-level cache a strip's weights and its unfinished sums may take; the rest is for pixels.
WEIGHTS_SHARE = 0.375
SUMS_SHARE = 0.33
#: Bytes a cycle from the second-level cache: what weights that do not fit the first level come with.
L2_BYTES = 32


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that can compute a convolution. ``cost`` is in multiply-adds that would take as long."""

    spec: DirectConv | WinogradConv
    cost: float


def convolution(
    x: ImageType, y: ImageType, window: Window, groups: int, program: Program, processor: Processor
) -> list[Candidate]:
    """The best of each kind of kernel, the cheapest first. Groups are whole blocks of both pictures."""
    lanes = by_lane(processor)
    fitting = tile(x, y, window, groups, processor, by_lane=lanes)
    found = [_direct(DirectConv(x, y, window, fitting, program, groups, lanes), processor)]
    if _by_winograd(window, groups):
        sizes = {"registers": processor.registers, "l2_bytes": processor.l2_bytes, "threads": processor.cores}
        winograd = plan(x, y, window.padding, program, **sizes, by_lane=lanes)
        if winograd is not None:
            found.append(_winograd(winograd, processor))
    return sorted(found, key=lambda candidate: candidate.cost)


def every(
    x: ImageType, y: ImageType, window: Window, groups: int, program: Program, processor: Processor
) -> Iterator[Candidate]:
    """All that could be chosen, in no order: what `convolution` chooses is among them. Some come twice."""
    lanes = by_lane(processor)
    known, lane = _of_input(processor, lanes, x)
    for t in _tiles(y.blocks // groups, *y.shape[2:], known, lane):
        for cut in _cuts(t, x, y, window, groups, processor):
            yield _direct(DirectConv(x, y, window, cut, program, groups, lanes), processor)
    if _by_winograd(window, groups):
        for spec in plans(
            x, y, window.padding, program, registers=processor.registers, threads=processor.cores, by_lane=lanes
        ):
            yield _winograd(spec, processor)


def _by_winograd(window: Window, groups: int) -> bool:
    return (window.kernel, window.stride, window.dilation, groups) == ((3, 3), (1, 1), (1, 1), 1)


def _direct(spec: DirectConv, processor: Processor) -> Candidate:
    x, y, groups = spec.x, spec.y, spec.groups
    known, lane = _of_input(processor, spec.by_lane, x)
    cycles = _cycles(spec.tile, y.blocks // groups, *y.shape[2:], y.shape[0] * groups, known, lane)
    steps = -(-x.shape[1] // groups) * math.prod(spec.window.kernel)
    return Candidate(spec, cycles * steps * processor.fma_per_cycle * processor.lanes)


def _winograd(spec: WinogradConv, processor: Processor) -> Candidate:
    return Candidate(spec, cost(spec, l2_bytes=processor.l2_bytes, threads=processor.cores))


def tile(
    x: ImageType, y: ImageType, window: Window, groups: int, processor: Processor, *, by_lane: ByLane = ""
) -> Tile:
    """The tile of a direct convolution that takes the fewest cycles."""
    processor, by_lane = _of_input(processor, by_lane, x)
    (batch, _, rows, columns), blocks = y.shape, y.blocks // groups

    def cycles(t: Tile) -> float:
        found = _cycles(t, blocks, rows, columns, batch * groups, processor, by_lane)
        cut = _in_strips(t, x, y, window, groups, processor)
        # What strips are for: the weights of one step stay in the first-level cache.
        crowded = cut.depth and _step_bytes(t, x, y, window) > WEIGHTS_SHARE * processor.l1_bytes
        return found * (CROWDED if crowded else 1)

    return _in_strips(
        min(_tiles(blocks, rows, columns, processor, by_lane), key=cycles), x, y, window, groups, processor
    )


def _of_input(processor: Processor, by_lane: ByLane, x: ImageType) -> tuple[Processor, ByLane]:
    """What a direct convolution of ``x`` finds: plain pixels are not taken by lane."""
    if x.layout.block > 1:
        return processor, by_lane
    if by_lane == "vmla":
        # The order of instructions is written down, and what the next ones need is loaded.
        processor = replace(processor, registers=processor.registers - AHEAD)
    return processor, ""


def _cuts(t: Tile, x: ImageType, y: ImageType, window: Window, groups: int, processor: Processor) -> Iterator[Tile]:
    """The tile as `tile` would cut it, and around that."""
    cut = _in_strips(t, x, y, window, groups, processor)
    yield cut
    if cut == t:
        return
    yield t
    row_tiles, whole_blocks = math.ceil(y.shape[2] / t.rows), x.shape[1] // groups // x.layout.block
    depths = (cut.depth, whole_blocks, 2 * cut.depth) if cut.depth else (0,)
    for depth, strip in itertools.product(depths, (cut.strip, 1, 2 * cut.strip)):
        if (
            (not depth or whole_blocks % depth == 0)
            and strip <= row_tiles
            and strip * math.ceil(y.shape[3] / t.columns) > 1
        ):
            yield replace(t, depth=depth, strip=strip)


def _step_bytes(t: Tile, x: ImageType, y: ImageType, window: Window) -> int:
    """Weights that a tile uses for one block of input channels."""
    return 4 * t.blocks * y.layout.block * x.layout.block * math.prod(window.kernel)


def _in_strips(t: Tile, x: ImageType, y: ImageType, window: Window, groups: int, processor: Processor) -> Tile:
    """The tile, in strips of rows where that brings fewer bytes near, or brings them at a better pace."""
    lanes, whole_blocks = y.layout.block, x.shape[1] // groups // x.layout.block
    weights = _step_bytes(t, x, y, window)
    row_tiles, column_tiles = math.ceil(y.shape[2] / t.rows), math.ceil(y.shape[3] / t.columns)
    few = y.shape[0] * row_tiles * column_tiles <= FEW_TILES
    if by_rows(y):
        # Of rows that a thread has, it passes by all weights for each, or by all rows for each group of channels.
        all_weights = weights * whole_blocks * (y.blocks // t.blocks)
        read = [y.shape[2 + i] * min(window.kernel[i], window.stride[i]) for i in (0, 1)]
        all_pixels = 4 * x.shape[1] * math.prod(read)
        # All groups read the strip's pixels: half of the second-level cache is for them.
        near = processor.l2_bytes // 2 // (all_pixels // row_tiles)
        own = max(1, min(row_tiles // processor.cores, near))
        strip = max(rows for rows in range(1, own + 1) if row_tiles % rows == 0)
        pays = y.blocks // t.blocks * all_pixels < STRIP_GAIN * row_tiles * all_weights
        return replace(t, strip=strip) if pays else t
    if weights * whole_blocks <= WEIGHTS_SHARE * processor.l1_bytes or not few:
        return t
    waiting = 4 * t.blocks * lanes * t.rows * t.columns * column_tiles
    strip = min(row_tiles, max(1, int(SUMS_SHARE * processor.l1_bytes // waiting)))
    strip = math.ceil(row_tiles / math.ceil(row_tiles / strip))
    if strip * column_tiles == 1:
        return t
    fitting = max(1, int(WEIGHTS_SHARE * processor.l1_bytes // weights))
    depth = max(d for d in range(1, fitting + 1) if whole_blocks % d == 0)
    return replace(t, depth=depth, strip=strip)


def _tiles(blocks: int, rows: int, columns: int, processor: Processor, by_lane: ByLane) -> Iterator[Tile]:
    for g in (g for g in range(1, min(blocks, 16) + 1) if blocks % g == 0):
        for r, c in itertools.product(range(1, min(rows, 8) + 1), range(1, min(columns, 31) + 1)):
            sums = g * r * c
            if by_lane:
                # All pixels of a step are in registers. Where the order of instructions is written down, a block's
                # weights come when they are needed.
                weights = min(g, 1 + math.ceil(AHEAD / (r * c))) if by_lane == "vmla" else g
                fits = sums + weights + r * c <= processor.registers
            else:
                fits = sums + NOT_SUMS <= processor.registers
            if fits:
                yield Tile(g, r, c)


def by_lane(processor: Processor) -> ByLane:
    """How a multiply-add takes one lane of a register for all: ARM's do, x86's take a number from memory."""
    if "asimd" in processor.features:
        return "fmla"
    return "vmla" if "neon" in processor.features else ""


def _cycles(t: Tile, blocks: int, rows: int, columns: int, times: int, processor: Processor, by_lane: ByLane) -> float:
    pixels = t.rows * t.columns
    sums = t.blocks * pixels
    if by_lane:
        loads = t.blocks + pixels / processor.lanes
    else:
        # Beside the sums and a broadcast pixel: weights that find no register are read anew for every pixel.
        held = min(t.blocks, processor.registers - sums - 1)
        loads = pixels + held + (t.blocks - held) * pixels
    step = max(sums / processor.fma_per_cycle, loads / processor.loads_per_cycle, LATENCY)
    # Loads share the front end with the multiply-adds, and weights come from further away than the first-level cache:
    # neither is hidden wholly. Both shares were measured (Golden Cove). The loop itself takes a cycle.
    step += 0.1 * loads + 0.15 * t.blocks * processor.lanes * 4 / L2_BYTES + 1
    row_tiles, column_tiles = math.ceil(rows / t.rows), math.ceil(columns / t.columns)
    shares = blocks // t.blocks * row_tiles * times
    even = math.ceil(shares / processor.cores) * processor.cores / shares
    return step * column_tiles * shares * even
