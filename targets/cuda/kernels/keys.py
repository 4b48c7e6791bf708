"""Candidates as keys: numbers whose order is that of their scores, and of their places where scores are equal.

A key is 64 bits: the score's, turned so that they compare as integers, then those of the place, inverted. No two are
equal, so whatever order threads work in, what they choose is the same. 0 is no candidate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cuda.kernels.blocks import SHARED_BYTES, atomic_add, each, f32, register, shared, u64, wait

Expr = Any

#: Threads of a block that sorts.
THREADS = 512
_BITS, _DIGIT = 64, 8
_BUCKETS = 1 << _DIGIT
_LAST = 0xFFFFFFFF


def key_of(score: Expr, place: Expr) -> Expr:
    """The key of a candidate with this score, float32, at this place, 0..2³²-1."""
    # Both zeros are one score.
    plain = tirx.Select(score == f32(0.0), f32(0.0), score)
    bits = tirx.reinterpret("uint32", plain)
    sign = tirx.const(0x80000000, "uint32")
    ordered = tirx.Select(bits >= sign, tirx.bitwise_not(bits), tirx.bitwise_or(bits, sign))
    return tirx.bitwise_or(u64(ordered) << u64(32), u64(_LAST) - u64(place))


def place_of(key: Expr) -> Expr:
    """Where the candidate of a key stands, int32."""
    return tirx.Cast("int32", u64(_LAST) - tirx.bitwise_and(key, u64(_LAST)))


def score_of(key: Expr) -> Expr:
    """The score of a key's candidate."""
    ordered = tirx.Cast("uint32", key >> u64(32))
    sign = tirx.const(0x80000000, "uint32")
    bits = tirx.Select(ordered >= sign, tirx.bitwise_xor(ordered, sign), tirx.bitwise_not(ordered))
    return tirx.reinterpret("float32", bits)


def power_of_two(count: int) -> int:
    """The least power of two that is not below ``count``, and at least 2."""
    return max(2, 1 << (count - 1).bit_length())


def fits(count: int) -> bool:
    """Whether so many keys are sorted in a block's shared memory."""
    return power_of_two(count) * 8 + _BUCKETS * 4 + 64 <= SHARED_BYTES


def kth_largest(load: Callable[[Expr], Expr], count: int, k: int, thread: Expr) -> Any:
    """A register that holds the ``k``-th largest of ``count`` keys; 0 when fewer than ``k`` are candidates.

    Radix selection: digit by digit, from the highest, keys that begin like the one wanted are counted by their next.
    """
    buckets = shared((_BUCKETS,), "int32")
    found = shared((1,), "uint64")
    prefix = register(u64(0), "uint64")
    remaining = shared((1,), "int32")
    with T.If(thread == 0), T.Then():
        T.buffer_store(remaining, tirx.const(k, "int32"), [0])
    for shift in range(_BITS - _DIGIT, -1, -_DIGIT):
        with each(_BUCKETS, thread, THREADS) as bucket:
            T.buffer_store(buckets, tirx.const(0, "int32"), [bucket])
        wait()
        with each(count, thread, THREADS) as index:
            key = T.bind(load(index))
            same = (key >> u64(shift + _DIGIT)) == prefix[0] if shift + _DIGIT < _BITS else tirx.const(True, "bool")
            with T.If(same), T.Then():
                digit = tirx.Cast("int32", tirx.bitwise_and(key >> u64(shift), u64(_BUCKETS - 1)))
                T.evaluate(atomic_add(buckets, digit, tirx.const(1, "int32")))
        wait()
        with T.If(thread == 0), T.Then():
            left = register(remaining[0], "int32")
            digit_found = register(tirx.const(-1, "int32"), "int32")
            with T.serial(0, _BUCKETS) as step:
                bucket = T.bind(_BUCKETS - 1 - step)
                with T.If(digit_found[0] < 0), T.Then(), T.If(buckets[bucket] >= left[0]):
                    with T.Then():
                        T.buffer_store(digit_found, bucket, [0])
                    with T.Else():
                        T.buffer_store(left, left[0] - buckets[bucket], [0])
            T.buffer_store(remaining, left[0], [0])
            # Fewer keys than k: all of them are taken.
            digit = tirx.max(digit_found[0], tirx.const(0, "int32"))
            T.buffer_store(found, tirx.bitwise_or(prefix[0] << u64(_DIGIT), u64(digit)), [0])
        wait()
        T.buffer_store(prefix, found[0], [0])
        wait()
    return prefix


def sort_descending(keys: Any, offset: Expr | int, size: int, thread: Expr) -> None:
    """Sort ``size`` keys, a power of two, from ``offset`` on, in place: a bitonic network."""
    with T.serial(0, size.bit_length() - 1) as stage, T.serial(0, stage + 1) as step:
        distance = T.bind(tirx.const(1, "int32") << (stage - step))
        with each(size // 2, thread, THREADS) as pair:
            low = T.bind(tirx.bitwise_and(pair, distance - 1))
            first = T.bind((pair - low) * 2 + low)
            descending = tirx.bitwise_and(first, tirx.const(2, "int32") << stage) == 0
            one, other = T.bind(keys[offset + first]), T.bind(keys[offset + first + distance])
            with T.If(tirx.Select(descending, one < other, one > other)), T.Then():
                T.buffer_store(keys, other, [offset + first])
                T.buffer_store(keys, one, [offset + first + distance])
        wait()


def best_sorted(
    load: Callable[[Expr], Expr],
    count: int,
    k: int,
    thread: Expr,
    store: Callable[[Expr, Expr], contextlib.AbstractContextManager[None] | None],
    scratch: tuple[Any, Expr] | None = None,
) -> None:
    """Call ``store(rank, key)`` for the ``k`` largest of ``count`` keys, best first, thread by thread.

    Args:
        scratch: a buffer of the GPU's memory and where ``power_of_two(k)`` keys of this block lie in it; needed where
            they do not fit into shared memory (:func:`fits`).
    """
    size = power_of_two(k)
    keys, offset = (shared((size,), "uint64"), tirx.const(0, "int32")) if scratch is None else scratch
    if k < count:
        least = kth_largest(load, count, k, thread)
        taken = shared((1,), "int32")
        with T.If(thread == 0), T.Then():
            T.buffer_store(taken, tirx.const(0, "int32"), [0])
        with each(size, thread, THREADS) as index:
            T.buffer_store(keys, u64(0), [offset + index])
        wait()
        with each(count, thread, THREADS) as index:
            key = T.bind(load(index))
            with T.If(tirx.all(key > u64(0), key >= least[0])), T.Then():
                place = T.bind(atomic_add(taken, 0, tirx.const(1, "int32")))
                T.buffer_store(keys, key, [offset + place])
    else:
        with each(size, thread, THREADS) as index:
            inside = index < count
            key = tirx.if_then_else(inside, load(index), u64(0))
            T.buffer_store(keys, key, [offset + index])
    wait()
    sort_descending(keys, offset, size, thread)
    with each(k, thread, THREADS) as rank:
        store(rank, keys[offset + rank])
