"""The most that a processor can do, to measure kernels by: multiply-adds without memory, and memory without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel, ramp, splat


@dataclass(frozen=True, slots=True)
class Peak:
    """``jobs`` shares of ``steps`` times ``sums`` multiply-adds of ``lanes`` numbers: a sum for every register."""

    lanes: int
    sums: int
    jobs: int = 64
    steps: int = 4096

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: two for each multiply-add."""
        return 2 * self.jobs * self.steps * self.sums * self.lanes


def peak(spec: Peak, name: str) -> Any:
    """Arguments: x (2, lanes), y (jobs, lanes). With x between -1 and 1 the sums neither overflow nor vanish."""

    def body() -> None:
        x = argument("x", (2, spec.lanes))
        y = argument("y", (spec.jobs, spec.lanes))
        with T.parallel(0, spec.jobs) as job:
            sums = T.alloc_buffer((spec.sums * spec.lanes,), "float32", scope="local")
            registers = [ramp(index * spec.lanes, spec.lanes) for index in range(spec.sums)]
            for index, register in enumerate(registers):
                T.buffer_store(sums, splat(float(index), spec.lanes), [register])
            with T.serial(0, spec.steps):
                for register in registers:
                    T.buffer_store(
                        sums, sums[register] * x[0, ramp(0, spec.lanes)] + x[1, ramp(0, spec.lanes)], [register]
                    )
            total = sums[registers[0]]
            for register in registers[1:]:
                total = total + sums[register]
            T.buffer_store(y, total, [job, ramp(0, spec.lanes)])

    return kernel(name, body).with_attr("global_symbol", name)


@dataclass(frozen=True, slots=True)
class Stream:
    """``jobs`` shares of ``numbers`` numbers that are read once and written once: more than caches hold."""

    lanes: int
    jobs: int = 64
    numbers: int = 1 << 17

    @property
    def bytes(self) -> int:
        """What one call reads and writes."""
        return 2 * 4 * self.jobs * self.numbers


def stream(spec: Stream, name: str) -> Any:
    """Arguments: x (jobs, numbers), y of the same shape."""

    def body() -> None:
        x = argument("x", (spec.jobs, spec.numbers))
        y = argument("y", (spec.jobs, spec.numbers))
        with T.parallel(0, spec.jobs) as job, T.serial(0, spec.numbers // spec.lanes) as step:
            at = ramp(step * spec.lanes, spec.lanes)
            # A sum, since LLVM makes a call of `memcpy` of a mere copy, which may go around the caches.
            T.buffer_store(y, x[job, at] + splat(1.0, spec.lanes), [job, at])

    return kernel(name, body).with_attr("global_symbol", name)
