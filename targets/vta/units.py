"""Units: what of a Relax function is computed together, an operator with those after it that can be made part of it.

Shapes of two dimensions count as pictures of one pixel: (N, C) is (N, C, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tvm import relax

from targets.vta.graph import Conv, MaxPool, Node, Shape

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64 = npt.NDArray[np.float64]

#: ``layer`` is what the accelerator is for; ``light`` work and a ``pool`` go there only beside layers; ``other`` never.
Kind = Literal["layer", "pool", "light", "other"]


@dataclass(slots=True)
class Convolution:
    """A convolution before its names are known: ``relu?(conv(input, weight) + bias + residual?)``."""

    input: Any
    weight: Float64
    bias: Float64
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False
    residual: Any = None

    @property
    def products(self) -> int:
        """Multiplications for one output value."""
        return int(np.prod(self.weight.shape[1:]))


@dataclass(slots=True)
class MaxPooling:
    """A max-pool before its names are known."""

    input: Any
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(slots=True)
class Unit:
    """Bindings that are computed together. ``output`` is the variable of the last one; ``name`` is its tensor's too.

    ``operator`` is what they are together, such as ``conv2d``; ``operators`` are those of the network.
    ``work`` is what the accelerator would compute; ``reason`` why it must not, and empty where it may.
    """

    name: str
    operator: str
    kind: Kind
    operators: list[str]
    bindings: list[int]
    output: Any
    work: Convolution | MaxPooling | None
    reason: str = ""
    #: Whether no layer comes before it.
    first: bool = False
    #: Whether no value of the output can be below zero.
    nonnegative: bool = False
    #: Whether it is the average of whole pictures.
    global_average: bool = False

    def node(self, name_of: Callable[[Any], str]) -> Node:
        """The unit as a node whose tensors are called what ``name_of`` says of their variables."""
        work = self.work
        if isinstance(work, MaxPooling):
            return MaxPool(self.name, name_of(work.input), self.name, work.kernel, work.stride, work.padding)
        assert work is not None
        return Conv(
            self.name,
            name_of(work.input),
            self.name,
            np.ascontiguousarray(work.weight, np.float32),
            work.bias.astype(np.float32),
            work.stride,
            work.padding,
            work.dilation,
            work.groups,
            work.relu,
            "" if work.residual is None else name_of(work.residual),
            self.operator,
        )


@dataclass(frozen=True, slots=True)
class Function:
    """The bindings of a function, and the units that they make, in an order in which they can be computed."""

    params: tuple[Any, ...]
    bindings: tuple[Any, ...]
    result: Any
    units: tuple[Unit, ...]


def shape_of(expr: Any) -> Shape | None:
    """The shape of a float32 tensor as a picture's; None for what is none."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or str(ty.dtype) != "float32" or ty.shape is None:
        return None
    sizes = [int(size) if hasattr(size, "value") else 0 for size in getattr(ty.shape, "values", ())]
    if len(sizes) == 2:
        sizes += [1, 1]
    return (sizes[0], sizes[1], sizes[2], sizes[3]) if len(sizes) == 4 and min(sizes) > 0 else None


def variables(expr: Any) -> list[Any]:
    """Variables that an expression reads, each once."""
    return list(relax.analysis.free_vars(expr))
