"""``fleet deploy`` and ``fleet rollback``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, build_options, command
from controller.cli.view import run_viewed

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.reports import DeployReport


def register(app: typer.Typer) -> None:
    @command(app, "deploy", selects=True)
    def deploy(
        session: Session,
        model: arguments.OptionalModel = None,
        canary: Annotated[int, typer.Option(min=0, metavar="N", help="First prove it on N devices.")] = 0,
        max_failures: Annotated[
            int | None, typer.Option(min=0, metavar="N", help="Stop when more devices than this have failed.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and compare, but change nothing.")] = False,
        latency_budget: Annotated[
            float, typer.Option(min=0, metavar="MS", help="Refuse a release whose median latency is above this.")
        ] = 0.0,
        slot: arguments.Slot = "default",
        weights: arguments.Weights = "",
        option: arguments.BuildOption = None,
        threads: arguments.Threads = 0,
        jobs: arguments.Jobs = 0,
        scheduler: arguments.Scheduler = "",
        wait: arguments.Wait = 0.0,
    ) -> int:
        """Build, push, prove and activate a model; what fails its proof is rolled back."""
        from controller.options import DeployOptions

        options = DeployOptions(
            weights=weights,
            options=build_options(option or ()),
            slot=slot,
            canary=canary,
            max_failures=max_failures,
            dry_run=dry_run,
            latency_budget_ms=latency_budget,
            threads=threads,
            jobs=jobs,
            scheduler=scheduler,
            lease_wait=wait,
        )
        fleet = session.fleet()
        selection = session.select(fleet)
        reports = run_viewed("fleet deploy", fleet, selection, lambda: fleet.deploy(model, selection, options))
        return _answer(session, reports, dry_run=dry_run)

    @command(app, "rollback", selects=True)
    def rollback(session: Session, slot: arguments.Slot = "default") -> int:
        """Go back to the release before the active one."""
        fleet = session.fleet()
        selection = session.select(fleet)
        reports = run_viewed("fleet rollback", fleet, selection, lambda: fleet.rollback(selection, slot))
        # Here the way back is what was asked for.
        return _answer(session, reports, good=("active", "unchanged", "rolled-back"))


def _answer(
    session: Session,
    reports: Sequence[DeployReport],
    *,
    good: Sequence[str] = ("active", "unchanged"),
    dry_run: bool = False,
) -> int:
    session.answer({"results": reports}, *(() if session.as_json else _tables(reports, dry_run)))
    return exits.GOOD if all(report.status in good for report in reports) else exits.FAILED


def _tables(reports: Sequence[DeployReport], dry_run: bool) -> list[RenderableType]:
    from controller.cli.tables import Cell, board, short, table, word
    from controller.tui.figures import duration, size

    columns = ["device", "target", "model", "status", "bundle", "sent", "skipped", "took", "over", "reason"]
    rows: list[list[Cell]] = [
        [
            board(r.device, r.simulated),
            r.target,
            r.model,
            word(r.status),
            short(r.bundle),
            size(r.bytes_to_send if dry_run else r.bytes_sent),
            size(r.bytes_skipped),
            duration(r.seconds),
            r.carrier,
            r.reason,
        ]
        for r in reports
    ]
    if dry_run:
        columns[columns.index("sent")] = "to send"
    parts: list[RenderableType] = [table(columns, rows, right=("sent", "to send", "skipped", "took"))]
    for origin in sorted({r.origin for r in reports if r.origin}):
        parts.append(f"model: {origin}")
    if dry_run:
        parts.append("dry run: nothing was changed")
    return parts
