"""Multiply-adds that take one lane of a register for all lanes of another, as ARM processors have them.

One load then brings four channels of a pixel, where other processors load (and broadcast) each number on its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import splat

Expr = Any
#: The instruction: AArch64's ``fmla``, ARMv7's ``vmla`` (of its fused multiply-add there is no form that takes a lane),
#: or none. LLVM finds ``fmla`` by itself; it writes a ``vmla`` as two instructions as soon as it may fuse operations,
#: and then hoists all the loads of a loop until no register is left. So ``vmla`` is assembly, in the order given here.
ByLane = Literal["", "fmla", "vmla"]
#: What makes the new sum of the old one.
Adder = Callable[[Expr], Expr]

#: Multiply-adds between a load and what first needs it: four to eight cycles on a processor that does not look ahead.
AHEAD = 2
#: Lanes of ARMv7's and AArch64's vectors of floats.
_LANES = 4


def _vmla(name: str, weights: str, factor: str, constraint: str) -> str:
    """LLVM's function ``name``: sums + weights · factor. It touches no memory, so that loads are free to be shared."""
    vector = "<4 x float>"
    arguments = f"({vector} %sums, {vector} %weights, {vector} %factor)"
    return (
        f"define {vector} @{name}{arguments} nounwind {{\n"
        f'  %result = call {vector} asm sideeffect "vmla.f32 ${{0:q}}, {weights}, {factor}", "=w,0,w,{constraint}"'
        f"{arguments} nounwind memory(inaccessiblemem: readwrite)\n"
        f"  ret {vector} %result\n}}\n"
    )


#: A lane can only be one of the first eight quad registers: constraint `t`. `e` and `f` are a quad's halves.
_VMLA = "".join(
    [_vmla("fleet_vmla", "${2:q}", "${3:q}", "w")]
    + [_vmla(f"fleet_vmla_{lane}", "${2:q}", f"${{3:{'ef'[lane // 2]}}}[{lane % 2}]", "t") for lane in range(_LANES)]
)


def instructions(form: ByLane) -> contextlib.AbstractContextManager[Any]:
    """What the code that uses :func:`multiply_add` and :func:`multiply_adds` has to be in."""
    return T.attr(0, "pragma_import_llvm", _VMLA) if form == "vmla" else contextlib.nullcontext()


def multiply_add(form: ByLane, total: Expr, weights: Expr, factor: Expr, lanes: int) -> Expr:
    """``total`` + ``weights`` · ``factor``, a number."""
    return _by_vector(form, weights, splat(factor, lanes), lanes)(total)


def multiply_adds(
    form: ByLane,
    vector_lanes: int,
    lanes: int,
    blocks: int,
    pixels: int,
    weights: Callable[[int, int], Expr],
    vector: Callable[[int], Expr],
) -> Iterator[tuple[int, int, int, Adder]]:
    """Multiply-adds of ``blocks`` × ``pixels`` sums, of ``lanes`` numbers each, by each of ``vector_lanes``.

    Yields lane, block, pixel, and what is done to the sum. ``weights`` loads those of a lane and a block,
    ``vector`` the lanes of a pixel; both are called a little before the values are needed.
    """
    steps = [(lane, g, pixel) for lane in range(vector_lanes) for g in range(blocks) for pixel in range(pixels)]
    held_weights, held_vectors = _held(weights), _held(vector)
    for lane, g, pixel in _ahead(steps, lambda lane, g, pixel: (held_vectors(pixel), held_weights(lane, g))):
        yield lane, g, pixel, _by_lane(form, held_weights(lane, g), held_vectors(pixel), lane, lanes)


def multiply_adds_of_numbers(
    form: ByLane,
    count: int,
    lanes: int,
    blocks: int,
    pixels: int,
    weights: Callable[[int, int], Expr],
    number: Callable[[int, int], Expr],
) -> Iterator[tuple[int, int, Adder]]:
    """As :func:`multiply_adds`, by ``count`` numbers of a pixel that lie apart: ``number`` loads one of a pixel."""
    steps = [(k, g, pixel) for k in range(count) for pixel in range(pixels) for g in range(blocks)]
    held_weights, held_numbers = _held(weights), _held(lambda k, pixel: splat(number(k, pixel), lanes))
    for k, g, pixel in _ahead(steps, lambda k, g, pixel: (held_numbers(k, pixel), held_weights(k, g))):
        yield g, pixel, _by_vector(form, held_weights(k, g), held_numbers(k, pixel), lanes)


def _held(load: Callable[..., Expr]) -> Callable[..., Expr]:
    """``load``, done once for the same arguments."""
    return cache(lambda *which: T.bind(load(*which)))


def _ahead(steps: list[tuple[int, int, int]], load: Callable[[int, int, int], Any]) -> Iterator[tuple[int, int, int]]:
    """The steps, each when those that come :data:`AHEAD` have been loaded."""
    for step in steps[:AHEAD]:
        load(*step)
    for index, step in enumerate(steps):
        if index + AHEAD < len(steps):
            load(*steps[index + AHEAD])
        yield step


def _by_lane(form: ByLane, weights: Expr, vector: Expr, lane: int, lanes: int) -> Adder:
    if form == "vmla" and lanes == _LANES:
        return lambda total: tirx.call_pure_extern("float32x4", f"fleet_vmla_{lane}", total, weights, vector)
    return lambda total: total + splat(tirx.Shuffle([vector], [lane]), lanes) * weights


def _by_vector(form: ByLane, weights: Expr, factors: Expr, lanes: int) -> Adder:
    if form == "vmla" and lanes == _LANES:
        return lambda total: tirx.call_pure_extern("float32x4", "fleet_vmla", total, weights, factors)
    return lambda total: total + factors * weights
