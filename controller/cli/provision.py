"""``fleet provision``"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import complete, exits
from controller.cli.inventory import runtime_of
from controller.cli.session import Session, command
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.provision.operation import ProvisionReport

_GOOD = ("provisioned", "updated", "removed", "unchanged", "good")


def register(app: typer.Typer) -> None:
    @command(app, "provision", selects=True)
    def provision(
        session: Session,
        names: Annotated[
            list[str] | None, typer.Argument(metavar="[DEVICE]…", autocompletion=complete.devices, show_default=False)
        ] = None,
        update: Annotated[bool, typer.Option("--update", help="Only replace the agent.")] = False,
        check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if a board differs.")] = False,
        remove: Annotated[bool, typer.Option("--remove", help="Take the agent off; its data stay.")] = False,
        data: Annotated[bool, typer.Option("--data", help="With --remove: delete its data, too.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be changed.")] = False,
        runtime: Annotated[
            str, typer.Option(metavar="own|pypi|none", help="TVM's runtime on the boards: built here, or PyPI's TVM.")
        ] = "own",
        deadline: Annotated[
            int, typer.Option(min=0, metavar="S", help="Seconds in which a new agent has to be up (60).")
        ] = 0,
    ) -> int:
        """Turn bare boards into devices, with Ansible over SSH; again: change only what differs."""
        if update + check + remove > 1:
            raise FleetError("--update, --check and --remove exclude one another", code="usage")
        if data and not remove:
            raise FleetError("--data goes with --remove", code="usage")
        from controller.cli.view import view
        from controller.provision.operation import ProvisionOptions
        from controller.provision.operation import provision as work

        options = ProvisionOptions(
            playbook="update" if update else "check" if check else "remove" if remove else "provision",
            dry_run=dry_run,
            runtime=runtime_of(runtime),
            remove_data=data,
            deadline=deadline,
        )
        session = replace(session, devices=(*session.devices, *(names or ())))
        fleet = session.fleet()
        selection = session.select(fleet)
        from controller.cli.running import run

        with view("fleet provision", selection) as listener:
            fleet.listener = listener
            reports = run(work(fleet, selection, options))
        session.answer({"results": reports}, *(() if session.as_json else _parts(reports)))
        good = all(r.status in _GOOD or (dry_run and r.status == "would-change") for r in reports)
        return exits.GOOD if good else exits.FAILED


def _parts(reports: Sequence[ProvisionReport]) -> list[RenderableType]:
    from controller.cli.tables import Cell, board, table, word
    from controller.tui.figures import duration

    columns = ["device", "target", "status", "changes", "agent", "took", "reason"]
    rows: list[list[Cell]] = [
        [
            board(r.device, r.simulated),
            r.target,
            word(r.status),
            str(len(r.changes)),
            r.agent,
            duration(r.seconds),
            r.reason,
        ]
        for r in reports
    ]
    parts: list[RenderableType] = [table(columns, rows, right=("changes", "took"))]
    for report in reports:
        if report.status == "would-change":
            parts += [f"{report.device}: would change: {change}" for change in report.changes]
        parts += [f"{report.device}: {note}" for note in report.notes]
    for hint in dict.fromkeys(r.hint for r in reports if r.hint):
        parts.append(f"next: {hint}")
    return parts
