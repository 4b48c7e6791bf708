"""A program on an accelerator: placed once, run as often as asked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from targets.vta.config import PAGE
from targets.vta.driver import RunStatistics, VtaDriver
from targets.vta.layout import packed_bytes
from targets.vta.program import Program, ProgramError

if TYPE_CHECKING:
    import numpy.typing as npt


class Executable:
    """Allocates memory for ``program``, moves its addresses there, writes instructions and constants.

    Raises :class:`ProgramError` for a program that was built for another accelerator.
    """

    def __init__(self, program: Program, driver: VtaDriver) -> None:
        if program.config.identity != driver.config.identity:
            raise ProgramError(
                f"the program was built for {program.config.identity}, this accelerator is {driver.config.identity}",
                code="wrong-configuration",
                hint="build it for this accelerator's configuration, or program another bitstream",
            )
        self._driver = driver
        self._program = program
        self._allocated: list[int] = []
        try:
            for segment in program.segments:
                self._allocated.append(driver.allocate(segment.size))
            instructions = program.relocate(self._allocated)
            self._count = len(program.table)
            self._insn = driver.allocate(-(-len(instructions) // PAGE) * PAGE)
            self._allocated.append(self._insn)
            driver.write(self._insn, instructions)
            for name, data in program.constants.items():
                driver.write(self._address(name), data)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[npt.NDArray[np.int8]], timeout: float) -> list[npt.NDArray[np.int8]]:
        """One execution. Inputs and outputs are in the packed layout, flat or not, in the program's order."""
        if len(inputs) != len(self._program.inputs):
            raise ValueError(f"the program takes {len(self._program.inputs)} inputs, {len(inputs)} were given")
        for port, array in zip(self._program.inputs, inputs, strict=True):
            size = packed_bytes(port.shape, self._program.config)
            if array.dtype != np.int8 or array.size != size:
                raise ValueError(f"input '{port.name}' is {size} bytes of int8, not {array.size} of {array.dtype}")
            self._driver.write(self._address(port.buffer), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._driver.run(self._insn, self._count, timeout)
        outputs = []
        for port in self._program.outputs:
            data = self._driver.read(self._address(port.buffer), packed_bytes(port.shape, self._program.config))
            outputs.append(np.frombuffer(data, np.int8))
        return outputs

    def statistics(self) -> RunStatistics:
        return self._driver.statistics()

    def close(self) -> None:
        """Give the memory back; the driver stays open."""
        for address in self._allocated:
            with contextlib.suppress(Exception):  # as much as can be: the first failure is not the last buffer
                self._driver.free(address)
        self._allocated.clear()

    def _address(self, name: str) -> int:
        buffer = self._program.buffer(name)
        for segment, address in zip(self._program.segments, self._allocated, strict=False):
            if segment.address <= buffer.address < segment.address + segment.size:
                return address + buffer.address - segment.address
        raise ProgramError(f"buffer '{name}' lies in no segment")
