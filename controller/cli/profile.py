"""``fleet profile``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, build_options, command
from controller.cli.view import run_viewed
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from controller.reports import OperatorReport, ProfileReport

#: Characters of the longest bar.
_BAR = 12
#: Share of the device's CPU that others may take before the figures are called into question.
_MOST_OTHER_LOAD = 0.25


def register(app: typer.Typer) -> None:
    @command(app, "profile", selects=True)
    def profile(
        session: Session,
        model: arguments.OptionalModel = None,
        top: Annotated[int, typer.Option(min=1, metavar="N", help="Show the N operators that take most.")] = 15,
        output: Annotated[
            str, typer.Option("-o", "--output", metavar="FILE.svg", help="Draw all operators; one file a profile.")
        ] = "",
        seconds: Annotated[float, typer.Option(min=0.1, max=60, metavar="S", help="Measure about so long.")] = 2.0,
        slot: arguments.Slot = "default",
        weights: arguments.Weights = "",
        option: arguments.BuildOption = None,
        threads: arguments.Threads = 0,
        jobs: arguments.Jobs = 0,
        scheduler: arguments.Scheduler = "",
        wait: arguments.Wait = 600.0,
    ) -> int:
        """Time each operator on the devices, against the peak that each machine reaches, and say what to work on."""
        from controller.options import ProfileOptions

        if output and Path(output).suffix != ".svg":
            raise FleetError(f"--output {output}: profiles are drawn as .svg", code="usage", hint="such as -o net.svg")
        options = ProfileOptions(
            seconds=seconds,
            slot=slot,
            weights=weights,
            options=build_options(option or ()),
            threads=threads,
            jobs=jobs,
            scheduler=scheduler,
            lease_wait=wait,
        )
        fleet = session.fleet()
        selection = session.select(fleet)
        found = run_viewed("fleet profile", fleet, selection, lambda: fleet.profile(model, selection, options))
        written = _draw(found, Path(output)) if output else []
        parts = [] if session.as_json else [part for report in found for part in tables(report, top)]
        session.answer({"profiles": found}, *parts, *(f"drawn to {path}" for path in written))
        return exits.FAILED if any(report.error for report in found) else exits.GOOD


def _draw(reports: Sequence[ProfileReport], path: Path) -> list[Path]:
    """Write each profile's picture; several get names of their own."""
    from controller.profile_picture import picture
    from targets.files import disk_errors, write_atomic

    written: list[Path] = []
    drawn = [report for report in reports if not report.error]
    for report in drawn:
        name = path
        if len(drawn) > 1:
            stem = f"{path.stem}-{report.device}"
            again = sum(one.device == report.device for one in drawn[: len(written)])
            name = path.with_name(f"{stem}{f'-{again + 1}' if again else ''}{path.suffix}")
        with disk_errors(str(name)):
            write_atomic(name, picture(report).encode())
        written.append(name)
    return written


def tables(report: ProfileReport, top: int) -> list[RenderableType]:
    """One profile for people: what was measured, the ``top`` operators by time, and what to work on."""
    from rich.text import Text

    from controller.cli.tables import board, short
    from controller.printable import printable
    from controller.tui.figures import milliseconds

    head = f"{report.model} on {board(report.device, report.simulated)}" if report.model else report.device
    if report.error:
        return [Text.assemble((printable(head), "bold"), ": ", (printable(report.error), "red")), ""]
    facts = (
        f"{report.target}, bundle {short(report.bundle)}, {report.threads} threads: "
        f"{milliseconds(report.query_ms)} ms a query (median of {report.queries}); measured peak "
        f"{report.peak_gflops:.0f} GFLOP/s, memory {report.memory_gbytes_per_second:.1f} GB/s"
    )
    parts: list[RenderableType] = [Text(printable(head), style="bold"), facts, "", _table(report, top), ""]
    if report.other_load > _MOST_OTHER_LOAD:
        words = f"Others took {report.other_load:.0%} of this device's CPU meanwhile: measure again when it is idle."
        parts.append(Text(words, style="yellow"))
    return [*parts, *([report.advice] if report.advice else []), ""]


def _table(report: ProfileReport, top: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from controller.tui.figures import milliseconds

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in ("#", "operators", "output", "kernel"):
        # Words give way when the terminal is narrow; figures do not.
        table.add_column(column, justify="right" if column == "#" else "left", no_wrap=column == "#", ratio=None)
    for column in ("ms", "share", "", "GFLOP/s", "of peak", "GB/s"):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    numbered = sorted(enumerate(report.operators, 1), key=lambda pair: -pair[1].ms)
    longest = max((one.share for one in report.operators), default=0.0) or 1.0
    for number, one in numbered[:top]:
        table.add_row(str(number), *_words(one), *_figures(one, longest))
    rest = [one for _, one in numbered[top:]]
    if rest:
        spent, share = sum(one.ms for one in rest), sum(one.share for one in rest)
        table.add_row("", f"{len(rest)} others", "", "", milliseconds(spent), f"{share:.1%}")
    spent, share = sum(one.ms for one in report.operators), sum(one.share for one in report.operators)
    table.add_row("", "between operators", "", "", milliseconds(report.between_ms), f"{1 - share:.1%}")
    gflops = sum(one.flops for one in report.operators) / (report.query_ms * 1e6) if report.query_ms else 0.0
    total = [milliseconds(spent + report.between_ms), "100.0%", "", f"{gflops:.0f}"]
    total.append(f"{gflops / report.peak_gflops:.0%}")
    table.add_row("", *(Text(cell, style="bold") for cell in ("together", "", "", *total)))
    return table


def _words(one: OperatorReport) -> list[Text]:
    """Operators, shape and kernel, each on one line that is cut where there is no room."""
    from rich.text import Text

    from controller.printable import printable
    from controller.roofline import shape, title

    kernel = f"{one.kernel}: {one.choice}" if one.choice else one.kernel
    return [Text(printable(cell), no_wrap=True, overflow="ellipsis") for cell in (title(one), shape(one), kernel)]


def _figures(one: OperatorReport, longest: float) -> list[str | Text]:
    from rich.text import Text

    from controller.tui.figures import bar, milliseconds

    style = "" if one.bound != "compute" else next(s for least, s in _STYLES if one.peak_share >= least)
    done, _ = bar(one.share / longest, _BAR)
    return [
        milliseconds(one.ms),
        f"{one.share:.1%}",
        Text(done, style=style),
        f"{one.gflops:.0f}" if one.flops else "—",
        Text(f"{one.peak_share:.0%}", style=style) if one.flops else "—",
        f"{one.gbytes_per_second:.1f}",
    ]


#: From which share of the peak on which colour.
_STYLES = ((0.5, "green"), (0.25, "yellow"), (0.0, "red"))
