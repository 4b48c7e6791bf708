"""Faults that a simulated board can be given: each one really happens, so that what must survive it can be tested."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from targets.base import Blocked, Counting, FleetError

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import Array, Runner

KINDS = {
    "disk-full": "the store has room for 64 KiB only",
    "wrong-result": "every output is perturbed",
    "crash": "the worker dies of a segmentation fault in the golden check",
    "hang": "the worker never returns from the golden check",
    "slow": "each measured query takes 1.5 times as long; slow:F for another factor",
    "drop": "all connections are cut once, after 3 chunks; drop:N for another number",
    "refuse-start": "the agent refuses to start",
}
_WITH_VALUE = {"slow": 1.5, "drop": 3.0}
#: Bytes the store may hold with ``disk-full``.
FULL_DISK_QUOTA = 64 << 10


@dataclass(frozen=True, slots=True)
class Faults:
    """Kinds of faults, each with its value (0 for those that take none)."""

    kinds: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Faults:
        """From texts such as ``crash`` and ``slow:1.5``. Raises :class:`FleetError` for any other."""
        kinds: dict[str, float] = {}
        for text in texts:
            kind, colon, value = text.partition(":")
            known = ", ".join(KINDS)
            if kind not in KINDS:
                raise FleetError(f"there is no fault '{text}'", code="usage", hint=f"there are: {known}")
            try:
                kinds[kind] = float(value) if colon else _WITH_VALUE.get(kind, 0.0)
            except ValueError:
                raise FleetError(f"fault '{text}': '{value}' is not a number", code="usage") from None
            if colon and (kind not in _WITH_VALUE or not 1 <= kinds[kind] <= 1e6):
                raise FleetError(
                    f"fault '{text}' cannot have that value", code="usage", hint="such as slow:2 or drop:5"
                )
        return cls(tuple(kinds.items()))

    def __contains__(self, kind: str) -> bool:
        return any(k == kind for k, _ in self.kinds)

    def value(self, kind: str) -> float:
        """The value of a fault; 0 when it is not there."""
        return dict(self.kinds).get(kind, 0.0)

    def texts(self) -> list[str]:
        return [f"{kind}:{value:g}" if value else kind for kind, value in self.kinds]


class FaultyRunner:
    """A runner that computes through another one and has its faults."""

    def __init__(self, runner: Runner, faults: Faults) -> None:
        self.runner = runner
        self._faults = faults
        self.engine = runner.engine

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        outputs = self.runner.infer(inputs)
        if "wrong-result" in self._faults:
            return [perturbed(output) for output in outputs]
        return outputs

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        factor = self._faults.value("slow")
        if not factor:
            return self.runner.measure(queries)
        # One by one, unless each call costs a start.
        step = queries if isinstance(self.runner, Blocked) else 1
        return np.concatenate([self._slowed(min(step, queries - done), factor) for done in range(0, queries, step)])

    def _slowed(self, queries: int, factor: float) -> npt.NDArray[np.float64]:
        own = self.runner.measure(queries)
        # Spun, not slept: a sleep would be off by the timer's slack and let the clock frequency sink.
        until = time.perf_counter() + float(own.sum()) * (factor - 1)
        while time.perf_counter() < until:
            pass
        return own * factor

    def block_queries(self, seconds_per_query: float) -> int:
        return self.runner.block_queries(seconds_per_query) if isinstance(self.runner, Blocked) else 1

    def conditions(self) -> dict[str, str]:
        return {**self.runner.conditions(), "faults": " ".join(self._faults.texts())}

    def counters(self) -> dict[str, int | float]:
        return self.runner.counters() if isinstance(self.runner, Counting) else {}

    def close(self) -> None:
        self.runner.close()


def perturbed(output: Array) -> Array:
    """``output`` with every element wrong by at least one."""
    if output.dtype.kind == "b":
        return np.logical_not(output)
    return (output + np.ones((), output.dtype)).astype(output.dtype)


def before_golden(faults: Faults) -> None:
    """Crash or hang, when told to."""
    if "crash" in faults:
        os.kill(os.getpid(), signal.SIGSEGV)
    while "hang" in faults:
        signal.pause()
