"""``fleet eval``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, command
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.reports import EvalReport

#: Categories in the table, the worst first; the JSON document has all.
_SHOWN = 100


def register(app: typer.Typer) -> None:
    @command(app, "eval", selects=True)
    def evaluate(
        session: Session,
        model: arguments.Model,
        dataset: Annotated[
            str, typer.Argument(metavar="DATASET", help="A COCO file or folder, a VOC folder, or a folder per class.")
        ],
        limit: Annotated[int, typer.Option(min=0, metavar="N", help="Only the first N pictures; 0 for all.")] = 0,
        fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on after a cut.")] = False,
        classes: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="The category of each of the model's classes: one a line, or JSON."),
        ] = None,
        images: Annotated[
            Path | None, typer.Option(metavar="FOLDER", help="Where the pictures of a COCO file are.")
        ] = None,
        skip_bad: Annotated[
            bool, typer.Option("--skip-bad", help="Leave out pictures that are missing or damaged.")
        ] = False,
        output: Annotated[
            str, typer.Option("-o", "--output", metavar="FILE", help="Draw what is taken for what.")
        ] = "",
        metric: Annotated[
            str, typer.Option(metavar="NAME", help="The figure that counts: mAP, AP50, mAP50_11, top5, …")
        ] = "",
        baseline: Annotated[
            str,
            typer.Option(
                metavar="ID|DEVICE|TARGET", help="Compare with this result, or with the newest of a device or target."
            ),
        ] = "",
        max_drop: Annotated[
            float | None,
            typer.Option(min=0, max=1, metavar="X", help="Exit 1 if the figure is lower than the baseline's by more."),
        ] = None,
        threshold: Annotated[
            float | None,
            typer.Option(min=0, max=1, help="Lowest score of a detection that takes part (0.01, or the model's)."),
        ] = None,
        annotated: Annotated[
            bool, typer.Option("--annotated", help="Leave out pictures without any annotation.")
        ] = False,
        slot: arguments.Slot = "default",
        threads: arguments.Threads = 0,
        wait: arguments.Wait = 600.0,
    ) -> int:
        """Measure a deployed model's accuracy: mAP, or top-1 and top-5. Goes on where it was cut off."""
        from controller.cli.deployed import any_with, model_name
        from controller.cli.running import run
        from controller.cli.view import run_viewed
        from controller.options import EvalOptions

        if max_drop is not None and not baseline:
            raise FleetError("--max-drop needs a --baseline to fall from", code="usage")
        options = EvalOptions(
            limit=limit,
            fresh=fresh,
            classes=classes,
            images=images,
            skip_bad=skip_bad,
            metric=metric,
            baseline=baseline,
            confusion=output,
            threshold=threshold,
            annotated=annotated,
            slot=slot,
            threads=threads,
            lease_wait=wait,
        )
        fleet = session.fleet()
        name = model_name(model)
        selection = session.select(fleet) if session.selects else [run(any_with(fleet, name))]
        found = run_viewed("fleet eval", fleet, selection, lambda: fleet.eval(name, dataset, selection, options))
        return _answer(session, found, max_drop)


def _answer(session: Session, found: Sequence[EvalReport], max_drop: float | None) -> int:
    if session.as_json:
        session.answer({"results": found})
    else:
        session.answer({}, *tables(found), *(part for report in found for part in details(report)))
    # What the others are compared with need not be compared itself.
    bases = {report.baseline_id for report in found}
    failed = any(report.error for report in found) or (
        max_drop is not None and any(_dropped(report, max_drop) for report in found if report.id not in bases)
    )
    return exits.FAILED if failed else exits.GOOD


def _dropped(report: EvalReport, most: float) -> bool:
    """Whether it fell by more, or nobody knows."""
    # Shares are sums of floats: a fall of just so much is none by more.
    return report.value is None or report.baseline is None or report.baseline - report.value > most + 1e-12


def tables(reports: Sequence[EvalReport]) -> list[RenderableType]:
    """Results as a table, one a row."""
    from controller.cli.tables import Cell, board, short, table

    compared = any(report.baseline_id for report in reports)
    columns = ["result", "device", "target", "model", "bundle", "data set", "pictures", "metric", "value"]
    columns += [*(["baseline", "difference"] if compared else []), "reason"]
    rows: list[list[Cell]] = []
    for one in reports:
        compare = [_share(one.baseline), _difference(one.value, one.baseline)] if compared else []
        rows.append(
            [
                short(one.id),
                board(one.device, one.simulated),
                one.target,
                one.model,
                short(one.bundle),
                Path(one.dataset).name,
                str(one.images),
                one.metric,
                _share(one.value),
                *compare,
                one.error,
            ]
        )
    return [table(columns, rows, right=("pictures", "value", "baseline", "difference"))]


def details(report: EvalReport) -> list[RenderableType]:
    """All figures of one result, and those of each category, the worst first."""
    from controller.cli.tables import Cell, board, table

    if report.error:
        return []
    parts: list[RenderableType] = ["", f"{report.model} on {board(report.device, report.simulated)}:"]
    values: list[list[Cell]] = []
    for name, value in report.metrics.items():
        base = report.baseline_metrics.get(name)
        compare = [_share(base), _difference(value, base)] if report.baseline_id else []
        values.append([name, _share(value), *compare])
    compared = ["baseline", "difference"] if report.baseline_id else []
    parts.append(table(["figure", "value", *compared], values, right=("value", *compared)))
    if report.classes:
        parts += ["", _classes(report)]
    if len(report.classes) > _SHOWN:
        parts.append(f"{len(report.classes) - _SHOWN} better categories are not shown; --json has them")
    if report.skipped:
        parts.append(f"{report.skipped} pictures were left out: missing or damaged")
    parts += [f"note: {note}" for note in report.notes]
    if report.images_per_second:
        before = f"; {report.resumed} pictures were done before" if report.resumed else ""
        parts.append(f"{report.images_per_second:.1f} pictures a second{before}")
    if report.confusion:
        parts.append(f"what is taken for what: {report.confusion}")
    return parts


def _classes(report: EvalReport) -> RenderableType:
    from controller.cli.tables import Cell, table

    names = list(report.classes[0].metrics)
    first = names[0]
    worst = sorted(report.classes, key=lambda one: (value := one.metrics.get(first)) is None or value)
    compared = [f"{first} before", "difference"] if report.baseline_id else []
    rows: list[list[Cell]] = []
    for one in worst[:_SHOWN]:
        base = one.baseline.get(first)
        compare = [_share(base), _difference(one.metrics.get(first), base)] if compared else []
        rows.append([one.name, str(one.truth), *(_share(one.metrics.get(name)) for name in names), *compare])
    columns = ["category", "truth", *names, *compared]
    return table(columns, rows, right=columns[1:])


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"


def _difference(value: float | None, base: float | None) -> str:
    return "—" if value is None or base is None else f"{value - base:+.4f}"
