"""The packed layout: NCHW as (N/batch, C/block, H, W, batch, block), missing channels and pictures as zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.vta.config import VtaConfig

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.graph import Shape


def packed_shape(shape: Shape, config: VtaConfig) -> tuple[int, int, int, int, int, int]:
    n, c, h, w = shape
    return -(-n // config.batch), -(-c // config.block), h, w, config.batch, config.block


def packed_bytes(shape: Shape, config: VtaConfig) -> int:
    """Bytes of an int8 tensor in the packed layout."""
    return int(np.prod(packed_shape(shape, config)))


def pack(x: npt.NDArray[np.int8], config: VtaConfig) -> npt.NDArray[np.int8]:
    """(N, C, H, W) to the packed layout."""
    n, c, h, w = x.shape
    blocks = packed_shape((n, c, h, w), config)
    padded = np.zeros((blocks[0] * config.batch, blocks[1] * config.block, h, w), np.int8)
    padded[:n, :c] = x
    split = padded.reshape(blocks[0], config.batch, blocks[1], config.block, h, w)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 1, 3))


def unpack(packed: npt.NDArray[np.int8], shape: Shape, config: VtaConfig) -> npt.NDArray[np.int8]:
    """Back to (N, C, H, W), without what was added."""
    n, c, h, w = shape
    split = packed.reshape(packed_shape(shape, config)).transpose(0, 4, 1, 5, 2, 3)
    return np.ascontiguousarray(split.reshape(split.shape[0] * split.shape[1], -1, h, w)[:n, :c])
