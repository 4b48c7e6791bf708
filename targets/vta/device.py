"""The device half of the targets with VTA: TVM's virtual machine for the CPU's part, a driver for the accelerator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.base import LoadedBundle, Requirements, Runner
from targets.cpu.device import CPUDevice, CPURunner
from targets.cpu.pool import import_runtime, start_pool
from targets.vta.boards import Board
from targets.vta.driver import Conditioned
from targets.vta.files import BITSTREAM, read_programs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.base import Array
    from targets.vta.config import VtaConfig
    from targets.vta.driver import RunStatistics, VtaDriver
    from targets.vta.program import Program

#: What the library calls: the region's number, packed inputs, packed outputs.
RUN = "fleet.vta.run"
#: Seconds that one execution of a program may take.
RUN_TIMEOUT = 30.0

#: Opens the accelerator of a board; the path is the bundle's bitstream, if it has one.
Open = Callable[["VtaConfig", Board, "Path | None"], "VtaDriver"]


def simulator(config: VtaConfig, board: Board, _bitstream: Path | None) -> VtaDriver:
    """The accelerator of a simulated board; the cycle model has the board's clock and memory."""
    from targets.vta.sim_driver import SimDriver

    return SimDriver(config, board=board.name)


class VTADevice:
    """A :class:`targets.base.DeviceHalf`."""

    def __init__(self, board: Board, open_driver: Open) -> None:
        self._board = board
        self._open = open_driver

    @property
    def exclusive(self) -> bool:
        """One process drives an FPGA; simulations do not meet."""
        return self._open is not simulator

    def unmet(self, requirements: Requirements) -> str:
        if unmet := CPUDevice().unmet(requirements):
            return unmet
        if not requirements.accelerator:
            return ""
        if self._open is not simulator and not requirements.bitstream:
            return (
                f"the bundle has no bitstream of VTA {requirements.accelerator} for {self._board.name}: get one with "
                "`vta bitstream fetch`, or name a file with the option 'bitstream', and build again"
            )
        if self._open is simulator and find_spec("numba") is None:
            return "numba is not installed, which simulating the accelerator needs (pip install 'fleet-edge[vta]')"
        return ""

    def load(self, bundle: LoadedBundle, threads: int) -> Runner:
        programs = read_programs(bundle)
        if not programs:
            start_pool(threads)
            return CPURunner(bundle)
        import_runtime(threads)
        has_bitstream = any(file.path == BITSTREAM for file in bundle.manifest.files)
        driver = self._open(programs[0].config, self._board, bundle.path(BITSTREAM) if has_bitstream else None)
        try:
            # After the driver: the processes that it starts shall not be pinned with this thread.
            start_pool(threads)
            return VTARunner(bundle, programs, driver, self._board)
        except BaseException:
            driver.close()
            raise

    def telemetry(self) -> dict[str, float]:
        return {}


class VTARunner(CPURunner):
    """A :class:`targets.base.Runner` and :class:`targets.base.Counting`."""

    def __init__(self, bundle: LoadedBundle, programs: Sequence[Program], driver: VtaDriver, board: Board) -> None:
        import tvm_ffi

        from targets.vta.executable import Executable

        self._driver = driver
        self._board = board
        self._programs = programs
        self._executables = [Executable(program, driver) for program in programs]
        self._last: dict[int, RunStatistics] = {}
        self._failure: Exception | None = None
        # A virtual machine looks functions up when it is made, so another runner may take the name after this one.
        tvm_ffi.register_global_func(RUN, self._run, override=True)
        super().__init__(bundle)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        with self._own_errors():
            return super().infer(inputs)

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        with self._own_errors():
            return super().measure(queries)

    def conditions(self) -> dict[str, str]:
        how = f"simulated {self._board.name}" if self._driver.simulated else self._board.name
        accelerator = f"VTA {self._driver.config.identity}, {how}"
        added = self._driver.conditions() if isinstance(self._driver, Conditioned) else {}
        return {**super().conditions(), **added, "accelerator": accelerator}

    def counters(self) -> dict[str, int | float]:
        """Those of TVM's simulator by their names, all regions together; cycles and milliseconds are the model's."""
        from targets.vta.counters import Counters

        runs = self._last.values()
        total = sum((run.counters for run in runs), Counters())
        return {
            **total.to_dict(),
            "bytes_moved": total.bytes_moved,
            "cycles": sum(run.cycles for run in runs),
            "predicted_ms": sum(run.predicted_ms for run in runs),
            "accelerator_ms": sum(run.seconds for run in runs) * 1e3,
        }

    def close(self) -> None:
        super().close()
        for executable in self._executables:
            executable.close()
        self._driver.close()

    def _run(self, index: int, *tensors: Any) -> None:
        try:
            count = len(self._programs[index].inputs)
            executable = self._executables[index]
            results = executable.run([tensor.numpy() for tensor in tensors[:count]], RUN_TIMEOUT)
            for tensor, result in zip(tensors[count:], results, strict=True):
                tensor.copyfrom(result.reshape(tensor.shape))
            self._last[index] = executable.statistics()
        except Exception as error:
            self._failure = error
            raise

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """What the accelerator raised, as it was: passing through TVM it loses its type, and with it its hint."""
        self._failure = None
        try:
            yield
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise
