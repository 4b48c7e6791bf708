"""What each kernel of a query takes: a virtual machine that is watched call by call, beside one that is not."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from targets.base import FleetError, OperatorProfile, OperatorTime
from targets.cpu.layers import LayerRow, LayerTable

#: What the virtual machine does by itself between kernels: storage, shapes, tuples.
_BUILTIN = "vm.builtin."
#: How often the machine's best is measured before the queries, and again after them.
_CALLS = 10


@dataclass(frozen=True, slots=True)
class Timed:
    """One call that the virtual machine made."""

    kernel: str
    seconds: float


class Watch:
    """An instrument for TVM's virtual machine: it is called before and after every call with the call's arguments.

    Calls inside another call come alone: the outer one's time is theirs.
    """

    def __init__(self) -> None:
        self.calls: list[Timed] = []
        #: Output shape and bytes of all arguments, by kernel.
        self.known: dict[str, tuple[tuple[int, ...], int]] = {}
        self._open: list[int] = []
        self._since = 0.0

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        now = time.perf_counter()
        if before:
            self._open.append(len(self.calls))
        elif self._open.pop() == len(self.calls):
            self.calls.append(Timed(name, now - self._since))
            if name not in self.known:
                self.known[name] = _shapes(arguments)
        # Last of all, so that none of this is in anybody's time.
        self._since = time.perf_counter()
        # 0: go on.
        return 0

    def take(self) -> list[Timed]:
        """The kernels called since the last time."""
        taken = [call for call in self.calls if not call.kernel.startswith(_BUILTIN)]
        self.calls.clear()
        return taken


def profile(
    *,
    query: Callable[[], float],
    watched: Callable[[], object],
    watch: Watch,
    peak: Callable[[], float],
    stream: Callable[[], float],
    table: LayerTable,
    threads: int,
    queries: int,
) -> OperatorProfile:
    """Run ``query`` and ``watched`` in turn, so that both see the same clock and the same neighbours.

    ``query`` runs once unwatched, ``peak`` and ``stream`` what ``table`` says; they return seconds. ``watched`` runs a
    query that ``watch`` sees. Raises :class:`FleetError` (``no-profile``) when it sees other calls each time.
    """
    plain, seen, runs = [], [], []
    # Not in between: after a call that takes long, a system with other work interrupts what comes next.
    peaks, streams = _several(peak), _several(stream)
    for _ in range(queries):
        plain.append(query())
        # As the query before it, that one comes right after another of its own virtual machine.
        watched()
        watch.take()
        begin = time.perf_counter()
        watched()
        seen.append(time.perf_counter() - begin)
        runs.append(watch.take())
    peaks += _several(peak)
    streams += _several(stream)
    kernels = [call.kernel for call in runs[0]]
    if any([call.kernel for call in run] != kernels for run in runs):
        raise FleetError("the model calls other kernels from query to query", code="no-profile")
    seconds = [statistics.median(call.seconds for call in calls) for calls in zip(*runs, strict=True)]
    # Two figures that are both too large: watching has its cost, and a query that nobody watches has the disturbances
    # that medians of single calls leave out, since they hit another call each time.
    between = min(
        statistics.median(total - sum(call.seconds for call in run) for total, run in zip(seen, runs, strict=True)),
        max(0.0, statistics.median(plain) - sum(seconds)),
    )
    return OperatorProfile(
        operators=tuple(_named(kernels, seconds, table.layers, watch)),
        query_seconds=statistics.median(plain),
        between_seconds=between,
        # The best, not the median: other work can only make them slower.
        peak_flops=table.peak_flops / min(peaks),
        peak_bytes=table.stream_bytes / min(streams),
        threads=threads,
        queries=queries,
    )


def _several(call: Callable[[], float]) -> list[float]:
    call()
    return [call() for _ in range(_CALLS)]


def _named(
    kernels: Sequence[str], seconds: Sequence[float], rows: Sequence[LayerRow], watch: Watch
) -> Iterable[OperatorTime]:
    """Each call with its row. A kernel's calls are in the order of its rows, once or, in a function that is called
    several times, as often; TVM's own kernels have none."""
    left: dict[str, deque[LayerRow]] = defaultdict(deque)
    for row in rows:
        left[row.kernel].append(row)
    for kernel, taken in zip(kernels, seconds, strict=True):
        if left[kernel]:
            row = left[kernel][0]
            left[kernel].rotate(-1)
            yield OperatorTime(
                kernel=kernel,
                operators=tuple(row.operators),
                output=tuple(row.output),
                choice=row.choice,
                flops=row.flops,
                bytes=row.bytes,
                seconds=taken,
            )
        else:
            output, moved = watch.known[kernel]
            yield OperatorTime(
                kernel=kernel, operators=(kernel,), output=output, choice="", flops=0, bytes=moved, seconds=taken
            )


def _shapes(arguments: Iterable[Any]) -> tuple[tuple[int, ...], int]:
    """Shape of the last tensor, which is where a kernel's result goes, and the bytes of all."""
    tensors = [argument for argument in arguments if hasattr(argument, "shape") and hasattr(argument, "dtype")]
    shapes = [tuple(int(size) for size in tensor.shape) for tensor in tensors]
    # The sizes of booleans and of types below a byte are rounded up to one.
    sizes = [max(1, int(getattr(tensor.dtype, "bits", 8)) // 8) for tensor in tensors]
    moved = sum(math.prod(shape) * size for shape, size in zip(shapes, sizes, strict=True))
    return (shapes[-1] if shapes else (), moved)
