"""``vta build``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import exits
from controller.cli.arguments import BuildOption, Weights
from controller.cli.session import Session, build_options, command
from controller.vta import arguments

if TYPE_CHECKING:
    from controller.build import Built
    from targets.vta.program import Program


def register(app: typer.Typer) -> None:
    @command(app, "build")
    def build(
        session: Session,
        model: arguments.Model,
        output: Annotated[
            Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the program; numbered if several.")
        ] = None,
        target: Annotated[str, typer.Option("--target", metavar="T", help="Kind of board to build for.")] = "vta-sim",
        weights: Weights = "",
        config: arguments.Config = "",
        option: BuildOption = None,
    ) -> int:
        """Compile a model for the accelerator: what runs there, what it costs, what stays on the processor and why."""
        from controller.vta import models

        if output is not None:
            arguments.check_writable(output)
        built = models.build(session, model, target, config, weights, build_options(option or ()))
        programs = models.programs(built)
        written = _write(programs, output) if output is not None else []
        _answer(session, built, programs, written)
        return exits.GOOD


def _write(programs: list[Program], output: Path) -> list[str]:
    from targets.files import disk_errors

    written = []
    for number, program in enumerate(programs):
        path = output if len(programs) == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        with disk_errors(str(path)):
            program.save(path)
        written.append(str(path))
    return written


def _answer(session: Session, built: Built, programs: list[Program], written: list[str]) -> None:
    from controller.vta import models
    from targets.vta.counters import count

    assert built.manifest is not None
    costs = [count(program.table, program.config) for program in programs]
    found: list[dict[str, Any]] = [
        {
            "config": program.config.identity,
            "instructions": len(program.table),
            "layers": [layer.name for layer in program.layers],
            "memory": sum(segment.size for segment in program.segments),
            "counters": cost.to_dict(),
            "bytes_moved": cost.bytes_moved,
        }
        for program, cost in zip(programs, costs, strict=True)
    ]
    notes = models.notes(built)
    if session.as_json:
        session.answer(
            {
                "model": built.manifest.model.name,
                "origin": built.manifest.model.origin,
                "target": built.request.target,
                "bundle": built.id,
                "cached": built.cached,
                "seconds": built.seconds,
                "programs": found,
                "quantisation": models.quantisation(built),
                "notes": notes,
                "written": written,
            }
        )
        return
    from controller.cli.tables import Cell, short, table, word
    from controller.tui.figures import duration, size

    columns = ["program", "configuration", "layers", "instructions", "memory", "moves", "gemm", "alu"]
    rows: list[list[Cell]] = [
        [
            str(number),
            program.config.identity,
            str(len(program.layers)),
            f"{len(program.table):,}",
            size(one["memory"]),
            size(cost.bytes_moved),
            f"{cost.gemm_counter:,}",
            f"{cost.alu_counter:,}",
        ]
        for number, (program, cost, one) in enumerate(zip(programs, costs, found, strict=True))
    ]
    session.answer(
        {},
        table(columns, rows, right=columns[2:]),
        "",
        f"model: {built.manifest.model.origin}",
        f"bundle: {short(built.id)}, {word('cached' if built.cached else 'built')} in {duration(built.seconds)}",
        *(f"written: {path}" for path in written),
        *(f"note: {note}" for note in notes),
    )
