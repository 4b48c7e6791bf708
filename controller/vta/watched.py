"""A runner that keeps what goes in and what it costs, program by program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.vta.device import VTARunner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.vta.driver import RunStatistics
    from targets.vta.program import Program


@dataclass(frozen=True, slots=True)
class Region:
    """One program's last run. ``inputs`` are int8, packed and flat."""

    program: Program
    inputs: list[npt.NDArray[np.int8]]
    statistics: RunStatistics


class WatchedRunner(VTARunner):
    """Also a context manager that closes it."""

    def __init__(self, *args: Any) -> None:
        self._regions: dict[int, Region] = {}
        super().__init__(*args)

    def regions(self) -> list[Region]:
        """What ran in the last inference, in the order of the programs."""
        return [self._regions[index] for index in sorted(self._regions)]

    def _run(self, index: int, *tensors: Any) -> None:
        program = self._programs[index]
        inputs = [tensor.numpy().reshape(-1).copy() for tensor in tensors[: len(program.inputs)]]
        super()._run(index, *tensors)
        self._regions[index] = Region(program, inputs, self._last[index])

    def __enter__(self) -> WatchedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
