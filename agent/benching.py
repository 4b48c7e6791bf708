"""A bench run on the device: carries out a plan of `targets.bench` in workers, and makes results of what it gave."""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from agent import calls as c
from agent import protocol as p
from agent.board import Board
from agent.config import VERSION, Config
from agent.proving import golden
from agent.store import StoredBundle
from agent.telemetry import LoadMark, other_load, steal
from agent.workers import Worker, WorkerPool
from targets import series, verdict
from targets.base import FleetError
from targets.bench import Block, NotebookPlan, Plan, plan_for
from targets.defaults import BENCH_BATCH_SECONDS, TELEMETRY_INTERVAL

#: Tells the one who asked: an event, and whether it may be lost.
Tell = Callable[[p.Event, bool], None]
Seconds = npt.NDArray[np.float64]
#: A block may take so many times what its queries are expected to, on top of what any call may.
_PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the bundles that are measured."""

    bundle_id: str
    bundle: StoredBundle

    @property
    def model(self) -> str:
        return self.bundle.manifest.model.name

    @property
    def batch(self) -> int:
        """Items of one query: the first axis of the first input."""
        shape = self.bundle.manifest.inputs[0].shape
        return shape[0] if len(shape) > 1 else 1


class Bencher:
    def __init__(self, config: Config, pool: WorkerPool, board: Board) -> None:
        self._config = config
        self._pool = pool
        self._board = board

    async def measure(self, spec: p.BenchSpec, arms: Sequence[Arm], tell: Tell) -> list[p.RunResult]:
        """Measure one bundle, or two interleaved. Raises :class:`FleetError` when there is no result to be had.

        The caller holds the board.
        """
        plan = plan_for(spec, len(arms))
        started = time.time()
        idle = (await self._board.read()).get("power_w")
        async with AsyncExitStack() as stack:
            workers = []
            for number, arm in enumerate(arms):
                tell(p.Stage(stage="load", detail=arm.model), False)
                use = self._pool.use(arm.bundle_id, arm.bundle, spec.threads, number)
                workers.append(await stack.enter_async_context(use))
            checked = [await self._check(*one, tell) if spec.check else {} for one in zip(workers, arms, strict=True)]
            before = await self._reading()
            during = _Readings(self._board)
            first = self._board.telemetry.mark([os.getpid()])
            clock = await self._carry_out(plan, arms, workers, during, tell)
            last = self._board.telemetry.mark([os.getpid()])
            after = await self._reading()
            added = [await worker.call(c.AskConditions(), c.Conditions) for worker in workers]
        found = verdict.conditions(before, [reading for _, reading in during.taken], after, **_load(first, last))
        ids = [uuid.uuid4().hex for _ in arms]
        if self._config.emulated:
            found["emulated"] = f"on {self._config.emulated}"
        results = []
        for number, arm in enumerate(arms):
            # Of two that are interleaved, nobody knows which one drew what.
            shown = series.conditions(
                during.taken, idle if len(arms) == 1 else None, plan.throughput(arm.batch, number)
            )
            conditions = {**found, **shown, **added[number].values, **checked[number], "clock": clock}
            wrong = str(checked[number].get("golden_mismatch", ""))
            judged, reason = verdict.judge(spec, [*([wrong] if wrong else []), *plan.shortfalls(number)], conditions)
            results.append(
                p.RunResult(
                    run=ids[number],
                    device=self._config.name,
                    target=self._config.target,
                    simulated=self._config.no_board,
                    model=arm.model,
                    bundle=arm.bundle_id,
                    engine=workers[number].engine,
                    batch=arm.batch,
                    started_at=started,
                    verdict=judged,
                    reason=reason,
                    latency_ms=p.LatencyStats(**asdict(plan.statistics(number))),
                    throughput=plan.throughput(arm.batch, number),
                    samples=plan.samples(number),
                    blocks=plan.blocks(number),
                    spec=spec,
                    conditions=conditions,
                    counters=added[number].counters,
                    interleaved_with=ids[1 - number] if len(arms) == 2 else "",
                    agent_version=VERSION,
                )
            )
        return results

    async def _check(self, worker: Worker, arm: Arm, tell: Tell) -> dict[str, float | str]:
        """What the golden outputs say, as conditions."""
        error, mismatch = await golden(
            worker, arm.bundle, lambda stage, detail: tell(p.Stage(stage=stage, detail=detail), False)
        )
        return {"golden_mismatch": mismatch, **({"golden_error": error} if math.isfinite(error) else {})}

    async def _carry_out(
        self, plan: Plan | NotebookPlan, arms: Sequence[Arm], workers: Sequence[Worker], during: _Readings, tell: Tell
    ) -> str:
        """Which clock took the samples: the host's, or the engine's own."""
        phase, clock = "", ""
        batches = [_Batch(arm, tell) for arm in arms]
        while (block := plan.next()) is not None:
            if block.phase != phase:
                phase = block.phase
                tell(p.Stage(stage=phase), False)
            seconds, answer = await self._run_block(workers[block.arm], block, awake=len(arms) == 1)
            clock = answer.clock
            plan.feed(block, seconds, answer.least)
            if phase == "measure":
                # Between blocks, so that reading a sensor is not in any sample.
                await during.take()
                batches[block.arm].add(seconds, plan.share)
        for batch in batches:
            batch.send(1.0)
        return clock

    async def _run_block(self, worker: Worker, block: Block, *, awake: bool) -> tuple[Seconds, c.Measured]:
        call = c.Measure(queries=block.queries, clock=block.clock, together=block.phase == "warmup", awake=awake)
        answer = await worker.call(call, c.Measured, self._config.call_deadline + _PATIENCE * block.seconds)
        if len(answer.seconds) % 8:
            raise FleetError("the runner gave latencies that cannot be read", code="bad-samples")
        return np.frombuffer(answer.seconds, np.float64), answer

    async def _reading(self) -> dict[str, float | str]:
        readings: dict[str, float | str] = dict(await self._board.read())
        if governor := self._board.telemetry.governor():
            readings["governor"] = governor
        return readings


class _Batch:
    """Samples of one arm that are sent on together: enough for a view that moves, few enough to disturb nothing."""

    def __init__(self, arm: Arm, tell: Tell) -> None:
        self._arm = arm
        self._tell = tell
        self._values: list[float] = []
        self._seconds = 0.0

    def add(self, seconds: Seconds, share: float) -> None:
        self._values += (seconds * 1e3).tolist()
        self._seconds += float(seconds.sum())
        if self._seconds >= BENCH_BATCH_SECONDS * 0.9:
            self.send(share)

    def send(self, share: float) -> None:
        if self._values:
            samples = p.Samples(bundle=self._arm.bundle_id, model=self._arm.model, values=self._values, share=share)
            self._tell(samples, True)
        self._values, self._seconds = [], 0.0


class _Readings:
    """Readings while a run goes on, one every `TELEMETRY_INTERVAL`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._next = float("-inf")
        self.taken: list[series.Point] = []

    async def take(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + TELEMETRY_INTERVAL
            self.taken.append((now, await self._board.read()))


def _load(first: LoadMark, last: LoadMark) -> dict[str, float]:
    return {"other_load": other_load(first, last), "steal": steal(first, last)}
