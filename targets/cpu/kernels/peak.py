"""The most multiply-adds that a processor can do: as many independent sums as there are registers, and no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel, ramp, splat


@dataclass(frozen=True, slots=True)
class Peak:
    """``jobs`` shares of ``steps`` times ``sums`` multiply-adds of ``lanes`` numbers."""

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
