"""``vta sim``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli import exits
from controller.cli.arguments import BuildOption, Weights
from controller.cli.session import Session, build_options, command
from controller.vta import arguments
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.vta.report import SimReport
    from controller.vta.simulate import Ran, Settings

_Image = Annotated[Path | None, typer.Option("--image", metavar="PICTURE", help="What a model shall look at.")]
_Input = Annotated[
    list[Path] | None,
    typer.Option(
        "--input", metavar="FILE.npy", help="Input of a program, int8 NCHW (repeatable); else random numbers."
    ),
]
_DramOut = Annotated[
    Path | None,
    typer.Option("--dram-out", metavar="FILE", help="Write the memory of a program or folder after the run."),
]
_Timeline = Annotated[
    Path | None,
    typer.Option("--timeline", metavar="FILE", help="Draw what the modules do when: .svg, or a Chrome trace as .json."),
]
_Semantics = Annotated[
    Literal["hw", "fsim"],
    typer.Option("--semantics", help="Behave as the hardware, or as TVM's functional simulator, where they differ."),
]
_Order = Annotated[
    Literal["program", "random"], typer.Option("--order", help="Which of the instructions that are ready goes first.")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the random order.")]


def register(app: typer.Typer) -> None:
    @command(app, "sim")
    def sim(
        session: Session,
        subject: arguments.Subject,
        image: _Image = None,
        inputs: _Input = None,
        weights: Weights = "",
        config: arguments.Config = "",
        board: arguments.Board = "sim",
        option: BuildOption = None,
        semantics: _Semantics = "hw",
        order: _Order = "program",
        seed: _Seed = 0,
        dram_out: _DramOut = None,
        timeline: _Timeline = None,
    ) -> int:
        """Run a model, a program or a folder on the simulator: counters, cycles, predicted latency, answers."""
        from controller.vta import subjects
        from controller.vta.simulate import Settings, draw
        from targets.vta import boards

        boards.find(board)
        for path in (dram_out, timeline):
            if path is not None:
                arguments.check_writable(path)
        if timeline is not None and timeline.suffix not in (".svg", ".json"):
            raise FleetError(f"--timeline {timeline}: a timeline is drawn as .svg or .json", code="usage")
        settings = Settings(board=board, semantics=semantics, order=order, seed=seed)
        if subjects.kind(subject) == "model":
            if inputs or dram_out is not None:
                raise FleetError(
                    f"'{subject}' is a model: --input and --dram-out are for programs and folders",
                    code="usage",
                    hint="give it a picture with --image",
                )
            from controller.vta import models

            built = models.build(session, subject, "vta-sim", config, weights, build_options(option or ()))
            report, runs = models.simulate(built, image, settings)
        else:
            if image is not None or weights or option:
                raise FleetError(
                    f"'{subject}' is no model: --image, --weights and --option are for models", code="usage"
                )
            report, runs = _run(subject, config, inputs or [], settings, dram_out)
        if timeline is not None:
            report.timeline = draw(runs, timeline)
        return _answer(session, report)


def _run(
    subject: str, config: str, inputs: list[Path], settings: Settings, dram_out: Path | None
) -> tuple[SimReport, list[Ran]]:
    from controller.vta import simulate, subjects
    from targets.vta.program import Program

    stream = subjects.program_or_folder(subject, config)
    if isinstance(stream.source, Program):
        return simulate.of_program(stream.source, inputs, settings, dram_out)
    if inputs:
        raise FleetError(f"{subject} is a folder, whose inputs are in its dram.bin", code="usage")
    return simulate.of_folder(stream.source, settings, dram_out)


def _answer(session: Session, report: SimReport) -> int:
    from controller.vta import report as reports

    session.answer(reports.document(report), *(() if session.as_json else reports.parts(report)))
    return exits.FAILED if report.as_expected is False else exits.GOOD
