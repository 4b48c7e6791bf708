"""Proving a release on the device: it loads, computes what the reference computes, and is as fast as was asked."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

import numpy as np

from agent import calls as c
from agent.events import Proof
from agent.store import StoredBundle
from agent.workers import Unmet, Worker, WorkerPool
from targets.base import FleetError
from targets.waiting import within

#: Tells the one who asked which stage has come: name and detail.
OnStage = Callable[[str, str], None]

#: Seconds of warm-up, and of measuring, for the latency budget; at least this many queries each.
_WARM_SECONDS, _WARM_QUERIES = 0.3, 3
_MEASURE_SECONDS, _MEASURE_QUERIES = 0.5, 5


class CheckError(FleetError):
    """A bundle did not pass a check. ``tried`` is false when it was refused before anything ran."""

    code = "check-failed"

    def __init__(self, message: str, proof: Proof | None = None, tried: bool = True) -> None:
        super().__init__(message)
        self.proof = proof or Proof()
        self.tried = tried


async def prove(
    pool: WorkerPool,
    bundle_id: str,
    bundle: StoredBundle,
    *,
    threads: int = 0,
    latency_budget_ms: float = 0.0,
    deadline: float = 0.0,
    on_stage: OnStage,
) -> Proof:
    """Run all checks. ``deadline`` bounds them together, in seconds; 0 leaves each its own.

    Raises :class:`CheckError` that names the check, the figure and the bound.
    """
    stage = "load"

    def enter(name: str, detail: str = "") -> None:
        nonlocal stage
        stage = name
        on_stage(name, detail)

    async def checks() -> Proof:
        name = bundle.manifest.model.name
        enter("load", name)
        async with pool.use(
            bundle_id, bundle, threads, on_stage=lambda stage: enter("load", f"{name}: {stage}")
        ) as worker:
            error, mismatch = await golden(worker, bundle, enter)
            if mismatch:
                raise CheckError(mismatch, Proof(error))
            if latency_budget_ms <= 0:
                return Proof(error)
            return await _latency(worker, latency_budget_ms, error, enter)

    try:
        return await within(deadline if deadline > 0 else None, checks())
    except Unmet as error:
        raise CheckError(f"requirements: {error.message}", tried=False) from None
    except CheckError:
        raise
    except FleetError as error:
        raise CheckError(f"{_NAMES[stage]}: {error.message}") from None
    except asyncio.TimeoutError:
        raise CheckError(f"{_NAMES[stage]}: the proof did not end within its deadline of {deadline:g} s") from None


_NAMES = {"load": "loading", "golden": "golden check", "latency": "latency budget"}


async def golden(worker: Worker, bundle: StoredBundle, on_stage: OnStage) -> tuple[float, str]:
    """Largest absolute error over the golden sets, and what is wrong with the first that does not fit; else empty."""
    sets = len(bundle.manifest.golden.inputs)
    worst = 0.0
    for index in range(sets):
        on_stage("golden", f"{index + 1} of {sets}")
        checked = await worker.call(c.CheckGolden(index=index), c.GoldenChecked)
        worst = max(worst, checked.error)
        if checked.mismatch:
            return worst, f"golden check: set {index + 1} of {sets}: {checked.mismatch}"
    return worst, ""


async def _latency(worker: Worker, budget_ms: float, golden_error: float, enter: OnStage) -> Proof:
    enter("latency", f"budget {budget_ms:g} ms")
    await latencies(worker, _WARM_SECONDS, _WARM_QUERIES)
    median = statistics.median(await latencies(worker, _MEASURE_SECONDS, _MEASURE_QUERIES)) * 1e3
    proof = Proof(golden_error, median)
    if not median <= budget_ms:
        raise CheckError(f"latency budget: the median is {median:.3f} ms, the budget is {budget_ms:g} ms", proof)
    return proof


async def latencies(worker: Worker, seconds: float, queries: int) -> list[float]:
    """Of at least so many seconds and queries, in seconds. Raises :class:`FleetError` for what cannot be latencies."""
    taken: list[float] = []
    block = 1
    while len(taken) < queries or sum(taken) < seconds:
        answer = await worker.call(c.Measure(queries=block), c.Measured)
        found = np.frombuffer(answer.seconds, np.float64)
        if len(found) != block or not (np.isfinite(found).all() and (found > 0).all()):
            raise FleetError("the runner gave latencies that are not positive numbers", code="bad-samples")
        taken += found.tolist()
        # Few round trips for a fast model, and a slow one is not run more often than needed.
        block = max(1, min(2 * block, int((seconds - sum(taken)) / taken[-1]) + 1))
    return taken
