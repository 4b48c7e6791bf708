"""``fleet tracker``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import exits
from controller.cli.session import Session, command, default

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.tracker import TrackerReport


def register(app: typer.Typer) -> None:
    tracker = typer.Typer(
        help="A TVM tracker on this machine: boards register with it, TVM's own clients find them there."
    )
    app.add_typer(tracker, name="tracker")

    @default(tracker)
    def plain(session: Session) -> int:
        """A TVM tracker on this machine: boards register with it, TVM's own clients find them there."""
        return show(session)

    @command(tracker, "status")
    def status(session: Session) -> int:
        """Whether it runs, and which boards are registered; exit 1 if it does not run."""
        return show(session)

    @command(tracker, "start")
    def start(
        session: Session,
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 9190,
    ) -> int:
        """Start it in the background."""
        from controller import tracker as server
        from controller.home import Home

        _answer(session, server.start(Home.find(), host, port))
        return exits.GOOD

    @command(tracker, "stop")
    def stop(session: Session) -> int:
        """Stop it."""
        from controller import tracker as server
        from controller.home import Home

        stopped = server.stop(Home.find())
        session.answer({"stopped": stopped}, "stopped" if stopped else "no tracker was running")
        return exits.GOOD


def show(session: Session) -> int:
    from controller import tracker as server
    from controller.home import Home

    report = server.status(Home.find())
    _answer(session, report)
    return exits.GOOD if report.running else exits.FAILED


def _answer(session: Session, report: TrackerReport) -> None:
    document: dict[str, Any] = {"tracker": report}
    session.answer(document, *(() if session.as_json else _parts(report)))


def _parts(report: TrackerReport) -> list[RenderableType]:
    from controller.cli.tables import table

    if not report.running:
        return [f"no tracker runs; `fleet tracker start` starts one (log: {report.log})"]
    parts: list[RenderableType] = [f"running on {report.host}:{report.port} (process {report.pid}, log {report.log})"]
    if report.devices:
        parts.append(table(["key", "address", "device"], [[d.key, d.address, d.device] for d in report.devices]))
    if report.keys:
        rows = [[key.key, str(key.free), str(key.waiting)] for key in report.keys]
        parts.append(table(["key", "free", "waiting"], rows, right=("free", "waiting")))
    return parts
