"""What the accelerator computes, in float: the part of a network that a program is made of, before quantisation.

Every tensor is NCHW. Average pools, dense layers, per-channel scales and lone additions are convolutions here too
(weights on the diagonal, 1×1 pictures), so there are two kinds of node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Conv:
    """``output = relu?(conv(input, weight) + bias + residual?)``.

    ``weight`` float32 (O, I/groups, kh, kw), ``bias`` float32 (O,), ``padding`` (top, left, bottom, right) of zeros;
    ``residual`` names a tensor of the output's shape, or is empty.
    """

    name: str
    input: str
    output: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False
    residual: str = ""
    #: The operator of the network that this node came from, such as ``conv2d``, ``dense``, ``avg_pool2d``, ``add``.
    operator: str = "conv2d"


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The largest of each window. Padding is allowed only where the input is never negative: the pad is zero."""

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    operator: str = "max_pool2d"


Node = Conv | MaxPool


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can be computed; ``tensors`` has the shape of each tensor by name."""

    name: str
    tensors: dict[str, Shape]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
