"""The host half of the targets with VTA: a network in integers as programs, the rest compiled for the board's CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from targets.base import (
    BuildOutput,
    BuiltFile,
    FleetError,
    Option,
    Quantised,
    Requirements,
    Samples,
    SourceModel,
)
from targets.cpu.compile import LIBRARY, cannot_compile, compile_module, link, write_weights
from targets.cpu.host import ENGINE, tool_versions, without_torch
from targets.vta.boards import Board
from targets.vta.files import BITSTREAM, REPORT, program_files
from targets.vta.options import VTAOptions, resolve

if TYPE_CHECKING:
    from targets.vta.partition import Partitioned
    from targets.vta.program import Program
    from targets.vta.qgraph import QGraph

#: How many samples the whole network in integers is held against the float one with.
COMPARED = 4
#: A device may be so many times further from the reference than rounding was seen to take the samples.
SAFETY = 4.0

Progress = Callable[[str, float], None]


class VTAHost:
    """A :class:`targets.base.QuantisingHalf` and :class:`targets.base.FetchingHalf`. Options:

    ``config``: the accelerator's configuration, by its published name (``@0.0.1`` for the older instruction layout) or
    a JSON file; ``hw_ver``: the instruction layout, if not that of the board's newest bitstream.
    ``activations``: ``mse`` or ``minmax``; ``weights``: scales by ``tensor`` or by ``block`` of channels.
    ``first_conv``, ``dense``: whether the first convolution and dense layers go to the accelerator too.
    ``pools``: two operators, as ``START,STOP``, between which everything goes there; found automatically by default.
    ``batch``: the first dimension of the model's inputs; 0 keeps the file's.
    ``machine``, ``mcpu``: whose CPU the rest is compiled for; the board's by default.
    ``bitstream``: a file that goes with the bundle; ``bitstream_sha256`` vouches for one that is not a known one.
    """

    def __init__(self, board: Board) -> None:
        self.board = board

    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        chosen = resolve(options, self.board)
        bitstream = self._bitstream(chosen)
        return {
            **tool_versions(),
            "numpy": version("numpy"),
            "mcpu": chosen.processor.name,
            "machine": chosen.machine.uname,
            "vta": chosen.config.identity,
            **({"bitstream": bitstream[1]} if bitstream else {}),
        }

    def with_fetched(self, options: Mapping[str, Option], cache: Path) -> dict[str, Option]:
        from bitstreams import manifest
        from bitstreams.fetch import cached

        found = dict(options)
        chosen = resolve(options, self.board)
        if chosen.bitstream is None and self._is_real(chosen):
            for known in manifest.known():
                fits = known.board == self.board.name and known.identity == chosen.config.identity
                path = cached(known, cache / "bitstreams") if fits else None
                if path is not None:
                    found["bitstream"] = str(path)
        return found

    def quantises(self, options: Mapping[str, Option]) -> bool:
        return True

    def build_quantised(
        self,
        model: SourceModel,
        options: Mapping[str, Option],
        samples: Samples,
        workdir: Path,
        progress: Progress,
    ) -> Quantised:
        chosen = resolve(options, self.board)
        bitstream = self._bitstream(chosen)
        progress("import", 0.0)
        without_torch(model)
        from targets.relax_import import to_relax

        module, inputs, outputs = to_relax(model, chosen.batch)
        try:
            progress("partition", 0.05)
            partitioned = _partition(module, chosen)
            progress("calibrate", 0.1)
            from targets.vta.float_part import FloatPart

            network = FloatPart(partitioned)
        except FleetError:
            raise
        except Exception as error:
            raise cannot_compile(model.name, chosen.machine, error) from error
        from targets.vta.accuracy import calibrated

        fitted = calibrated(network, partitioned, samples(inputs), chosen, COMPARED)
        progress("lower", 0.5)
        programs = [_program(qgraph, chosen, model.name) for qgraph in fitted.qgraphs]
        progress("compile", 0.7)
        library = _library(partitioned, fitted.qgraphs, chosen, model.name, workdir)
        files = [*library, *program_files(programs, workdir)]
        report = workdir / REPORT
        report.write_bytes(msgspec.json.encode({**fitted.report, "notes": partitioned.notes}))
        files.append(BuiltFile(name=REPORT, path=str(report), role="extra"))
        if bitstream:
            files.append(BuiltFile(name=BITSTREAM, path=bitstream[0], role="extra"))
        progress("built", 1.0)
        output = BuildOutput(
            entry=LIBRARY,
            files=tuple(files),
            parameters=tuple(file.name for file in library[1:]),
            inputs=inputs,
            outputs=outputs,
            requirements=Requirements(
                runtime={"apache-tvm": version("apache-tvm")},
                machine=chosen.machine.uname,
                cpu_features=chosen.processor.features,
                accelerator=chosen.config.identity if programs else "",
                bitstream=bitstream[1] if bitstream else "",
            ),
            engine=ENGINE,
            atol=max(1e-3, SAFETY * fitted.rounding),
        )
        return Quantised(output, fitted.reference, f"integer evaluation, NumPy {version('numpy')}")

    def _is_real(self, chosen: VTAOptions) -> bool:
        """Whether the build is for the board itself: a simulation of it has another machine, and no FPGA."""
        return chosen.machine.uname == self.board.machine

    def _bitstream(self, chosen: VTAOptions) -> tuple[str, str] | None:
        """Path and SHA-256 of the bitstream that goes with the bundle. Raises :class:`FleetError` when it may not."""
        if chosen.bitstream is None:
            return None
        from bitstreams.bitfile import check

        if not self._is_real(chosen):
            raise FleetError(
                f"a simulated {self.board.name} has no FPGA: option 'bitstream' is for the real one", code="bad-option"
            )
        checked = check(
            chosen.bitstream, board=self.board, identity=chosen.config.identity, sha256=chosen.bitstream_sha256
        )
        return str(chosen.bitstream), checked.sha256


def _partition(module: Any, chosen: VTAOptions) -> Partitioned:
    from targets.cpu import passes
    from targets.vta.partition import PartitionOptions, partition

    options = PartitionOptions(first_conv=chosen.first_conv, dense=chosen.dense, pools=chosen.pools)
    return partition(passes.simplify()(module), chosen.config, options)


def _program(qgraph: QGraph, chosen: VTAOptions, name: str) -> Program:
    """Raises :class:`ModelError` for a layer that has no place, :class:`FleetError` ``bad-program`` for our fault."""
    from targets.vta.checker import check
    from targets.vta.lower import lower

    program = lower(qgraph, chosen.config)
    if findings := check(program):
        first = findings[0]
        raise FleetError(
            f"{name}: the compiler made a program that would not be safe to run: instruction {first.instruction}: "
            f"{first.rule}: {first.message} ({len(findings)} findings)",
            code="bad-program",
            hint="this is a fault of the compiler: please report it with the model",
        )
    return program


def _library(
    partitioned: Partitioned, qgraphs: Sequence[QGraph], chosen: VTAOptions, name: str, workdir: Path
) -> list[BuiltFile]:
    """The CPU's part as a library, then its weights."""
    from targets.vta.host_module import deployment_module

    try:
        module = deployment_module(partitioned, qgraphs, chosen.config)
        compiled = compile_module(module, chosen.machine, chosen.processor)
    except Exception as error:
        # TVM's passes raise many types; all of them are about this model.
        raise cannot_compile(name, chosen.machine, error) from error
    return [link(compiled.executable, chosen.machine, workdir), *write_weights(compiled.weights, workdir)]
