"""Tensors as they travel and lie in files: raw little-endian C-order bytes, described by a `TensorSpec`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.base import FleetError, TensorSpec
from targets.bundle import nbytes

if TYPE_CHECKING:
    from targets.base import Array


def dtype_of(name: str) -> np.dtype[np.generic]:
    """The NumPy dtype of one of `targets.bundle.ITEM_SIZES`, in little-endian order.

    Raises :class:`FleetError` (``bad-tensor``) for one that this device's NumPy does not have.
    """
    try:
        dtype: np.dtype[np.generic] = np.dtype(name)
    except TypeError:
        try:
            import ml_dtypes

            dtype = np.dtype(getattr(ml_dtypes, name))
        except (ImportError, AttributeError):
            raise FleetError(
                f"this device has no element type '{name}'", code="bad-tensor", hint="install ml_dtypes on it"
            ) from None
    little: np.dtype[np.generic] = dtype.newbyteorder("<")
    return little


def from_bytes(spec: TensorSpec, data: bytes | memoryview) -> Array:
    """A read-only view of ``data`` as the tensor. Raises :class:`FleetError` (``bad-tensor``) for a wrong size."""
    if len(data) != nbytes(spec):
        raise FleetError(
            f"tensor '{spec.name}' of shape {spec.shape} and type {spec.dtype} takes {nbytes(spec)} bytes, "
            f"{len(data)} came",
            code="bad-tensor",
        )
    array: Array = np.frombuffer(data, dtype_of(spec.dtype)).reshape(spec.shape)
    return array


def to_bytes(array: Array) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def spec_of(name: str, array: Array, layout: str = "") -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(array.shape), dtype=array.dtype.name, layout=layout)
