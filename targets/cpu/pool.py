"""TVM's runtime and its threads: as many as the process may use cores, each on a core of its own."""

from __future__ import annotations

import os
import sys
from functools import cache

from targets.base import FleetError
from targets.cores import Cores, usable

#: ``kSpecifyOneCorePerThread`` of TVM's threading backend: the caller says which.
_ONE_CORE_EACH = -2
_pinned: tuple[int, ...] = ()


@cache
def _cores() -> Cores:
    """What the process could use before this module pinned anything."""
    return usable()


def import_runtime(threads: int) -> int:
    """Load TVM's runtime library alone (95 MB of memory, where the compiler takes 200 and torch 640).

    This must be the process's first import of TVM to have that effect. ``threads`` is for the pools that start after
    it, 0 for what the process may use; returns how many that are. Raises :class:`FleetError` (``too-many-threads``).
    """
    count = _cores().threads(threads)
    # A pool reads these when it starts. Left alone it takes half of the logical processors, even of two that are
    # whole cores, and binds its threads to the machine's first cores, even to those that the process may not use.
    os.environ["TVM_NUM_THREADS"] = str(count)
    os.environ["TVM_BIND_THREADS"] = "0"
    if "tvm" not in sys.modules:
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        if "torch" not in sys.modules:
            # tvm_ffi imports torch where it is installed, to trade tensors with it. A name that maps to None in
            # sys.modules is one that cannot be imported: the documented way to say "do without".
            sys.modules["torch"] = None  # type: ignore[assignment]
    import tvm.runtime.vm  # noqa: F401

    # It has been read; a build that this process starts later needs the compiler.
    os.environ.pop("TVM_USE_RUNTIME_LIB", None)
    return count


def pinned_processors() -> tuple[int, ...]:
    """Linux's numbers of the processors that `start_pool` gave the threads; none where they may wander."""
    return _pinned


def start_pool(threads: int) -> None:
    """Start the calling thread's pool, and pin the caller and the pool's threads to one core each.

    For a process that does nothing but run a model, in the thread that runs it: what that thread starts later is
    pinned with it. Raises :class:`FleetError`: ``too-many-threads``, and ``threads`` when it has a smaller pool.
    """
    global _pinned
    count = import_runtime(threads)
    from tvm.runtime import num_threads
    from tvm_ffi import get_global_func

    if num_threads() < count:
        raise FleetError(f"this process has started its {num_threads()} threads, {count} are asked for", code="threads")
    pinned = _cores().pinned(count)
    if not pinned:
        return
    # The pool's threads were started by the call above, before anything was pinned that they could inherit.
    os.environ["TVM_BIND_THREADS"] = "1"
    try:
        get_global_func("runtime.config_threadpool")(_ONE_CORE_EACH, count, [str(cpu) for cpu in pinned])
    finally:
        os.environ["TVM_BIND_THREADS"] = "0"
    # TVM takes the first core for the caller, who runs a share of the work, but lets it wander over all of them.
    os.sched_setaffinity(0, pinned[:1])
    _pinned = pinned
