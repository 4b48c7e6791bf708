"""What a graph computes, in NumPy: the quantised one to the bit, the float one in float32.

Independent of compiler and simulator, so that either can be held against it. Both take tensors in NCHW and give every
tensor of the graph by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from targets.vta.graph import Conv, Graph
from targets.vta.qgraph import LIMIT, QConv, QGraph

if TYPE_CHECKING:
    import numpy.typing as npt

    Int8 = npt.NDArray[np.int8]
    Int32 = npt.NDArray[np.int32]
    Float32 = npt.NDArray[np.float32]

#: Products of two int8 are at most 2^14, and float32 holds every integer up to 2^24: so many sum exactly.
EXACT_TERMS = 1 << 10

_Scalar = TypeVar("_Scalar", bound=np.generic)


class _Window(Protocol):
    """What convolutions and pools, quantised or not, have in common."""

    @property
    def stride(self) -> tuple[int, int]: ...
    @property
    def padding(self) -> tuple[int, int, int, int]: ...


def to_integers(x: Float32, exponent: int) -> Int8:
    """The int8 values that stand for ``x``: x · 2^−exponent, rounded half up, within ±127.

    Computed in float32 as ``floor(x · 2^−exponent + 0.5)``: whoever quantises elsewhere must do the same to agree.
    """
    scaled = np.floor(x * np.float32(2.0**-exponent) + np.float32(0.5))
    result: Int8 = np.clip(scaled, -LIMIT, LIMIT).astype(np.int8)
    return result


def to_floats(q: Int8, exponent: int) -> Float32:
    """What int8 values stand for: q · 2^exponent, exactly."""
    result: Float32 = q.astype(np.float32) * np.float32(2.0**exponent)
    return result


def evaluate(graph: QGraph, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
    """Every tensor of the quantised graph, exactly. Raises :class:`ValueError` for inputs of another shape or type."""
    shapes = {name: graph.tensors[name].shape for name in graph.inputs}
    tensors = _checked(shapes, inputs, np.dtype(np.int8))
    for node in graph.nodes:
        x = tensors[node.input]
        if isinstance(node, QConv):
            tensors[node.output] = conv(node, x, tensors[node.residual] if node.residual else None)
        else:
            tensors[node.output] = _max_pool(node.kernel, node, x)
    return tensors


def evaluate_float(graph: Graph, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
    """Every tensor of the float graph. Raises :class:`ValueError` for inputs of another shape or type."""
    tensors = _checked({name: graph.tensors[name] for name in graph.inputs}, inputs, np.dtype(np.float32))
    for node in graph.nodes:
        x = tensors[node.input]
        if isinstance(node, Conv):
            tensors[node.output] = conv_float(node, x, tensors[node.residual] if node.residual else None)
        else:
            tensors[node.output] = _max_pool(node.kernel, node, x)
    return tensors


def conv(node: QConv, x: Int8, residual: Int8 | None = None) -> Int8:
    """One quantised convolution with its epilogue, in int32, which the graph's guarantees keep from wrapping."""
    o, per_group, *kernel = node.weight.shape
    weight = node.weight.astype(np.float32).reshape(node.groups, o // node.groups, -1)
    outputs = []
    for image in x:
        columns, rows, width = _columns(image.astype(np.float32), node, (kernel[0], kernel[1]), node.dilation)
        columns = columns.reshape(node.groups, per_group * kernel[0] * kernel[1], rows * width)
        acc = np.zeros((node.groups, o // node.groups, rows * width), np.int32)
        for start in range(0, columns.shape[1], EXACT_TERMS):
            part = slice(start, start + EXACT_TERMS)
            acc += np.matmul(weight[:, :, part], columns[:, part]).astype(np.int32)
        outputs.append(acc.reshape(o, rows, width))
    t = _round_shift(np.stack(outputs) + node.bias[:, None, None], node.shift[:, None, None])
    if residual is not None:
        t += residual.astype(np.int32) << node.residual_shift
        t = _round_shift(t, np.int32(node.final_shift))
    return np.clip(t, 0 if node.relu else -LIMIT, LIMIT).astype(np.int8)


def conv_float(node: Conv, x: Float32, residual: Float32 | None = None) -> Float32:
    """One convolution with bias, residual and ReLU, in float32."""
    o, per_group, *kernel = node.weight.shape
    weight = node.weight.reshape(node.groups, o // node.groups, -1)
    outputs = []
    for image in x:
        columns, rows, width = _columns(image, node, (kernel[0], kernel[1]), node.dilation)
        columns = columns.reshape(node.groups, per_group * kernel[0] * kernel[1], rows * width)
        outputs.append(np.matmul(weight, columns).reshape(o, rows, width))
    y = np.stack(outputs) + node.bias[:, None, None]
    if residual is not None:
        y += residual
    if node.relu:
        np.maximum(y, 0, out=y)
    return y


def _columns(
    image: Float32, node: _Window, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Float32, int, int]:
    """(C, H, W) as (C, kh, kw, rows, width): the value under each weight at each output pixel."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, node.stride, dilation
    padded = _padded(image, node.padding)
    reach = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, ::sh, ::sw, ::dh, ::dw].transpose(0, 3, 4, 1, 2)
    return np.ascontiguousarray(windows), windows.shape[3], windows.shape[4]


def _max_pool(kernel: tuple[int, int], node: _Window, x: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    (sh, sw), padded = node.stride, _padded(x, node.padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::sh, ::sw]
    result: npt.NDArray[_Scalar] = windows.max(axis=(-2, -1))
    return result


def _padded(x: npt.NDArray[_Scalar], padding: tuple[int, int, int, int]) -> npt.NDArray[_Scalar]:
    """Zeros around the last two axes: (top, left, bottom, right)."""
    top, left, bottom, right = padding
    if not any(padding):
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)])


def _round_shift(x: Int32, n: Int32 | np.int32) -> Int32:
    """``rshr`` of :mod:`targets.vta.qgraph`: rounding half up by n > 0 bits, or a shift to the left by −n."""
    right = np.maximum(n, 0)
    half = np.where(right > 0, np.int32(1) << np.maximum(right - 1, 0), 0).astype(np.int32)
    shifted: Int32 = ((x << np.maximum(-n, 0)) + half) >> right
    return shifted


def _checked(
    shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Any], dtype: np.dtype[Any]
) -> dict[str, npt.NDArray[Any]]:
    if set(inputs) != set(shapes):
        raise ValueError(f"the graph takes {sorted(shapes)}, not {sorted(inputs)}")
    for name, shape in shapes.items():
        if inputs[name].shape != shape or inputs[name].dtype != dtype:
            raise ValueError(f"'{name}' is {dtype} {shape}, not {inputs[name].dtype} {inputs[name].shape}")
    return dict(inputs)
