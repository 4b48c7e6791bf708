"""``fleet doctor``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from controller.cli import exits
from controller.cli.running import run
from controller.cli.session import Session, command
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.doctor import Check


def register(app: typer.Typer) -> None:
    @command(app, "doctor", selects=True)
    def doctor(session: Session) -> int:
        """Look for what is wrong: this machine, the inventory, every device; exit 1 if something is."""
        checks = run(_examine(session))
        session.answer({"checks": checks}, *(() if session.as_json else _parts(checks)))
        return exits.FAILED if any(check.verdict == "error" for check in checks) else exits.GOOD


async def _examine(session: Session) -> list[Check]:
    from controller import doctor
    from controller.home import Home

    checks = await doctor.machine(Home.find(), session.inventory)
    try:
        fleet = session.fleet()
    except FleetError:
        # The checks of this machine have said what is wrong with the inventory.
        return checks
    if session.selects or fleet.inventory.devices:
        checks += await doctor.devices(fleet, session.select(fleet, all_by_default=True))
    return checks


def _parts(checks: Sequence[Check]) -> list[RenderableType]:
    from rich.text import Text

    from controller.cli.tables import Cell, table, word

    rows: list[list[Cell]] = [
        [check.device or "here", check.name, word(check.verdict), check.detail] for check in checks
    ]
    parts: list[RenderableType] = [table(["where", "what", "verdict", "detail"], rows)]
    for check in checks:
        if check.hint and check.verdict != "ok":
            parts.append(Text.assemble((f"{check.device or 'here'}, {check.name}: ", "bold"), check.hint))
    return parts
