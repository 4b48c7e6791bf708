"""``fleet tune``"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, build_options, command
from controller.cli.view import run_viewed
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.reports import TunedLayer, TuneReport

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def register(app: typer.Typer) -> None:
    @command(app, "tune", selects=True)
    def tune(
        session: Session,
        model: arguments.Model,
        budget: Annotated[str, typer.Option(metavar="TIME", help="Measure so long: 90s, 10m, 2h; 0 for all.")] = "10m",
        trials: Annotated[int, typer.Option(min=0, metavar="N", help="Measure at most N times; 0 for any number.")] = 0,
        output: Annotated[
            str, typer.Option("-o", "--output", metavar="FILE", help="Keep what is found there, not where builds look.")
        ] = "",
        fresh: Annotated[bool, typer.Option("--fresh", help="Forget what was measured before.")] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="List what there is to choose; measure nothing.")
        ] = False,
        weights: arguments.Weights = "",
        option: arguments.BuildOption = None,
        wait: arguments.Wait = 600.0,
    ) -> int:
        """Race a model's kernels against the defaults on one device; later builds use what beats them there.

        Ctrl-C keeps what was measured, and the same command goes on from there.
        """
        from controller.options import TuneOptions

        options = TuneOptions(
            trials=trials,
            seconds=seconds(budget),
            fresh=fresh,
            output=output,
            dry_run=dry_run,
            weights=weights,
            options=build_options(option or ()),
            lease_wait=wait,
        )
        fleet = session.fleet()
        selection = session.select(fleet)
        if len(selection) != 1:
            raise FleetError(
                f"{len(selection)} devices are selected, and kernels are tuned on one",
                code="usage",
                hint="name it: --device NAME",
            )
        report = run_viewed("fleet tune", fleet, selection, lambda: fleet.tune(model, selection[0], options))
        session.answer({"tuning": report}, *(() if session.as_json else tables(report, dry_run)))
        return exits.GOOD


def seconds(text: str) -> float:
    """A time such as ``90``, ``90s``, ``10m`` or ``1h30m``. Raises FleetError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise FleetError(f"--budget {text}: not a time", code="usage", hint="such as 90s, 10m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def tables(report: TuneReport, dry_run: bool) -> list[RenderableType]:
    """What was found, or what there is to choose, for people."""
    from rich.text import Text

    from controller.cli.tables import board, table
    from controller.printable import printable
    from controller.tui.figures import duration

    head = Text(printable(f"{report.model} on {board(report.device, report.simulated)}"), style="bold")
    if dry_run:
        return [head, *(line for layer in report.layers for line in _choices(layer))]
    columns = ["layer", "alike", "share", "tried", "default ms", "best ms", "ratio", "kernel"]
    parts: list[RenderableType] = [head, table(columns, map(_row, report.layers), right=columns[1:7])]
    parts += [f"{layer.layer}: {failure}" for layer in report.layers for failure in layer.failures]
    tuned = sum(layer.state == "tuned" for layer in report.layers)
    open_ = sum(layer.state in ("unfinished", "untried") for layer in report.layers)
    words = f"{report.trials} races in {duration(report.seconds)}; {tuned} of {len(report.layers)} beat the default"
    parts += ["", words + (f", {open_} not finished: the same command goes on" if open_ else "")]
    return [*parts, *([f"kept in {report.file}"] if tuned else [])]


def _row(layer: TunedLayer) -> list[str]:
    from controller.tui.figures import milliseconds

    stays = {"default": "the default stays", "unfinished": "not finished", "untried": "not tried"}
    return [
        layer.layer,
        str(layer.count),
        f"{layer.share:.0%}",
        f"{layer.measured}/{len(layer.candidates) - 1}",
        "—" if layer.default_ms is None else milliseconds(layer.default_ms),
        "—" if layer.ms is None else milliseconds(layer.ms),
        "—" if layer.ms is None or not layer.default_ms else f"{layer.ms / layer.default_ms:.2f}",
        layer.best or stays[layer.state],
    ]


def _choices(layer: TunedLayer) -> list[str]:
    known = f", {layer.measured} measured" if layer.measured else ""
    head = f"{layer.layer}, {layer.count} alike, {layer.share:.0%}: {len(layer.candidates) - 1} candidates{known}"
    first, *others = layer.candidates
    return ["", head, f"  default: {first}", *(f"  {words}" for words in others)]
