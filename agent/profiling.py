"""A profile on the device: warm up, find out how many queries there is time for, have the worker time operators."""

from __future__ import annotations

import os
import statistics

from agent import calls as c
from agent import protocol as p
from agent.board import Board
from agent.proving import OnStage, latencies
from agent.store import StoredBundle
from agent.telemetry import other_load
from agent.workers import WorkerPool
from targets.base import FleetError

#: Seconds and queries of warm-up.
_WARM_SECONDS, _WARM_QUERIES = 0.3, 3
#: Queries that are timed, whatever the time asked for: a median needs some, and no more than these get better with it.
_FEWEST, _MOST = 5, 200
#: What a timed query costs in queries: before it and before the one it is compared with comes one that is not timed.
_RUNS = 4
_LONGEST = 60.0


async def profile(
    pool: WorkerPool,
    board: Board,
    bundle_id: str,
    bundle: StoredBundle,
    *,
    threads: int,
    seconds: float,
    deadline: float,
    on_stage: OnStage,
) -> p.Profiled:
    """Time the operators for about ``seconds``. ``deadline``: longest that one call of the worker may take.

    Raises :class:`FleetError`, ``no-profile`` for a target or bundle that has none. The caller holds the board.
    """
    if not 0 < seconds <= _LONGEST:
        raise FleetError(f"a profile takes more than 0 and at most {_LONGEST:g} s, not {seconds:g}", code="bad-spec")
    model = bundle.manifest.model.name
    on_stage("load", model)
    async with pool.use(bundle_id, bundle, threads) as worker:
        on_stage("warmup", "")
        latency = statistics.median(await latencies(worker, _WARM_SECONDS, _WARM_QUERIES))
        wanted = min(max(int(seconds / latency), _FEWEST), _MOST)
        # Half of the deadline: queries while they are watched may be slower than those before.
        queries = max(1, min(wanted, int(deadline / 2 / _RUNS / latency)))
        on_stage("profile", f"{queries} queries")
        first = board.telemetry.mark([os.getpid()])
        answer = await worker.call(c.Profile(queries=queries), c.Profiled)
        load = other_load(first, board.telemetry.mark([os.getpid()]))
        return p.Profiled(bundle=bundle_id, model=model, engine=worker.engine, profile=answer.profile, other_load=load)
