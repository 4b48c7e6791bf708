"""``fleet build``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, build_options, command
from controller.cli.view import view
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.build import Built
    from controller.fleet import Fleet
    from controller.reports import BuildReport


def register(app: typer.Typer) -> None:
    @command(app, "build", selects=True)
    def build(
        session: Session,
        model: arguments.Model,
        output: Annotated[
            Path | None,
            typer.Option("-o", "--output", metavar="FILE", help="Write a .fleet file; a folder for several targets."),
        ] = None,
        weights: arguments.Weights = "",
        option: arguments.BuildOption = None,
        jobs: arguments.Jobs = 0,
        scheduler: arguments.Scheduler = "",
    ) -> int:
        """Compile a model for each target: those given, or those of the selected devices; what is cached is reused."""
        fleet = session.fleet()
        targets, simulated = _targets(session, fleet)
        if output is not None and len(targets) > 1 and output.suffix == ".fleet":
            raise FleetError(
                f"{output} can hold one target, not {', '.join(targets)}",
                code="usage",
                hint="name one --target, or a folder after -o",
            )
        with view("fleet build") as listener:
            fleet.listener = listener
            built = fleet.build(
                model,
                targets,
                weights=weights,
                options=build_options(option or ()),
                jobs=jobs,
                scheduler=scheduler,
                simulated=simulated,
            )
        if all(one.error is not None for one in built):
            # Nothing to report but why.
            raise next(one.error for one in built if one.error is not None)
        reports = [_report(model, target, one, fleet, output) for target, one in zip(targets, built, strict=True)]
        _answer(session, reports)
        return exits.FAILED if any(report.error for report in reports) else exits.GOOD


def _targets(session: Session, fleet: Fleet) -> tuple[list[str], list[str]]:
    """The targets to build for, each once, in the order given; and those of which only simulated boards are meant."""
    if session.targets and not (session.devices or session.labels or session.everything):
        from targets.base import find

        for name in session.targets:
            find(name)
        return list(dict.fromkeys(session.targets)), []
    devices = session.select(fleet)
    targets = list(dict.fromkeys(device.target for device in devices))
    real = {device.target for device in devices if not device.simulated}
    return targets, [target for target in targets if target not in real]


def _report(model: str, target: str, built: Built, fleet: Fleet, output: Path | None) -> BuildReport:
    from controller.reports import BuildReport

    manifest = built.manifest
    if manifest is None:
        error = built.error.message if built.error else "the build gave nothing"
        if built.error and built.error.hint:
            error += f" ({built.error.hint})"
        return BuildReport(
            model=model, target=target, bundle="", origin="", cached=False, seconds=built.seconds, size=0, error=error
        )
    written = "" if output is None else str(_write(built, manifest.model.name, fleet, output))
    return BuildReport(
        model=manifest.model.name,
        target=target,
        bundle=built.id,
        origin=manifest.model.origin,
        cached=built.cached,
        seconds=built.seconds,
        size=built.size,
        output=written,
        warnings=list(manifest.warnings or ()),
    )


def _write(built: Built, name: str, fleet: Fleet, output: Path) -> Path:
    """Write a signed .fleet file to ``output``, or into it if it is a folder."""
    from targets.archive import write_archive

    if output.suffix != ".fleet" or output.is_dir():
        output = output / f"{name}-{built.request.target}.fleet"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_archive(output, built.manifest_bytes, fleet.keys.sign(built.id), built.blobs)
    except OSError as error:
        raise FleetError(f"cannot write {output}: {error.strerror}", code="usage") from None
    return output


def _answer(session: Session, reports: Sequence[BuildReport]) -> None:
    if session.as_json:
        session.answer({"builds": reports})
        return
    from controller.cli.tables import Cell, short, table, word
    from controller.tui.figures import duration, size

    columns = ["model", "target", "status", "bundle", "size", "took", "written to", "reason"]
    rows: list[list[Cell]] = [
        [
            r.model,
            r.target,
            word("failed" if r.error else "cached" if r.cached else "built"),
            short(r.bundle),
            size(r.size),
            duration(r.seconds),
            r.output,
            r.error,
        ]
        for r in reports
    ]
    session.answer(
        {},
        table(columns, rows, right=("size", "took")),
        *(f"model: {origin}" for origin in sorted({r.origin for r in reports if r.origin})),
    )
