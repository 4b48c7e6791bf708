"""``fleet bench``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from controller.cli import arguments, complete, exits
from controller.cli.results import comparison_lines, open_results
from controller.cli.session import Session, build_options, command
from controller.cli.view import run_viewed
from targets import defaults
from targets.base import FleetError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.protocol import BenchProtocol, RunResult
    from controller.compare import Comparison
    from controller.reports import EngineComparison, RunReport, Sweep


def register(app: typer.Typer) -> None:
    @command(app, "bench", selects=True)
    def bench(
        session: Session,
        model: arguments.OptionalModel = None,
        ab: Annotated[
            tuple[str, str] | None,
            typer.Option("--ab", metavar="A B", help="Measure two models, files or bundles in turn, block by block."),
        ] = None,
        batch: Annotated[str, typer.Option(metavar="1,4,8", help="Batch sizes to build and measure.")] = "",
        engine: Annotated[
            str, typer.Option(metavar="A,B|all", help="Engines of the target to build for and measure in turn.")
        ] = "",
        protocol: Annotated[
            str, typer.Option(metavar="P", help="fleet, or notebook: 50 to warm up, then the mean of 100.")
        ] = "fleet",
        output: Annotated[
            str, typer.Option("-o", "--output", metavar="FILE.svg", help="Draw throughput by batch size.")
        ] = "",
        baseline: Annotated[
            str,
            typer.Option(metavar="RUN", help="Exit 1 if slower than this run.", autocompletion=complete.runs),
        ] = "",
        min_duration: Annotated[
            float, typer.Option(min=0, metavar="S", help="Measure at least so long.")
        ] = defaults.BENCH_MIN_DURATION,
        percentile: Annotated[
            float, typer.Option(metavar="P", help="Take enough queries for this percentile: 90 or 99, say.")
        ] = defaults.BENCH_PERCENTILE,
        max_other_load: Annotated[
            float, typer.Option(min=0, max=1, metavar="SHARE", help="Other load that makes a run INVALID.")
        ] = defaults.BENCH_MAX_OTHER_LOAD,
        strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a run is INVALID.")] = False,
        keep: Annotated[bool, typer.Option("--keep", help="Leave results on the devices too.")] = False,
        slot: arguments.Slot = "default",
        weights: arguments.Weights = "",
        option: arguments.BuildOption = None,
        threads: arguments.Threads = 0,
        jobs: arguments.Jobs = 0,
        scheduler: arguments.Scheduler = "",
        wait: arguments.Wait = 600.0,
    ) -> int:
        """Measure on the devices: live view, stored results, a verdict on each."""
        from agent.protocol import BenchSpec
        from controller.options import BenchOptions

        if ab is not None and model is not None:
            raise FleetError("--ab names both models", code="usage", hint=f"leave out {model}")
        batches = _batches(batch)
        _check(model, ab, engine, output, batches)
        options = BenchOptions(
            spec=BenchSpec(
                min_duration=min_duration,
                percentile=_percentile(percentile),
                max_other_load=max_other_load,
                warmup_max=defaults.BENCH_WARMUP_MAX,
                threads=threads,
                protocol=_protocol(protocol, ab),
            ),
            ab=ab,
            batches=batches,
            engines=tuple(name.strip() for name in engine.split(",")) if engine else (),
            slot=slot,
            keep=keep,
            weights=weights,
            options=build_options(option or ()),
            threads=threads,
            jobs=jobs,
            scheduler=scheduler,
            lease_wait=wait,
        )
        fleet = session.fleet()
        selection = session.select(fleet)
        if baseline:
            # Better now than after minutes of measuring.
            from controller.compare import check_protocol

            check_protocol(open_results().get(baseline), options.spec.protocol)
        if model is None or not engine:
            found = run_viewed("fleet bench", fleet, selection, lambda: fleet.bench(model, selection, options))
            return _answer(session, found, baseline, strict, output=output)
        found, engines = run_viewed(
            "fleet bench", fleet, selection, lambda: fleet.compare_engines(model, selection, options)
        )
        return _answer(session, found, baseline, strict, engines=engines)


def _answer(
    session: Session,
    found: Sequence[RunResult | RunReport],
    baseline: str,
    strict: bool,
    *,
    engines: Sequence[EngineComparison] = (),
    output: str = "",
) -> int:
    from controller.reports import RunReport
    from controller.results import report
    from controller.sweep import sweeps

    reports = [one if isinstance(one, RunReport) else report(one) for one in found]
    # Engines are compared in their own table.
    comparisons = _comparisons([] if engines else found, baseline)
    swept = [] if engines else sweeps(reports)
    drawn = _draw(swept, output) if output else ""
    document = {"comparisons": comparisons, "engines": engines, "sweeps": swept}
    session.answer(
        {"runs": reports, **{name: value for name, value in document.items() if value}},
        *(() if session.as_json else _shown(reports, engines, swept)),
        *(line for comparison in comparisons for line in comparison_lines(comparison)),
        *([drawn] if drawn else []),
    )
    failed = (
        any(one.failed for one in reports) if not engines else not any(one.run for e in engines for one in e.engines)
    )
    invalid = strict and any(one.verdict != "VALID" for one in reports)
    slower = bool(baseline) and any(one.verdict == "slower" and not one.paired for one in comparisons)
    return exits.FAILED if failed or invalid or slower else exits.GOOD


def _comparisons(found: Sequence[RunResult | RunReport], baseline: str) -> list[Comparison]:
    """Each run against the baseline, and interleaved ones with one another."""
    from agent.protocol import RunResult
    from controller.compare import compare_runs

    runs = [one for one in found if isinstance(one, RunResult)]
    pairs = [(baseline, one.run) for one in runs] if baseline else []
    pairs += [
        (one.run, two.run) for i, one in enumerate(runs) for two in runs[i + 1 :] if two.interleaved_with == one.run
    ]
    if not pairs:
        return []
    results = open_results()
    return [compare_runs(results, a, b) for a, b in pairs]


def _shown(
    reports: Sequence[RunReport], engines: Sequence[EngineComparison], swept: Sequence[Sweep]
) -> list[RenderableType]:
    """Runs, and what they are beside one another. With several engines the baseline has many, which nobody reads."""
    if not engines and not swept:
        return tables(reports)
    from controller.cli.compared import engine_tables, sweep_tables

    parts: list[RenderableType] = [] if engines else [*tables(reports), ""]
    for found in (*(engine_tables(one) for one in engines), *(sweep_tables(one) for one in swept)):
        parts += [*found, ""]
    return parts[:-1]


def _draw(swept: Sequence[Sweep], output: str) -> str:
    """Words on where the picture of all sweeps is."""
    if not swept:
        return f"{output} was not drawn: no network was measured with several batch sizes"
    from controller.sweep_picture import picture
    from targets.files import disk_errors, write_atomic

    with disk_errors(output):
        write_atomic(Path(output), picture(swept).encode())
    return f"drawn to {output}"


def _check(model: str | None, ab: tuple[str, str] | None, engine: str, output: str, batches: Sequence[int]) -> None:
    """Raises FleetError ``usage`` for options that do not go together."""
    if engine and model is None:
        raise FleetError("--engine builds a model for each engine: name the model", code="usage")
    if output and Path(output).suffix != ".svg":
        raise FleetError(f"--output {output}: sweeps are drawn as .svg", code="usage", hint="such as -o sweep.svg")
    if output and (engine or len(set(batches)) < 2):
        raise FleetError("--output draws throughput by batch size", code="usage", hint="give several: --batch 1,4,8")


def _protocol(name: str, ab: tuple[str, str] | None) -> BenchProtocol:
    from agent.protocol import BenchProtocol

    for known in get_args(BenchProtocol):
        if name == known == "notebook" and ab is not None:
            raise FleetError(
                "--ab measures in turn, and the notebooks' protocol one after the other",
                code="usage",
                hint="leave out one of them",
            )
        if name == known:
            protocol: BenchProtocol = known
            return protocol
    raise FleetError(f"--protocol {name}: there is none", code="usage", hint=" or ".join(get_args(BenchProtocol)))


def _percentile(value: float) -> float:
    if not 0 < value < 100:
        raise FleetError(f"--percentile {value:g}: not between 0 and 100", code="usage", hint="such as 90 or 99")
    return value


def _batches(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise FleetError(f"--batch {text}: expected whole numbers from 1", code="usage", hint="such as --batch 1,4,8")
    return sizes


_FIGURES = ("batch", "mean ms", "p50 ms", "p90 ms", "p99 ms", "items/s", "queries")


def tables(reports: Sequence[RunReport]) -> list[RenderableType]:
    """Runs as a table; latencies in milliseconds."""
    from controller.cli.sensed import sensor_tables
    from controller.cli.tables import Cell, board, latency, short, table, word
    from controller.tui.figures import rate

    # Only where there is another than the usual one.
    others = any(r.protocol != "fleet" for r in reports)
    columns = ["run", "device", "target", "model", "bundle", "batch", "verdict"]
    columns += ["protocol", "mean ms"] if others else []
    columns += ["p50 ms", "p90 ms", "p99 ms", "items/s", "queries", "reason"]
    rows: list[list[Cell]] = [
        [
            short(r.id),
            board(r.device, r.simulated),
            r.target,
            r.model,
            short(r.bundle),
            str(r.batch),
            word("failed" if r.failed else r.verdict),
            *([r.protocol, latency(r.latency_ms, "mean")] if others else []),
            latency(r.latency_ms, "p50"),
            latency(r.latency_ms, "p90"),
            latency(r.latency_ms, "p99"),
            rate(r.throughput) if r.throughput else "—",
            str(r.samples),
            r.reason,
        ]
        for r in reports
    ]
    parts: list[RenderableType] = [table(columns, rows, right=_FIGURES), *sensor_tables(reports)]
    counted = [report for report in reports if report.counters]
    return [*parts, "", _counters(counted)] if counted else parts


#: What accelerators count, by the names in ``counters``, as columns of a table; the rest is in the JSON document.
_COUNTERS = {
    "predicted_ms": "predicted ms",
    "accelerator_ms": "accelerator ms",
    "cycles": "cycles",
    "gemm_counter": "gemm",
    "alu_counter": "alu",
    "bytes_moved": "bytes moved",
}


def _counters(reports: Sequence[RunReport]) -> RenderableType:
    """What the accelerator did for one query, and what its model predicts for the board, beside what was measured."""
    from controller.cli.tables import Cell, board, latency, short, table

    shown = {name: title for name, title in _COUNTERS.items() if any(name in report.counters for report in reports)}
    rows: list[list[Cell]] = [
        [
            short(report.id),
            board(report.device, report.simulated),
            report.model,
            latency(report.latency_ms, "p50"),
            *(_counter(report.counters.get(name), name) for name in shown),
        ]
        for report in reports
    ]
    columns = ["run", "device", "model", "p50 ms", *shown.values()]
    return table(columns, rows, right=columns[3:])


def _counter(value: float | None, name: str) -> str:
    from controller.tui.figures import milliseconds

    if value is None:
        return "—"
    return milliseconds(value) if name.endswith("_ms") else f"{value:,.0f}"
