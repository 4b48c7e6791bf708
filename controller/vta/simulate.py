"""Runs programs and folders on the simulator, and puts together what is told of a run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from controller.vta.report import LayerFigures, ModuleFigures, OutputFigures, SimReport
from targets.base import FleetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.vta.boards import Board
    from targets.vta.config import VtaConfig
    from targets.vta.counters import Counters
    from targets.vta.cycles import CycleReport
    from targets.vta.export import Folder
    from targets.vta.isa import Table
    from targets.vta.program import Layer, Program


@dataclass(frozen=True, slots=True)
class Settings:
    """How to simulate. ``board`` is the one whose speed is predicted."""

    board: str = "sim"
    semantics: Literal["hw", "fsim"] = "hw"
    order: Literal["program", "random"] = "program"
    seed: int = 0
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class Ran:
    """One program's run: what it counted, how long it took here, and what the model says of it."""

    table: Table
    config: VtaConfig
    layers: Sequence[Layer]
    counters: Counters
    seconds: float
    cycles: CycleReport


def of_folder(folder: Folder, settings: Settings, dram_out: Path | None) -> tuple[SimReport, list[Ran]]:
    """Run a folder. Its memory is changed, and written to ``dram_out`` if given."""
    from targets.files import disk_errors, write_atomic
    from targets.vta.export import first_difference

    ran = _execute(folder.table, folder.config, folder.layers, folder.dram, settings)
    if dram_out is not None:
        with disk_errors(str(dram_out)):
            write_atomic(dram_out, folder.dram.tobytes())
    report = summary(folder.name, [ran], settings, source="dram.bin")
    if folder.expected is not None:
        report.difference = first_difference(folder)
        report.as_expected = not report.difference
    return report, [ran]


def of_program(
    program: Program, inputs: Sequence[Path], settings: Settings, dram_out: Path | None
) -> tuple[SimReport, list[Ran]]:
    """Run a program file on ``.npy`` inputs, or on random ones if none are given."""
    from targets.files import disk_errors, write_atomic
    from targets.vta.export import filled

    packed, origin = program_inputs(program, inputs)
    memory = filled(program, packed)
    ran = _execute(program.table, program.config, program.layers, memory, settings)
    if dram_out is not None:
        with disk_errors(str(dram_out)):
            write_atomic(dram_out, memory.tobytes())
    report = summary(program.model, [ran], settings, source=origin)
    report.notes = list(program.notes)
    report.outputs = _outputs(program, memory)
    return report, [ran]


def program_inputs(program: Program, files: Sequence[Path]) -> tuple[list[npt.NDArray[np.int8]], str]:
    """Packed inputs, and where they come from: ``.npy`` files of int8 NCHW, or seeded noise without any.

    Raises:
        FleetError: ``bad-input`` for a file that is no such array, or another number of them.
    """
    import numpy as np

    from targets.vta.export import random_inputs
    from targets.vta.layout import pack

    if not files:
        return random_inputs(program, seed=0), "random numbers, seed 0"
    if len(files) != len(program.inputs):
        raise FleetError(f"the program takes {len(program.inputs)} inputs, {len(files)} were given", code="bad-input")
    packed = []
    for path, port in zip(files, program.inputs, strict=True):
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FleetError(f"{path} is no .npy file: {error}", code="bad-input") from None
        if not isinstance(array, np.ndarray) or array.dtype != np.int8 or array.shape != port.shape:
            what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
            raise FleetError(
                f"input '{port.name}' is int8 {list(port.shape)}, and {path} holds {what}",
                code="bad-input",
                hint="inputs are int8, NCHW, not packed",
            )
        packed.append(pack(array, program.config).reshape(-1))
    return packed, ", ".join(path.name for path in files)


def measured(
    table: Table, config: VtaConfig, layers: Sequence[Layer], counters: Counters, seconds: float, board: Board
) -> Ran:
    """A run with what the cycle model says of its instructions."""
    from targets.vta import cycles

    return Ran(table, config, layers, counters, seconds, cycles.model(table, config, board, layers))


def summary(name: str, runs: Sequence[Ran], settings: Settings, *, source: str) -> SimReport:
    """The report of one or several programs that ran one after the other."""
    from targets.vta.counters import Counters

    total, seconds = Counters(), 0.0
    for run in runs:
        total, seconds = total + run.counters, seconds + run.seconds
    return SimReport(
        program=name,
        counters=total.to_dict(),
        bytes_moved=total.bytes_moved,
        cycles=sum(run.cycles.cycles for run in runs),
        gemm_cycles=sum(run.cycles.gemm_cycles for run in runs),
        dma_cycles=sum(run.cycles.dma_cycles for run in runs),
        predicted_ms=sum(run.cycles.predicted_ms for run in runs),
        seconds=seconds,
        gemm_per_second=total.gemm_counter / seconds if seconds > 0 else 0.0,
        layers=[layer for run in runs for layer in _layers(run)],
        modules=_modules(runs),
        board=settings.board,
        config=runs[0].config.identity,
        semantics=settings.semantics,
        order=settings.order,
        seed=settings.seed,
        instructions=sum(len(run.table) for run in runs),
        input=source,
    )


def draw(runs: Sequence[Ran], path: Path) -> str:
    """Write timelines: ``.svg`` a picture, ``.json`` a Chrome trace; several programs get numbered files."""
    from targets.files import disk_errors
    from targets.vta import timeline

    written = []
    for number, run in enumerate(runs):
        target = path if len(runs) == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with disk_errors(str(target)):
            (timeline.chrome_trace if target.suffix == ".json" else timeline.svg)(run.cycles, target)
        written.append(str(target))
    return ", ".join(written)


def make_ready(config: VtaConfig) -> None:
    """Load the simulator's machine code now, so that the time of a run is the run's alone."""
    from targets.vta import native

    native.loop(config.block)


def _execute(
    table: Table, config: VtaConfig, layers: Sequence[Layer], memory: npt.NDArray[np.uint8], settings: Settings
) -> Ran:
    from targets.vta import boards
    from targets.vta.simulator import Simulator

    board = boards.find(settings.board)
    make_ready(config)
    simulator = Simulator(config, semantics=settings.semantics, order=settings.order, seed=settings.seed)
    start = time.perf_counter()
    counters = simulator.run(table, memory, settings.timeout)
    return measured(table, config, layers, counters, time.perf_counter() - start, board)


def _layers(run: Ran) -> list[LayerFigures]:
    from targets.vta.counters import count

    found = []
    for layer, figures in zip(run.layers, run.cycles.layers, strict=True):
        counters = count(run.table[layer.first : layer.last], run.config)
        found.append(
            LayerFigures(
                name=layer.name,
                operator=layer.operator,
                counters=counters.to_dict(),
                bytes_moved=counters.bytes_moved,
                cycles=figures.cycles,
            )
        )
    return found


def _modules(runs: Sequence[Ran]) -> list[ModuleFigures]:
    """Each module over all runs."""
    total = sum(run.cycles.cycles for run in runs)
    found: dict[str, ModuleFigures] = {}
    for run in runs:
        for module in run.cycles.modules:
            figures = found.setdefault(
                module.name, ModuleFigures(name=module.name, busy=0, utilisation=0.0, waiting={})
            )
            figures.busy += module.busy
            for what, cycles in module.waiting.items():
                figures.waiting[what] = figures.waiting.get(what, 0) + cycles
    for figures in found.values():
        figures.utilisation = figures.busy / max(total, 1)
    return list(found.values())


def _outputs(program: Program, memory: npt.NDArray[np.uint8]) -> list[OutputFigures]:
    import numpy as np

    from targets.vta.layout import packed_bytes, unpack

    found = []
    for port in program.outputs:
        address = program.buffer(port.buffer).address
        packed = memory[address : address + packed_bytes(port.shape, program.config)].view(np.int8)
        values = unpack(packed, port.shape, program.config)
        found.append(
            OutputFigures(name=port.name, shape=port.shape, sha256=hashlib.sha256(values.tobytes()).hexdigest())
        )
    return found
