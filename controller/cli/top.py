"""``fleet top``"""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.running import run
from controller.cli.session import Session, command
from controller.cli.view import view

#: How long ``--json`` waits for the slowest device's first reading.
_SNAPSHOT_DEADLINE = 5.0


def register(app: typer.Typer) -> None:
    @command(app, "top", selects=True)
    def top(
        session: Session,
        seconds: Annotated[float, typer.Option(min=0, help="End after so long; 0 for never.")] = 0.0,
    ) -> int:
        """The live view: devices, releases, latency, load, events. q ends it, the arrows scroll."""
        from controller.cli.watching import snapshot, watch

        fleet = session.fleet()
        selection = session.select(fleet, all_by_default=True)
        if session.as_json:
            session.answer({"devices": run(snapshot(fleet, selection, seconds or _SNAPSHOT_DEADLINE))})
            return exits.GOOD
        with view("fleet top", selection, full_screen=True) as listener:
            fleet.listener = listener
            run(watch(fleet, selection, seconds, getattr(listener, "scroll", None)))
        return exits.GOOD
