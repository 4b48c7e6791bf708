"""``fleet results``"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import complete, exits
from controller.cli.session import Session, command, default, print_data
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.compare import Comparison
    from controller.export import Format
    from controller.reports import EvalReport
    from controller.results import Results, StoredRun

_Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.", autocompletion=complete.runs)]
_Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="M", help="Only this model (repeatable).", autocompletion=complete.models),
]
_Limit = Annotated[int, typer.Option("--limit", "-n", min=0, help="How many, the newest first; 0 for all.")]
_HELP = "What was measured: list, show, compare, export."


def register(app: typer.Typer) -> None:
    results = typer.Typer(help=_HELP)
    app.add_typer(results, name="results")

    @default(results, selects=True)
    def plain(session: Session) -> int:
        """What was measured: list, show, compare, export."""
        return _list(session, (), "", 20)

    @command(results, "list", selects=True)
    def list_(
        session: Session,
        model: _Models = None,
        verdict: Annotated[str, typer.Option(metavar="V", help="VALID or INVALID.")] = "",
        limit: _Limit = 20,
    ) -> int:
        """List runs, the newest first."""
        return _list(session, model or (), verdict.upper(), limit)

    @command(results, "show")
    def show(session: Session, run: _Run) -> int:
        """Everything about one run: statistics, conditions, versions; or about one accuracy."""
        return _show(session, run)

    @command(results, "compare")
    def compare(
        session: Session,
        a: _Run,
        b: Annotated[str, typer.Argument(metavar="RUN", help="The other.", autocompletion=complete.runs)],
    ) -> int:
        """Whether the second run is faster or slower than the first, or cannot be told apart from it."""
        from controller.compare import compare_runs

        found = compare_runs(open_results(), a, b)
        session.answer({"comparison": found}, *comparison_lines(found))
        return exits.GOOD

    @command(results, "export", selects=True)
    def export(
        session: Session,
        output: Annotated[
            Path | None, typer.Option("-o", "--output", metavar="FILE", help="Standard output if left out.")
        ] = None,
        form: Annotated[
            str, typer.Option("--format", metavar="F", help="csv, json, jsonl or md; by the file's name if left out.")
        ] = "",
        model: _Models = None,
        samples: Annotated[bool, typer.Option("--samples", help="With every single latency.")] = False,
        limit: _Limit = 0,
        force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    ) -> int:
        """Write runs for other programs and for people."""
        from controller.export import export as write_runs

        store = open_results()
        chosen = _format(form, output, session)
        runs = _select(session, store, model or (), "", limit)
        text = io.StringIO()
        write_runs(runs, chosen, text, samples=store.samples if samples else None)
        if output is None:
            print_data(text.getvalue().encode())
            return exits.GOOD
        _write(output, text.getvalue(), force)
        session.answer(
            {"output": str(output), "format": chosen, "runs": len(runs)}, f"wrote {len(runs)} runs to {output}"
        )
        return exits.GOOD


def _format(given: str, output: Path | None, session: Session) -> Format:
    """The format asked for, else the one of the file's name. Raises FleetError."""
    from controller.export import FORMATS

    if session.as_json and output is None:
        if given not in ("", "json"):
            raise FleetError(f"--json and --format {given} exclude one another", code="usage", hint="use -o FILE")
        return "json"
    name = given or (output.suffix.removeprefix(".") if output is not None else "") or "csv"
    for known in FORMATS:
        if name == known:
            return known
    raise FleetError(f"'{name}' is no format to export to", code="usage", hint=f"--format takes {', '.join(FORMATS)}")


def _write(path: Path, text: str, force: bool) -> None:
    """Write a file whole or not at all. Raises FleetError when it is there, or cannot be."""
    from targets.files import write_atomic

    try:
        write_atomic(path, text.encode(), mode=0o644, replace=force)
    except FileExistsError:
        raise FleetError(f"{path} exists", code="exists", hint="--force replaces it") from None
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}", code="usage") from None


def open_results() -> Results:
    from controller.home import Home
    from controller.results import Results

    return Results(Home.find().results_url)


def _select(
    session: Session, results: Results, models: Sequence[str], verdict: str, limit: int, *, required: bool = True
) -> list[StoredRun]:
    """Runs as the options ask. Raises FleetError ``nothing-matched`` when conditions were given and none fits."""
    if session.labels:
        raise FleetError("results have no labels", code="usage", hint="use --device, --target or --model")
    if verdict not in ("", "VALID", "INVALID"):
        raise FleetError(f"--verdict {verdict}: expected VALID or INVALID", code="usage")
    found = results.list(devices=session.devices, targets=session.targets, models=models, verdict=verdict, limit=limit)
    if required and not found and (session.devices or session.targets or models or verdict):
        raise FleetError("no run matches", code="nothing-matched", hint="`fleet results list` shows what there is")
    return found


def _list(session: Session, models: Sequence[str], verdict: str, limit: int) -> int:
    store = open_results()
    limit = 0 if session.everything else limit
    # Accuracies have no verdict.
    accuracies = [] if verdict else _accuracies(session, store, models, limit)
    runs = _select(session, store, models, verdict, limit, required=not accuracies)
    if session.as_json:
        session.answer({"runs": runs, "evaluations": accuracies})
        return exits.GOOD
    from controller.cli.bench import tables
    from controller.cli.eval import tables as accuracy_tables

    parts = [
        *(tables(runs) if runs else []),
        *([""] if runs and accuracies else []),
        *(accuracy_tables(accuracies) if accuracies else []),
    ]
    session.answer({}, *(parts or ["no results yet; `fleet bench --all` makes some"]))
    return exits.GOOD


def _accuracies(session: Session, results: Results, models: Sequence[str], limit: int) -> list[EvalReport]:
    from controller.evaluation.store import Evaluations

    return Evaluations(results).list(devices=session.devices, targets=session.targets, models=models, limit=limit)


def _show(session: Session, run: str) -> int:
    from controller.evaluation.store import Evaluations

    store = open_results()
    try:
        found = store.get(run)
    except FleetError as error:
        if error.code != "unknown-run":
            raise
        from controller.cli.eval import details, tables

        accuracy = Evaluations(store).get(run)
        parts = [] if session.as_json else [*tables([accuracy]), *details(accuracy)]
        session.answer({"evaluations": [accuracy]}, *parts)
        return exits.GOOD
    session.answer({"runs": [found]}, *(() if session.as_json else _details(found)))
    return exits.GOOD


def comparison_lines(found: Comparison) -> list[RenderableType]:
    return [found.words, *(f"  note: {caveat}" for caveat in found.caveats)]


def _details(run: StoredRun) -> list[RenderableType]:
    import time

    from controller.cli.bench import tables
    from controller.tui.figures import milliseconds

    parts = tables([run])
    parts.append(f"id          {run.id}")
    parts.append(f"bundle      {run.bundle}")
    parts.append(f"origin      {run.origin or '—'}")
    parts.append(f"started     {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(run.started_at))}")
    parts.append(f"engine      {run.engine}, agent {run.agent_version or '—'}, commit {run.commit or '—'}")
    if run.protocol != "fleet":
        parts.append(f"protocol    {run.protocol}")
    if run.interleaved_with:
        parts.append(f"interleaved with {run.interleaved_with}")
    stats = run.latency_ms
    if stats is not None:
        figures = ", ".join(f"{name} {milliseconds(getattr(stats, name))}" for name in ("mean", "std", "min", "max"))
        low, high = stats.ci50
        parts.append(f"latency ms  {figures}, median within {milliseconds(low)} to {milliseconds(high)} (95 %)")
    for title, values in (("conditions", run.conditions), ("versions", run.versions), ("counters", run.counters)):
        if values:
            parts.append(f"{title}:")
            parts += [f"  {key} = {_plain(value)}" for key, value in sorted(values.items())]
    return parts


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
