"""``fleet sim``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import complete, exits
from controller.cli.session import Session, command, default
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.sim import SimBoard

_HELP = "Simulated boards: real agents on this machine, in the inventory as sim-*."


def register(app: typer.Typer) -> None:
    sim = typer.Typer(help=_HELP)
    app.add_typer(sim, name="sim")

    @default(sim)
    def plain(session: Session) -> int:
        """Simulated boards: real agents on this machine, in the inventory as sim-*."""
        return _show(session)

    @command(sim, "status")
    def status(session: Session) -> int:
        """Which simulated boards there are, and whether they run."""
        return _show(session)

    @command(sim, "up")
    def up(
        session: Session,
        count: Annotated[
            int, typer.Option("--count", "-n", min=1, max=256, help="How many there shall be of each kind.")
        ] = 1,
        target: Annotated[
            list[str] | None,
            typer.Option(
                "--target",
                metavar="T",
                help="Kind of board they stand for (repeatable; x86 if left out).",
                autocompletion=complete.targets,
            ),
        ] = None,
        fault: Annotated[
            list[str] | None,
            typer.Option("--fault", metavar="KIND", help="A fault they have (repeatable), such as slow:1.5."),
        ] = None,
        tracker: Annotated[
            str, typer.Option("--tracker", metavar="HOST:PORT", help="TVM tracker they register with.")
        ] = "",
    ) -> int:
        """Start simulated boards."""
        from controller import sim as boards
        from controller.home import Home

        at, started = _endpoint(tracker), []
        for kind in dict.fromkeys(target or ["x86"]):
            started += boards.up(Home.find(), count, target=kind, faults=fault or (), tracker=at)
        _answer(session, started)
        return exits.GOOD

    @command(sim, "down")
    def down(
        session: Session,
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="NAME…", help="All of them if left out.", autocompletion=complete.simulated),
        ] = None,
    ) -> int:
        """Stop simulated boards and remove them."""
        from controller import sim as boards
        from controller.home import Home

        ended = boards.down(Home.find(), names or ())
        session.answer({"stopped": ended}, f"stopped {', '.join(ended)}" if ended else "there were no simulated boards")
        return exits.GOOD


def _endpoint(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise FleetError(f"--tracker {text}: expected HOST:PORT", code="usage", hint="`fleet tracker status` shows it")
    return host, int(port)


def _show(session: Session) -> int:
    from controller import sim as boards
    from controller.home import Home

    found = boards.status(Home.find())
    _answer(session, found)
    return exits.GOOD


def _answer(session: Session, found: Sequence[SimBoard]) -> None:
    session.answer({"boards": found}, *(() if session.as_json else _parts(found)))


def _parts(found: Sequence[SimBoard]) -> list[RenderableType]:
    from controller.cli.tables import Cell, table, word

    if not found:
        return ["there are no simulated boards; `fleet sim up --count 4` starts some"]
    columns = ["device", "target", "state", "process", "port", "rpc port", "ssh", "faults", "tracker"]
    rows: list[list[Cell]] = [
        [
            b.name,
            b.target,
            word(b.state),
            str(b.pid),
            str(b.port),
            str(b.rpc_port),
            b.ssh,
            " ".join(b.faults),
            b.tracker,
        ]
        for b in found
    ]
    return [table(columns, rows, right=("process", "port", "rpc port"))]
