"""MXNet's ``.params`` files: arrays with names, as ``mxnet.nd.save`` and Gluon's ``save_parameters`` write them.

Little-endian: the magic number and a reserved word (uint64 each), a uint64 count and so many arrays, a uint64 count and
so many names, each a uint64 length and bytes. An array is a uint32 magic number for its version, from version 2 on
its int32 storage type, its shape (int32 dimensions, int64 each), the device it was on (two int32), the int32 type of
its elements, and the elements in C order (mxnet/src/ndarray/ndarray.cc, NDArray::Save).
"""

from __future__ import annotations

import math
import os
import struct
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

MAGIC = struct.pack("<Q", 0x112)
#: What is in front of an array, by the version of its form.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
#: Elements by MXNet's numbers for them (mshadow/base.h).
DTYPES = dict(enumerate(("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1")))
_MAX_DIMENSIONS = 32
_MAX_NAME = 4096
#: The least that an array takes in a file, and a name.
_LEAST_ARRAY, _LEAST_NAME = 8, 9
#: What `Module` writes before the names of weights and of running statistics.
_KINDS = ("arg:", "aux:")


class ParamsError(ValueError):
    """A file that is not in this format, or is damaged: says what is wrong with it, not which file it is."""


def is_params(path: Path) -> bool:
    """Whether the file starts as one of MXNet does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> dict[str, Array]:
    """The arrays by name, without the ``arg:`` and ``aux:`` that some have in front.

    Nothing is allocated that the file does not hold. Raises :class:`ParamsError`, and OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return _Reader(file).everything()


class _Reader:
    def __init__(self, file: BufferedReader) -> None:
        self._file, self._left = file, os.fstat(file.fileno()).st_size

    def everything(self) -> dict[str, Array]:
        if self._bytes(len(MAGIC)) != MAGIC:
            raise ParamsError("it does not start as MXNet's files do")
        self._number("<Q")
        arrays = [self._array() for _ in range(self._count(_LEAST_ARRAY, "arrays"))]
        names = [self._name() for _ in range(self._count(_LEAST_NAME, "names"))]
        if self._left:
            raise ParamsError(f"{self._left} bytes follow its end")
        if len(names) != len(arrays):
            raise ParamsError(f"it has {len(arrays)} arrays and {len(names)} names")
        found = dict(zip(names, arrays, strict=True))
        if len(found) < len(names):
            raise ParamsError(f"two arrays have the name {next(name for name in found if names.count(name) > 1)!r}")
        return found

    def _array(self) -> Array:
        version = self._number("<I")
        if version not in (V1, V2, V3):
            raise ParamsError(f"an array starts with {version:#010x}, which is no version of one")
        if version != V1 and (storage := self._number("<i")) != 0:
            raise ParamsError(f"an array is stored sparsely (type {storage}), only dense ones are read")
        dimensions = self._number("<i")
        if not (0 if version == V3 else 1) <= dimensions <= _MAX_DIMENSIONS:
            raise ParamsError(f"an array of {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}q", self._bytes(8 * dimensions))
        if any(size < 1 for size in shape):
            raise ParamsError(f"an array of shape {shape}")
        self._bytes(8)  # the device, which means nothing here
        number = self._number("<i")
        if number not in DTYPES:
            raise ParamsError(f"elements of type {number}, which is not read")
        dtype = np.dtype(DTYPES[number])
        size = math.prod(shape) * dtype.itemsize
        self._claim(size)
        values = np.empty(shape, dtype)
        if self._file.readinto(values.data.cast("B")) != size:
            raise ParamsError("it became shorter while it was read")
        return values

    def _name(self) -> str:
        length = self._number("<Q")
        if not 0 < length <= _MAX_NAME:
            raise ParamsError(f"a name of {length} bytes")
        try:
            name = self._bytes(length).decode()
        except UnicodeDecodeError:
            raise ParamsError("a name is no text") from None
        return name[4:] if name.startswith(_KINDS) else name

    def _count(self, least: int, what: str) -> int:
        count = self._number("<Q")
        if count * least > self._left:
            raise ParamsError(f"it is too short for the {count} {what} that it announces")
        return count

    def _number(self, form: str) -> int:
        (number,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return int(number)

    def _bytes(self, size: int) -> bytes:
        self._claim(size)
        data = self._file.read(size)
        if len(data) != size:
            raise ParamsError("it became shorter while it was read")
        return data

    def _claim(self, size: int) -> None:
        if size > self._left:
            raise ParamsError(f"it ends {size - self._left} bytes too early")
        self._left -= size
