"""``vta disasm``"""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.session import Session, command
from controller.vta import arguments
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    @command(app, "disasm")
    def disasm(
        session: Session,
        program: arguments.Program,
        config: arguments.Config = "",
        layer: Annotated[str, typer.Option("--layer", metavar="NAME", help="Only this layer's instructions.")] = "",
        uops: Annotated[bool, typer.Option("--uops", help="Show the micro-ops that are loaded, too.")] = False,
    ) -> int:
        """Print a program's instructions, with the tokens that each waits for and releases."""
        from controller.printable import printable
        from controller.vta import subjects
        from targets.vta.disasm import disassemble

        found = subjects.program_or_folder(program, config)
        first, last = 0, len(found.table)
        if layer:
            names = {one.name: one for one in found.layers}
            if layer not in names:
                raise FleetError(
                    f"{program} has no layer '{layer}'",
                    code="usage",
                    hint=f"it has: {', '.join(names)}" if names else "nothing says which layers it has",
                )
            first, last = names[layer].first, names[layer].last
        # All of it is looked at, for a token's other end may lie in another layer.
        lines = disassemble(found.table, found.config, found.memory() if uops else None, found.layers)
        chosen = subjects.instructions(lines, first, last)
        if session.as_json:
            session.answer({"program": found.name, "config": found.config.identity, "instructions": list(chosen)})
            return exits.GOOD
        for line in chosen:
            print(printable(line))
        return exits.GOOD
