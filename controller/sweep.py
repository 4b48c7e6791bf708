"""Throughput by batch size: runs of one network on one device, beside what was published for that target."""

from __future__ import annotations

from collections.abc import Sequence

from controller.reports import RunReport, Sweep, SweepRow
from targets.published import published


def sweeps(reports: Sequence[RunReport]) -> list[Sweep]:
    """One for each network and device that was measured with several batch sizes, rows by batch.

    Raises :class:`FleetError` for published figures that cannot be read.
    """
    found: dict[tuple[str, str, str], list[RunReport]] = {}
    for one in reports:
        if one.latency_ms is not None:
            found.setdefault((one.device, one.model, one.engine), []).append(one)
    return [_sweep(runs) for runs in found.values() if len({one.batch for one in runs}) > 1]


def _sweep(runs: Sequence[RunReport]) -> Sweep:
    one = runs[0]
    return Sweep(
        device=one.device,
        target=one.target,
        simulated=one.simulated,
        model=one.model,
        engine=one.engine,
        rows=[
            SweepRow(
                batch=run.batch,
                run=run.id,
                throughput=run.throughput,
                p50_ms=run.latency_ms.p50 if run.latency_ms else 0.0,
                verdict=run.verdict,
            )
            for run in sorted(runs, key=lambda run: run.batch)
        ],
        published=published(one.target, one.model),
    )


def series(sweep: Sweep) -> dict[str, dict[int, float]]:
    """Items a second by batch, of what was measured and of each published column, by its name; measured comes first."""
    found = {"measured": {row.batch: row.throughput for row in sweep.rows}}
    for row in sweep.published.rows if sweep.published else ():
        found.setdefault(row.words, {})[row.batch] = row.throughput
    return found
