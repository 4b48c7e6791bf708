"""Carries out runs: what the state machine decided to start, from the board's lock to the journal."""

from __future__ import annotations

import asyncio
import time

import msgspec

from agent import protocol as p
from agent.benching import Arm, Bencher, Tell
from agent.board import Board
from agent.config import Config
from agent.events import BenchFinished, CheckFailed, Event, ProfileFinished, Proven, Run
from agent.journal import Journal
from agent.profiling import profile
from agent.proving import CheckError, prove
from agent.service import Service
from agent.workers import WorkerPool


class Conductor:
    def __init__(self, config: Config, service: Service, journal: Journal, pool: WorkerPool, board: Board) -> None:
        self._config = config
        self._service = service
        self._journal = journal
        self._pool = pool
        self._board = board
        self._bencher = Bencher(config, pool, board)

    async def carry_out(self, run: Run, tell: Tell) -> Event:
        """How the run ended, as an event for the state machine. Cancelling this stops the run.

        Raises ``FleetError`` when it ended without saying anything about the bundle.
        """
        async with self._board.exclusive:
            if isinstance(run.request, p.Bench):
                return await self._bench(run, run.request, tell)
            if isinstance(run.request, p.Profile):
                return await self._profile(run, run.request, tell)
            return await self._prove(run, tell)

    async def _prove(self, run: Run, tell: Tell) -> Event:
        request = run.request
        asked = request if isinstance(request, p.Activate) else None
        bundle_id = run.bundles[0]
        bundle = await self._service.bundle(bundle_id)
        try:
            proof = await prove(
                self._pool,
                bundle_id,
                bundle,
                threads=asked.threads if asked else 0,
                latency_budget_ms=asked.latency_budget_ms if asked else 0.0,
                deadline=asked.deadline if asked else 0.0,
                on_stage=lambda stage, detail: tell(p.Stage(stage=stage, detail=detail), False),
            )
        except CheckError as error:
            return CheckFailed(run, error.message, error.proof, error.tried)
        return Proven(run, proof, time.time())

    async def _profile(self, run: Run, request: p.Profile, tell: Tell) -> Event:
        bundle_id = run.bundles[0]
        bundle = await self._service.bundle(bundle_id)
        answer = await profile(
            self._pool,
            self._board,
            bundle_id,
            bundle,
            threads=request.threads,
            seconds=request.seconds,
            deadline=self._config.call_deadline,
            on_stage=lambda stage, detail: tell(p.Stage(stage=stage, detail=detail), False),
        )
        return ProfileFinished(run, answer)

    async def _bench(self, run: Run, request: p.Bench, tell: Tell) -> Event:
        arms = [Arm(bundle_id, await self._service.bundle(bundle_id)) for bundle_id in run.bundles]
        results = await self._bencher.measure(request.spec, arms, tell)

        def keep() -> bytes:
            for result in results:
                self._journal.add(result)
            return msgspec.msgpack.encode(results)

        # From here on there is a result: it reaches the journal even if the run is stopped now.
        payload = await asyncio.shield(self._service.in_thread(keep))
        return BenchFinished(run, tuple(result.run for result in results), payload)
