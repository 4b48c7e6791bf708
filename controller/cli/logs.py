"""``fleet logs``"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.running import run
from controller.cli.session import Session, command
from controller.events import Event, Message
from controller.printable import printable
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    @command(app, "logs", selects=True)
    def logs(
        session: Session,
        follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing new lines.")] = False,
        lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Earlier lines of each device.")] = 100,
    ) -> int:
        """What the agents say."""
        if follow and session.as_json:
            raise FleetError("--follow never ends, and --json is one document", code="usage", hint="leave out one")
        failures: list[dict[str, str]] = []

        def listen(event: Event) -> None:
            if isinstance(event, Message) and event.level != "info":
                print(f"{event.device}: {event.text}", file=sys.stderr)
                if event.level == "error":
                    failures.append({"device": event.device, "message": event.text})

        fleet = session.fleet(listen)
        selection = session.select(fleet, all_by_default=True)

        async def collect() -> list[dict[str, str]]:
            return [{"device": device, "line": line} async for device, line in fleet.logs(selection, lines, False)]

        async def show() -> None:
            width = max(len(device.name) for device in selection)
            async for device, line in fleet.logs(selection, lines, follow):
                sys.stdout.write(f"{device:<{width}}  {printable(line)}\n")
                sys.stdout.flush()

        if session.as_json:
            session.answer({"lines": run(collect()), "failures": failures})
        else:
            run(show())
        return exits.FAILED if failures else exits.GOOD
