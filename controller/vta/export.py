"""``vta export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.arguments import BuildOption, Weights
from controller.cli.session import Session, build_options, command
from controller.vta import arguments
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    @command(app, "export")
    def export(
        session: Session,
        subject: Annotated[
            str, typer.Argument(metavar="PROGRAM|MODEL", help="A program file, or a model whose program is built.")
        ],
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if need be.")],
        image: Annotated[
            Path | None, typer.Option("--image", metavar="PICTURE", help="What a model shall look at.")
        ] = None,
        inputs: Annotated[
            list[Path] | None,
            typer.Option("--input", metavar="FILE.npy", help="Input of a program, int8 NCHW (repeatable)."),
        ] = None,
        weights: Weights = "",
        config: arguments.Config = "",
        option: BuildOption = None,
    ) -> int:
        """Write insn.bin, dram.bin, dram_expected.bin and layout.json, which any implementation of the ISA can run."""
        from controller.vta import simulate, subjects
        from targets.vta import export as exports
        from targets.vta.program import Program

        if folder.exists() and not folder.is_dir():
            raise FleetError(f"{folder} is a file", code="usage", hint="name a folder")
        if subjects.kind(subject) == "model":
            if inputs:
                raise FleetError("--input is for programs; a model takes --image", code="usage")
            from controller.vta import models

            built = models.build(session, subject, "vta-sim", config, weights, build_options(option or ()))
            jobs = models.captured(built, image)
        else:
            if image is not None or weights or option:
                raise FleetError("--image, --weights and --option are for models", code="usage")
            stream = subjects.program_or_folder(subject, config)
            if not isinstance(stream.source, Program):
                raise FleetError(f"{subject} is such a folder already", code="usage")
            jobs = [(stream.source, *simulate.program_inputs(stream.source, inputs or []))]
        written = []
        for number, (program, packed, origin) in enumerate(jobs):
            target = folder if len(jobs) == 1 else folder / str(number)
            layout = exports.export(program, target, packed, origin)
            written.append(
                {
                    "folder": str(target),
                    "program": layout.program,
                    "instructions": layout.instructions,
                    "dram_size": layout.dram_size,
                    "input": origin,
                    "counters": layout.counters,
                }
            )
        session.answer(
            {"exports": written},
            *(f"{one['folder']}: {one['instructions']} instructions, {one['dram_size']} bytes" for one in written),
        )
        return exits.GOOD
