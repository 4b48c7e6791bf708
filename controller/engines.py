"""Engines of a target beside one another: one build each, the baseline's speed and outputs as the measure of all.

Each engine is measured in turn with the baseline, block by block, so that what the board does meanwhile is the same for
both; by itself where the board cannot hold two, and in the notebooks' protocol, which interleaves nothing. Golden
outputs are compared before anything is timed, and an engine whose outputs are wrong gets no speed-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from agent.protocol import RunResult
from controller.inventory import Device
from controller.measure import Done, Measurement, Outcome, carry_out
from controller.options import BenchOptions
from controller.prepare import Want, jobs_for
from controller.printable import printable
from controller.reports import EngineComparison, EngineReport, RunReport
from targets.base import ComparedTarget, Engine, FleetError, find
from targets.published import Published, published

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.results import Results

ALL = "all"


@dataclass(frozen=True, slots=True)
class _Row:
    """One engine on one device, and how it is measured; ``absent`` says why it is not."""

    engine: Engine
    want: Want | None = None
    absent: str = ""


@dataclass(slots=True)
class _Table:
    """One comparison before it is measured."""

    device: Device
    batch: int
    rows: list[_Row]
    measurements: list[Measurement] = field(default_factory=list)


async def compare_engines(
    fleet: Fleet, model: str, selection: Sequence[Device], options: BenchOptions
) -> tuple[list[Outcome], list[EngineComparison]]:
    """See `Fleet.compare_engines`."""
    from controller.results import Results

    options = replace(options, spec=msgspec.structs.replace(options.spec, check=True))
    tables = [_table(fleet, model, device, batch, options) for device in selection for batch in options.batches or (0,)]
    plans = {
        device.name: [one for table in tables if table.device is device for one in table.measurements]
        for device in selection
    }
    if not any(plans.values()):
        reasons = "; ".join(f"{row.engine.words}: {row.absent}" for table in tables for row in table.rows)
        raise FleetError(f"none of the engines can be built: {reasons}", code="no-engine")
    done = await carry_out(fleet, selection, plans, options, one_model=True)

    def made() -> list[EngineComparison]:
        results = Results(fleet.home.results_url)
        try:
            return [_comparison(table, model, done, options, results) for table in tables]
        finally:
            results.close()

    comparisons = await asyncio.to_thread(made)
    return [outcome for device in selection for outcome in done.outcomes[device.name]], comparisons


def chosen(target: str, names: Sequence[str]) -> list[Engine]:
    """The engines of ``target`` that ``names`` name, in the target's order. A target without a table has one engine.

    Raises :class:`FleetError` (``unknown-engine``) for a name that none has.
    """
    known = find(target)
    engines = known.engines if isinstance(known, ComparedTarget) else ()
    if not engines:
        if set(names) != {ALL}:
            raise FleetError(
                f"boards of target '{target}' have one engine only", code="unknown-engine", hint="--engine all"
            )
        return [Engine("", "", {}, baseline=True)]
    wanted: set[int] = set()
    for name in names:
        found = [
            number
            for number, engine in enumerate(engines)
            if name in (ALL, engine.name, f"{engine.name}:{engine.precision}")
        ]
        if not found:
            offered = ", ".join(f"{engine.name}:{engine.precision}" for engine in engines)
            raise FleetError(
                f"boards of target '{target}' have no engine '{name}'",
                code="unknown-engine",
                hint=f"there are {offered}, and {ALL}",
            )
        wanted.update(found)
    return [engine for number, engine in enumerate(engines) if number in wanted]


def _table(fleet: Fleet, model: str, device: Device, batch: int, options: BenchOptions) -> _Table:
    rows = [_row(fleet, model, device, batch, engine, options) for engine in chosen(device.target, options.engines)]
    table = _Table(device, batch, rows)
    threads = options.threads or device.threads
    baseline = next((row.want for row in rows if row.engine.baseline), None)
    for row in rows:
        if row.want is None:
            continue
        alone = Measurement(options.slot, threads, (row.want,), batch)
        if baseline is None or row.want is baseline or options.spec.protocol != "fleet":
            table.measurements.append(alone)
        else:
            table.measurements.append(Measurement(options.slot, threads, (baseline, row.want), batch, alone))
    return table


def _row(fleet: Fleet, model: str, device: Device, batch: int, engine: Engine, options: BenchOptions) -> _Row:
    both = engine.options.keys() & options.options.keys()
    if both:
        raise FleetError(
            f"--engine chooses {', '.join(sorted(both))}, and so does --option",
            code="usage",
            hint="leave out one of them; --engine also takes NAME:PRECISION",
        )
    extra = {**options.options, **engine.options, **({"batch": batch} if batch else {})}
    try:
        (job,) = jobs_for(fleet, model, device, weights=options.weights, options=extra)
    except FleetError as error:
        return _Row(engine, absent=error.message)
    built = dict(job.want.options)
    other = {name: built.get(name) for name, value in engine.options.items() if built.get(name) != value}
    if other:
        words = ", ".join(f"{name}={value}" for name, value in other.items())
        return _Row(engine, absent=f"a simulated board of this kind has none; a build for it would be {words}")
    return _Row(engine, job.want)


def _comparison(table: _Table, model: str, done: Done, options: BenchOptions, results: Results) -> EngineComparison:
    device = table.device
    outcomes = done.outcomes[device.name]
    runs: dict[Want, list[RunResult]] = {}
    for row in table.rows:
        bundle = done.bundles.get(row.want) if row.want else None
        if row.want and bundle is not None and not isinstance(bundle, FleetError):
            runs[row.want] = [one for one in outcomes if isinstance(one, RunResult) and one.bundle == bundle.id]
    failures = [one for one in outcomes if isinstance(one, RunReport)]
    measured = [run for found in runs.values() for run in found]
    name = printable(measured[0].model) if measured else model
    batch = measured[0].batch if measured else table.batch or 1
    known = published(device.target, name)
    baseline = next((row.want for row in table.rows if row.engine.baseline), None)
    by_id = {run.run: run for run in measured}
    reports = []
    for row in table.rows:
        report = _report(row, _published(known, row.engine, _baseline(device.target), batch))
        found = runs.get(row.want, []) if row.want else []
        if found:
            # Of the baseline, the one by itself; of the others the last, which there is only one of.
            run = found[0] if row.engine.baseline else found[-1]
            _fill(report, run)
            bases = runs.get(baseline, []) if baseline else []
            base = by_id.get(run.interleaved_with) or (bases[0] if bases else None)
            if base is not None:
                _speed_up(report, run, base, results)
        elif not report.reason:
            report.reason = _failure(row, failures, done)
        reports.append(report)
    return EngineComparison(
        device=device.name,
        target=device.target,
        simulated=device.simulated,
        model=name,
        batch=batch,
        protocol=options.spec.protocol,
        engines=reports,
        published=known,
    )


def _report(row: _Row, figures: tuple[float, float] | None) -> EngineReport:
    report = EngineReport(
        engine=row.engine.name, precision=row.engine.precision, baseline=row.engine.baseline, reason=row.absent
    )
    if figures is not None:
        report.published_ms, report.published_speed_up = figures
    return report


def _baseline(target: str) -> Engine | None:
    known = find(target)
    engines = known.engines if isinstance(known, ComparedTarget) else ()
    return next((engine for engine in engines if engine.baseline), None)


def _published(
    known: Published | None, engine: Engine, baseline: Engine | None, batch: int
) -> tuple[float, float] | None:
    """Milliseconds and speed-up published for an engine at this batch; None when there is nothing."""
    if known is None or baseline is None:
        return None
    rows = {(row.engine, row.precision): row.milliseconds for row in known.rows if row.batch == batch}
    own, base = (rows.get((one.name, one.precision)) for one in (engine, baseline))
    return (own, base / own) if own and base else None


def _fill(report: EngineReport, run: RunResult) -> None:
    """What was measured, whatever it is worth."""

    def said(name: str) -> str:
        return printable(str(run.conditions.get(name, ""))[:200])

    report.run, report.ran, report.verdict, report.reason = run.run, printable(run.engine), run.verdict, run.reason
    report.weight_dtype, report.input_dtype = said("weight_dtype"), said("input_dtype")
    report.mean_ms, report.p50_ms = run.latency_ms.mean, run.latency_ms.p50
    report.throughput = run.throughput
    error = run.conditions.get("golden_error")
    report.output_error = float(error) if isinstance(error, (int, float)) else None


def _speed_up(report: EngineReport, run: RunResult, base: RunResult, results: Results) -> None:
    """Against the baseline, if outputs of both are right."""
    if not all(one.conditions.get("golden_mismatch") == "" for one in (run, base)):
        return
    if run is base:
        report.speed_up = 1.0
        return
    if run.spec.protocol == "notebook":
        # As it was published: means, and nothing about how far they may be off.
        report.speed_up = base.latency_ms.mean / run.latency_ms.mean
        return
    from controller.compare import compare_runs

    found = compare_runs(results, base.run, run.run)
    low, high = found.ratio_ci
    report.speed_up, report.speed_up_ci = 1 / found.ratio, (1 / high, 1 / low)
    report.interleaved = found.paired


def _failure(row: _Row, failures: Sequence[RunReport], done: Done) -> str:
    bundle = done.bundles.get(row.want) if row.want else None
    if isinstance(bundle, FleetError):
        return bundle.message
    return next((one.reason for one in failures if one.bundle and bundle and one.bundle == bundle.id), "")
