"""What kernels for a GPU are written with: blocks of threads that share memory and wait for each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

Expr = Any

#: Bytes of shared memory that a block of ours takes at most; every GPU has 48 KiB without asking for more.
SHARED_BYTES = 40960


@contextlib.contextmanager
def grid(blocks: int, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """One launch: number of the block and of the thread within it. What blocks share is complete at the next launch.

    Code inside says itself where threads wait for each other (:func:`wait`).
    """
    with (
        T.attr(tirx.const(0), "hand_threaded", 0),
        T.launch_thread("blockIdx.x", tirx.const(blocks, "int32")) as block,
        T.launch_thread("threadIdx.x", tirx.const(threads, "int32")) as thread,
    ):
        yield block, thread


@contextlib.contextmanager
def each(count: Expr | int, thread: Expr, threads: int) -> Iterator[Expr]:
    """A loop over 0..``count`` that a block's threads share, thread by thread."""
    steps = (count + (threads - 1)) // threads
    with T.serial(0, steps) as step:
        index = T.bind(step * threads + thread)
        with T.If(index < count), T.Then():
            yield index


def wait() -> None:
    """All threads of a block come here before one goes on, and see what the others have written."""
    T.evaluate(T.tvm_storage_sync("shared"))


def shared(shape: tuple[int, ...], dtype: str) -> Any:
    """Memory of a block."""
    return T.alloc_buffer(shape, dtype, scope="shared")


def register(value: Expr, dtype: str) -> Any:
    """A variable of a thread: ``register(…)[0]`` reads it."""
    cell = T.alloc_buffer((1,), dtype, scope="local")
    T.buffer_store(cell, value, [0])
    return cell


def atomic_add(buffer: Any, index: Expr, value: Expr) -> Expr:
    """What ``buffer[index]`` was before ``value`` was added."""
    from tvm.backend.cuda.op import cuda_atomic_add

    return cuda_atomic_add(T.address_of(buffer[index]), value)


def u64(value: Expr | int) -> Expr:
    return tirx.const(value, "uint64") if isinstance(value, int) else tirx.Cast("uint64", value)


def f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def product(left: Expr, right: Expr) -> Expr:
    """A product that is rounded, whatever is added to it: as on a processor without fused multiply-add."""
    return T.call_pure_extern("float32", "__fmul_rn", left, right)
