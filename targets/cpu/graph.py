"""A network as the CPU compiler sees it: layers that have kernels, with the pointwise work around them, and the rest.

Values are Relax variables; those that are pictures (four dimensions) or matrices (two; a picture of one pixel) of
float32 take part, all others are handed on. A layer keeps the Relax bindings that it stands for, so that one for which
no kernel fits can go back to what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.program import Operand, Result, Step
from targets.cpu.layout import ImageType, Layout, Shape

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers that a quantised value can have: ``scale`` times the whole numbers from ``low`` to ``high``."""

    scale: float
    low: int
    high: int

    @property
    def steps(self) -> tuple[Step, ...]:
        """What brings any number onto the grid; the last two make whole numbers, and of these numbers again."""
        return (
            Step("divide", (Operand(0), self.scale)),
            Step("maximum", (Result(1), float(self.low))),
            Step("minimum", (Result(2), float(self.high))),
            Step("round", (Result(3),)),
            Step("multiply", (Result(4), self.scale)),
        )


@dataclass(eq=False, slots=True)
class Value:
    """What a Relax variable holds. ``shape`` is N, C, H, W; nothing for what is no picture.

    Integers hold what their variable does in steps of ``grid.scale``, counted from ``zero_point``.
    """

    var: Any
    shape: Shape | None
    #: Dimensions as Relax has them: four, or two for a matrix.
    rank: int = 4
    producer: Layer | Opaque | None = None
    #: That of a quantised value.
    grid: Grid | None = None
    dtype: str = "float32"
    zero_point: int = 0

    def image(self, layout: Layout) -> ImageType:
        """A buffer that holds it."""
        assert self.shape is not None
        return ImageType(self.shape, layout, self.dtype, self.zero_point)


@dataclass(frozen=True, slots=True)
class Convolution:
    """``weights``: O, I / groups, KH, KW."""

    weights: Array
    window: Window
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Separable:
    """A depthwise convolution with a program of its own, and the 1×1 convolution of what it gives.

    The program's operands are one number a channel; ``weights``: O, I, 1, 1.
    """

    depthwise: Convolution
    steps: tuple[Step, ...]
    operands: tuple[Array, ...]
    weights: Array


@dataclass(frozen=True, slots=True)
class Interleaving:
    """Pixels that a convolution gave apart, each part of its channels for one place within ``stride``."""

    stride: tuple[int, int]


@dataclass(frozen=True, slots=True)
class IntegerConvolution:
    """``weights``: O, I, KH, KW of 8 bits; ``bias``: O of 32 bits. The program begins with the sums' scales."""

    weights: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    window: Window


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Nothing but the layer's program, which gives integers, on a picture or a matrix that no kernel gave.

    ``word``: all channels of a pixel become one word, which is what a convolution of integers takes at once.
    """

    word: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """``weights``: outputs, inputs."""

    weights: Array


@dataclass(frozen=True, slots=True)
class Pooling:
    """``kind``: max or average."""

    kind: str
    window: Window
    count_include_pad: bool = False


@dataclass(frozen=True, slots=True)
class GlobalAverage:
    """The mean over H and W."""


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Along the channels."""


@dataclass(frozen=True, slots=True)
class Resizing:
    """To the output's height and width; the words are Relax's."""

    method: str
    coordinates: str
    rounding: str


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Nothing but the layer's program."""


Work = (
    Convolution
    | Separable
    | Interleaving
    | Matrix
    | Pooling
    | GlobalAverage
    | Concatenation
    | Resizing
    | Pointwise
    | IntegerConvolution
    | Quantisation
)
#: Layers whose kernels apply a program to what they store.
WITH_PROGRAM = (Convolution, Interleaving, Matrix, Pooling, GlobalAverage, Pointwise)


@dataclass(eq=False, slots=True)
class Layer:
    """Work on ``inputs`` with a pointwise program after it.

    ``operands`` are what the program reads besides: other values of the output's shape or N, C, 1, 1, and constants of
    one number a channel.
    """

    work: Work
    inputs: list[Value]
    output: Value
    bindings: list[Any]
    steps: list[Step] = field(default_factory=list)
    operands: list[Value | Array] = field(default_factory=list)

    @property
    def reads(self) -> Iterator[Value]:
        """Values that it reads, each as often as it does."""
        yield from self.inputs
        yield from (operand for operand in self.operands if isinstance(operand, Value))


@dataclass(eq=False, slots=True)
class Opaque:
    """Relax bindings that stay, the last of which gives the output."""

    bindings: list[Any]
    inputs: list[Value]
    output: Value

    @property
    def reads(self) -> Iterator[Value]:
        """Values that it reads."""
        yield from self.inputs


@dataclass(slots=True)
class Graph:
    """Nodes in an order in which they can run."""

    parameters: list[Value]
    nodes: list[Layer | Opaque]
    #: Values that the function returns or that its result is made of.
    results: list[Value]
