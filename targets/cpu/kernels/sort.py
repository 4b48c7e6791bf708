"""Sorting of plain tensors along an axis: a radix sort for each row, rows shared among threads.

Numbers become unsigned integers of the same order; the integers are sorted digit by digit, least first, each time
stable. So equal numbers stay in their order, whichever way is up, and a row takes time in proportion to its length. Of
a few out of many, only those that can be among them are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, flat, kernel
from targets.cpu.kernels.jobs import jobs

Expr = Any


@dataclass(frozen=True, slots=True)
class Sort:
    """The first ``k`` numbers of each row along ``axis`` (from the front) when it is sorted, and where they stood.

    ``values`` and ``indices`` say which of both are wanted. NaN is the largest number of all.
    """

    shape: tuple[int, ...]
    axis: int
    k: int
    descending: bool
    values: bool = True
    indices: bool = True
    dtype: str = "float32"
    index_dtype: str = "int64"

    @property
    def result(self) -> tuple[int, ...]:
        """Dimensions of what is given back."""
        return (*self.shape[: self.axis], self.k, *self.shape[self.axis + 1 :])


def sort(spec: Sort, name: str) -> Any:
    """Arguments: x, values if they are wanted, indices if they are wanted."""
    length, inner = spec.shape[spec.axis], math.prod(spec.shape[spec.axis + 1 :])
    rows = math.prod(spec.shape) // length

    def body() -> None:
        arguments = [argument("x", spec.shape, spec.dtype)]
        if spec.values:
            arguments.append(argument("values", spec.result, spec.dtype))
        if spec.indices:
            arguments.append(argument("indices", spec.result, spec.index_dtype))
        x, *results = flat(*arguments)
        with jobs(rows, SORT_BYTES * rows * length) as row:
            first, column = row // inner * (length * inner), row % inner
            sorter = RowSorter(length, key_bits(spec.dtype))
            sorter.take(lambda place: sortable(x[first + place * inner + column], spec.dtype, spec.descending), spec.k)
            places = sorter.sort()
            with T.serial(0, spec.k) as place:
                source = T.bind(places[place])
                target = row // inner * (spec.k * inner) + place * inner + column
                if spec.values:
                    T.buffer_store(results[0], x[first + source * inner + column], [target])
                if spec.indices:
                    T.buffer_store(results[-1], tirx.Cast(spec.index_dtype, source), [target])

    return kernel(name, body)


#: What sorting costs for each number, as bytes that pass through a thread: a dozen passes.
SORT_BYTES = 96


def key_bits(dtype: str) -> int:
    """Bits of what :func:`sortable` gives. Raises ValueError for types that have no order here."""
    bits = {"bool": 8}.get(dtype) or int("".join(filter(str.isdigit, dtype)) or 0)
    if bits not in (8, 16, 32, 64) or dtype.startswith(("bfloat", "float8")):
        raise ValueError(f"numbers of type {dtype} are not sorted")
    return bits


def sortable(value: Expr, dtype: str, descending: bool = False) -> Expr:
    """An unsigned integer for a number, in the same order, or in the opposite one.

    Both zeros are one number, and so are all NaNs, which come after infinity.
    """
    bits = key_bits(dtype)
    unsigned = f"uint{bits}"
    sign, every = (tirx.const(mask, unsigned) for mask in (1 << bits - 1, (1 << bits) - 1))
    if dtype == "bool":
        key = tirx.Cast(unsigned, value)
    elif dtype.startswith("uint"):
        key = value
    elif dtype.startswith("int"):
        key = tirx.reinterpret(unsigned, value) ^ sign
    else:
        exponent = {16: 5, 32: 8, 64: 11}[bits]
        infinity = tirx.const(((1 << exponent) - 1) << bits - 1 - exponent, unsigned)
        raw = T.bind(tirx.reinterpret(unsigned, value))
        magnitude = T.bind(raw & tirx.const((1 << bits - 1) - 1, unsigned))
        # Negative numbers are ordered by their magnitude the other way round.
        ordered = tirx.Select((raw & sign) != tirx.const(0, unsigned), every ^ raw, raw | sign)
        key = tirx.Select(magnitude == tirx.const(0, unsigned), sign, ordered)
        key = tirx.Select(magnitude > infinity, every, key)
    return T.bind(every ^ key if descending else key)


class RowSorter:
    """One thread's memory for the keys and places of a row, and how they are sorted.

    Either :meth:`clear` and :meth:`add`, or :meth:`take`; then :meth:`sort`.
    """

    def __init__(self, length: int, bits: int) -> None:
        self._length = length
        self._bits = bits
        # Wide digits are few passes, but each pass also looks at all digits that there could be.
        self._digit = 4 if length < 64 else 8 if length < 2048 or bits < 16 else 11
        self._keys = [T.alloc_buffer((length,), f"uint{bits}") for _ in range(2)]
        self._places = [T.alloc_buffer((length,), "int32") for _ in range(2)]
        self._counts = T.alloc_buffer((1 << self._digit,), "int32")
        self._number = T.alloc_buffer((1,), "int32")

    @property
    def number(self) -> Expr:
        """How many there are to sort."""
        return self._number[0]

    def clear(self) -> None:
        T.buffer_store(self._number, tirx.const(0, "int32"), [0])

    def add(self, key: Expr, place: Expr) -> None:
        at = T.bind(self.number)
        T.buffer_store(self._keys[0], key, [at])
        T.buffer_store(self._places[0], place, [at])
        T.buffer_store(self._number, at + 1, [0])

    def take(self, key: Callable[[Expr], Expr], k: int) -> None:
        """At least those ``k`` of a row that come first; ``key(place)`` says the key of each."""
        if k * 4 <= self._length and self._bits > self._digit:
            self._take_few(key, k)
            return
        with T.serial(0, self._length) as place:
            T.buffer_store(self._keys[0], key(place), [place])
            T.buffer_store(self._places[0], place, [place])
        T.buffer_store(self._number, tirx.const(self._length, "int32"), [0])

    def _take_few(self, key: Callable[[Expr], Expr], k: int) -> None:
        """What has one of the lowest leading digits: as many of these as hold ``k`` keys."""
        shift = self._bits - self._digit
        self._count(self._length, lambda place: self._value(key(place), shift))
        total, limit = (T.alloc_buffer((1,), "int32") for _ in range(2))
        T.buffer_store(total, tirx.const(0, "int32"), [0])
        T.buffer_store(limit, tirx.const(-1, "int32"), [0])
        with T.While(total[0] < k):
            T.buffer_store(limit, limit[0] + 1, [0])
            T.buffer_store(total, total[0] + self._counts[limit[0]], [0])
        self.clear()
        with T.serial(0, self._length) as place:
            value = key(place)
            with T.If(self._value(value, shift) <= limit[0]), T.Then():
                self.add(value, place)

    def sort(self) -> Any:
        """A buffer of the places in the order of their keys, and of their own where keys are equal."""
        source = 0
        for shift in range(0, self._bits, self._digit):
            self._pass(shift, source)
            source = 1 - source
        return self._places[source]

    def _value(self, key: Expr, shift: int) -> Expr:
        """The digit of a key that begins at bit ``shift``."""
        unsigned = f"uint{self._bits}"
        mask = tirx.const((1 << min(self._digit, self._bits - shift)) - 1, unsigned)
        return tirx.Cast("int32", (key >> tirx.const(shift, unsigned)) & mask)

    def _count(self, number: Expr, digit: Callable[[Expr], Expr]) -> None:
        with T.serial(0, 1 << self._digit) as value:
            T.buffer_store(self._counts, tirx.const(0, "int32"), [value])
        with T.serial(0, number) as index:
            at = T.bind(digit(index))
            T.buffer_store(self._counts, self._counts[at] + 1, [at])

    def _pass(self, shift: int, source: int) -> None:
        """Sort by one digit, from one pair of buffers to the other."""
        keys, places, counts = self._keys, self._places, self._counts
        self._count(self.number, lambda index: self._value(keys[source][index], shift))
        start = T.alloc_buffer((1,), "int32")
        T.buffer_store(start, tirx.const(0, "int32"), [0])
        with T.serial(0, 1 << self._digit) as value:
            here = T.bind(counts[value])
            T.buffer_store(counts, start[0], [value])
            T.buffer_store(start, start[0] + here, [0])
        with T.serial(0, self.number) as index:
            key = T.bind(keys[source][index])
            digit = T.bind(self._value(key, shift))
            at = T.bind(counts[digit])
            T.buffer_store(counts, at + 1, [digit])
            T.buffer_store(keys[1 - source], key, [at])
            T.buffer_store(places[1 - source], places[source][index], [at])
