"""Bilinear interpolation of the nearest four pixels, half-pixel centres, no antialiasing.

Equal to torch.nn.functional.interpolate(mode="bilinear", align_corners=False), whose positions are float32, so that a
picture which torch would prepare is prepared alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
#: First and last position, the last excluded.
Span = tuple[int, int]


def taps(size: int, new: int, span: Span) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For positions ``span`` of ``new`` along an axis of ``size``: the two neighbours, and the second one's share."""
    half = np.float32(0.5)
    step = np.float32(size) / np.float32(new)
    at = np.maximum(step * (np.arange(*span, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(at.astype(np.int64), size - 1)
    share = np.clip(at - low.astype(np.float32), np.float32(0), np.float32(1))
    return low, np.minimum(low + 1, size - 1), share


def resize(
    values: npt.NDArray[np.generic],
    size: tuple[int, int],
    rows: Span | None = None,
    columns: Span | None = None,
) -> Floats:
    """``values`` as float32 of ``size`` (height, width).

    ``values`` is (height, width) of any number type, or (height, width, channels): then the result is (channels,
    height, width), planes in which rows of pixels are long.

    ``rows`` and ``columns`` choose a window of the result; nothing else is computed then.
    """
    low, high, share = taps(values.shape[0], size[0], rows or (0, size[0]))
    flat = values.reshape(len(values), -1)
    between = _mixed(flat[low], flat[high], share[:, None]).reshape(-1, *values.shape[1:])
    if values.ndim == 3:
        between = np.ascontiguousarray(between.transpose(2, 0, 1))
    low, high, share = taps(values.shape[1], size[1], columns or (0, size[1]))
    return _mixed(between[..., low], between[..., high], share)


def _mixed(low: npt.NDArray[np.generic], high: npt.NDArray[np.generic], share: Floats) -> Floats:
    """Between two arrays that nobody else needs."""
    first = low.astype(np.float32, copy=False)
    mixed = high.astype(np.float32, copy=False)
    mixed -= first
    mixed *= share
    mixed += first
    return mixed
