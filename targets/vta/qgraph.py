"""The quantised graph: integers only, and what each node computes to the bit.

A tensor of int8 values q with exponent e stands for q · 2^e. All values are within −127..127. With
``rshr(x, n) = (x + 2^(n−1)) >> n`` for n > 0 and ``x << −n`` otherwise (rounding half up, arithmetic shift, int32):

- convolution: ``a = conv(input, weight) + bias``; ``t = rshr(a, shift[o])``; with a residual
  ``t = rshr(t + (residual << residual_shift), final_shift)``; ``output = clip(t, 0 if relu else −127, 127)``.
- max-pool: the largest of each window, pads count as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from targets.vta.graph import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: The largest magnitude of a quantised value: symmetric, so −128 never appears.
LIMIT = 127


@dataclass(frozen=True, slots=True)
class QTensor:
    """Name, shape (N, C, H, W) and exponent of a tensor of int8."""

    name: str
    shape: Shape
    exponent: int


@dataclass(frozen=True, slots=True)
class QConv:
    """A convolution with its whole epilogue.

    ``weight`` int8 (O, I/groups, kh, kw); ``bias`` int32 (O,), at the accumulator's scale; ``shift`` int32 (O,), the
    same within each block of output channels, −16..30; ``residual_shift`` 0..6; ``final_shift`` 0..30, and 0 without a
    residual. Where ``final_shift`` is not 0, no ``shift`` is negative. No accumulator can exceed 2^30 in magnitude.
    """

    name: str
    input: str
    output: str
    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int32]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False
    residual: str = ""
    residual_shift: int = 0
    final_shift: int = 0
    operator: str = "conv2d"


@dataclass(frozen=True, slots=True)
class QMaxPool:
    """A max-pool; output and input have the same exponent."""

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    operator: str = "max_pool2d"


QNode = QConv | QMaxPool


@dataclass(frozen=True, slots=True)
class QGraph:
    """Nodes in an order in which they can be computed."""

    name: str
    tensors: dict[str, QTensor]
    nodes: tuple[QNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
