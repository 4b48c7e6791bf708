"""``vta check``"""

from __future__ import annotations

import typer

from controller.cli import exits
from controller.cli.session import Session, command
from controller.vta import arguments


def register(app: typer.Typer) -> None:
    @command(app, "check")
    def check(session: Session, program: arguments.Program, config: arguments.Config = "") -> int:
        """Prove without running it that a program is safe on hardware; every build is checked so."""
        from controller.vta import subjects

        found = subjects.program_or_folder(program, config)
        findings = found.check()
        if session.as_json:
            session.answer(
                {"program": found.name, "config": found.config.identity, "findings": [f._asdict() for f in findings]}
            )
        elif findings:
            from controller.cli.tables import Cell, table

            rows: list[list[Cell]] = [[str(f.instruction), f.rule, f.message] for f in findings]
            session.answer({}, table(["instruction", "rule", "reason"], rows, right=("instruction",)))
        else:
            session.answer({}, f"{found.name}: {len(found.table)} instructions, nothing found")
        return exits.FAILED if findings else exits.GOOD
