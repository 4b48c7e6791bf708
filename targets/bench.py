"""How one measurement is carried out: which blocks of queries, in which order, and when it is enough.

A plan does no I/O and reads no clock. Whoever drives it runs each block that :meth:`Plan.next` asks for and feeds the
latencies back::

    plan = plan_for(spec, arms=len(runners))
    while (block := plan.next()) is not None:
        plan.feed(block, runners[block.arm].measure(block.queries))

There are two protocols, which answer different questions: figures of one are not to be compared with the other's.

`Plan` is the project's own.

**Warm-up.** Short blocks (the first is one query), arms in turn, until every arm is *steady*: it has run for
``BENCH_WARMUP_MIN`` and at least six blocks, and of the latter half of its blocks the earlier and the later half have
medians that differ by less than ``BENCH_STEADY`` or by less than noise explains (Geweke's comparison of two
windows, on medians). Given up after ``warmup_max`` seconds an arm (never before six blocks): the run goes on, and its
verdict is INVALID.

**Measurement.** Blocks of about ``BENCH_BATCH_SECONDS`` until every arm has ``min_duration`` seconds and as many
queries as the percentile needs (:func:`queries_needed`), or ``min_queries`` if that is more, in at least
``MIN_BLOCKS`` blocks. Two arms are interleaved A B B A with equal blocks, so that linear drift is the same for both.
Fast models stop at ``MAX_SAMPLES``.

**Engines whose calls cost a start** (`targets.base.Blocked`) say after each block how many queries they want in the
next at least, and get that unless it would take longer than ``BLOCKED_SECONDS``. A block of theirs is judged for
steadiness in parts, and one arm alone is measured in ``BLOCKED_BLOCKS`` blocks, so that few starts serve a whole run
and the differences between them are still seen. Two arms keep ``MIN_BLOCKS``: they are compared pair by pair.

`NotebookPlan` is that of the benchmarks published with Torch-TensorRT's notebooks: 50 queries that are waited for once,
then 100 of which each is waited for and timed on the host's clock, and no word about whether they were steady. One
query before these, which is not counted, tells how long they will take.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from targets import defaults
from targets.base import FleetError
from targets.statistics import Statistics, summarise

Floats = npt.NDArray[np.float64]

#: A run is divided into at least this many blocks an arm; even, so that A B B A comes out whole.
MIN_BLOCKS = 20
#: Most samples of one plan, all arms together: what the agent sends in one message stays below its bound.
MAX_SAMPLES = 500_000
#: Blocks that steadiness is judged on at least.
STEADY_BLOCKS = 6
#: Confidence of `queries_needed`, as in MLPerf.
CONFIDENCE = 0.99
#: Blocks of one arm whose blocks each cost a start: fewer could not be told apart from another run's.
BLOCKED_BLOCKS = 6
#: Seconds of queries up to which a block is made longer because its start costs much.
BLOCKED_SECONDS = 10.0
#: Seconds of queries that one start serves at most, so that a slow network shows that it moves.
BLOCKED_LONGEST = 60.0
#: What the notebooks run, and after how many of them they tell how far they are.
NOTEBOOK_WARMUP, NOTEBOOK_RUNS, NOTEBOOK_STEP = 50, 100, 10


class Spec(Protocol):
    """What is asked of a measurement. Seconds, per cent, queries; `agent.protocol.BenchSpec` is one."""

    @property
    def min_duration(self) -> float: ...
    @property
    def percentile(self) -> float: ...
    @property
    def min_queries(self) -> int: ...
    @property
    def warmup_max(self) -> float: ...
    @property
    def max_other_load(self) -> float: ...
    @property
    def protocol(self) -> Literal["fleet", "notebook"]: ...


@dataclass(frozen=True, slots=True)
class Block:
    """Queries to run back to back on one arm."""

    arm: int
    queries: int
    phase: Literal["warmup", "measure"]
    #: About how long they will take; 0 for the first, of which nothing is known.
    seconds: float = 0.0
    #: ``engine``: as the runner times itself. ``host``: as `targets.base.HostTimed` does, and a warm-up of that is
    #: waited for once.
    clock: Literal["engine", "host"] = "engine"


def queries_needed(percentile: float) -> int:
    """Fewest queries from which the percentile can be bounded: 64 for 90, 662 for 99.

    The early-stopping rule of MLPerf Inference with one query allowed above the bound: the smallest n for which n
    queries with at most one slower than the estimate show with 99 % confidence that the true percentile is no worse,
    that is ``P(Binomial(n, 1 - percentile) <= 1) <= 1 - 0.99``.

    Raises :class:`FleetError` (``bad-spec``) for a percentile outside 1..99.9.
    """
    if not 1.0 <= percentile <= 99.9:
        raise FleetError(f"percentile {percentile:g} is not within 1 to 99.9", code="bad-spec")
    below = percentile / 100

    def enough(n: int) -> bool:
        return below**n + n * (1 - below) * below ** (n - 1) <= 1 - CONFIDENCE

    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(slots=True)
class _Arm:
    """What one arm has given so far. Latencies in seconds."""

    warm_medians: list[float] = field(default_factory=list)
    warm_seconds: float = 0.0
    #: Change of the median over the latter half of the warm-up, as a ratio minus one, and what noise explains.
    drift: float = math.inf
    explained: float = 0.0
    blocks: list[Floats] = field(default_factory=list)
    queries: int = 0
    seconds: float = 0.0
    #: Median latency of the last block.
    latest: float = 0.0
    #: Fewest queries of its next block.
    least: int = 1

    def told(self, seconds: Floats, least: int) -> None:
        self.latest = float(np.median(seconds))
        self.least = max(1, min(least, int(BLOCKED_SECONDS / self.latest)))

    def warm(self, seconds: Floats) -> None:
        # A block that was made longer for its start's sake holds what would have been several.
        parts = min(2 * STEADY_BLOCKS, seconds.size) if self.least > 1 else 1
        self.warm_medians += [float(np.median(part)) for part in np.array_split(seconds, parts)]
        self.warm_seconds += float(seconds.sum())
        if len(self.warm_medians) >= STEADY_BLOCKS:
            half = max(3, len(self.warm_medians) // 4)
            self.drift, self.explained = _change(self.warm_medians[-2 * half : -half], self.warm_medians[-half:])

    def measured(self, seconds: Floats) -> None:
        self.blocks.append(seconds)
        self.queries += seconds.size
        self.seconds += float(seconds.sum())

    @property
    def steady(self) -> bool:
        return self.warm_seconds >= defaults.BENCH_WARMUP_MIN and abs(self.drift) <= self.bound

    @property
    def bound(self) -> float:
        return max(defaults.BENCH_STEADY, min(self.explained, defaults.BENCH_STEADY_NOISE))


class _Carried(ABC):
    """What plans have in common: the block that is asked for, and what the arms gave."""

    def __init__(self, spec: Spec, arms: int) -> None:
        _check(spec, arms)
        self.spec = spec
        self._arms = [_Arm() for _ in range(arms)]
        self._block: Block | None = None

    @property
    def arms(self) -> int:
        return len(self._arms)

    def next(self) -> Block | None:
        """The block to run now, None when the measurement is complete. The same until it is fed."""
        return self._block

    def feed(self, block: Block, seconds: Floats, least: int = 1) -> None:
        """Latencies of the block that was run, in seconds, shape (block.queries,).

        ``least``: what the runner wants of its next block, see `targets.base.Blocked`.
        Raises :class:`FleetError` (``bad-samples``) for anything else: they come from another process.
        """
        if block is not self._block:
            raise ValueError("this is not the block that was asked for")
        values = np.asarray(seconds, dtype=np.float64)
        if values.shape != (block.queries,):
            raise FleetError(
                f"the runner gave {values.shape} latencies for {block.queries} queries", code="bad-samples"
            )
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise FleetError("the runner gave latencies that are not positive numbers", code="bad-samples")
        arm = self._arms[block.arm]
        arm.told(values, least)
        if block.phase == "warmup":
            arm.warm(values)
        else:
            arm.measured(values)
        self._block = self._following()

    @abstractmethod
    def _following(self) -> Block | None:
        """The block after the one that was fed."""

    def samples(self, arm: int = 0) -> list[float]:
        """Measured latencies in milliseconds, in the order they were taken."""
        blocks = self._arms[arm].blocks
        return [float(ms) for ms in np.concatenate(blocks) * 1e3] if blocks else []

    def blocks(self, arm: int = 0) -> list[int]:
        """Queries in each measured block, in order: where `samples` is contiguous."""
        return [block.size for block in self._arms[arm].blocks]

    def statistics(self, arm: int = 0) -> Statistics:
        """Raises :class:`ValueError` when nothing was measured."""
        return summarise(self.samples(arm), self.blocks(arm))

    def throughput(self, batch: int = 1, arm: int = 0) -> float:
        """Items (batch times queries) per second of measured time."""
        state = self._arms[arm]
        return batch * state.queries / state.seconds if state.seconds else 0.0


class Plan(_Carried):
    """One measurement of one arm, or of two that are interleaved. See the module's text for the protocol."""

    def __init__(self, spec: Spec, arms: int = 1, *, block_seconds: float = defaults.BENCH_BATCH_SECONDS) -> None:
        """Raises :class:`FleetError` (``bad-spec``) for a spec that cannot be carried out."""
        super().__init__(spec, arms)
        _within("block_seconds", block_seconds, 1e-3, 60.0)
        self.needed = max(queries_needed(spec.percentile), spec.min_queries)
        self._block_seconds = block_seconds
        self._fewest = MIN_BLOCKS
        self._warming = True
        self._step = 0
        self._block = Block(0, 1, "warmup")

    @property
    def share(self) -> float:
        """Share of the measurement that is done, 0..1; 0 during warm-up."""
        if self._block is None:
            return 1.0
        return sum(self._done(arm) for arm in self._arms) / len(self._arms)

    def shortfalls(self, arm: int = 0) -> list[str]:
        """What keeps this arm's result from being valid, each with the figure and its bound. For `verdict.judge`."""
        state = self._arms[arm]
        found = []
        if not state.steady:
            moved = f"moved {abs(state.drift):.1%}" if math.isfinite(state.drift) else "could not be judged"
            found.append(
                f"warm-up did not become steady: after {state.warm_seconds:.1f} s the median still {moved}"
                f" (bound {state.bound:.1%})"
            )
        if state.queries < self.needed:
            found.append(f"too few queries: {state.queries}, p{self.spec.percentile:g} needs {self.needed}")
        return found

    def _done(self, arm: _Arm) -> float:
        if self._room(arm) < 2:
            return 1.0
        shares = [arm.queries / self.needed, len(arm.blocks) / self._fewest]
        if self.spec.min_duration > 0:
            shares.append(arm.seconds / self.spec.min_duration)
        return min(1.0, *shares)

    def _room(self, arm: _Arm) -> int:
        """Queries that may still be measured; a round measures an arm twice."""
        return MAX_SAMPLES // len(self._arms) - arm.queries

    def _following(self) -> Block | None:
        self._step += 1
        return self._warmup_block() if self._warming else self._measure_block()

    def _warmup_block(self) -> Block | None:
        arms = self._arms
        whole_round = self._step % len(arms) == 0
        if whole_round and (all(arm.steady for arm in arms) or all(self._given_up(arm) for arm in arms)):
            self._warming = False
            self._step = 0
            if len(arms) == 1 and arms[0].least > 1:
                self._fewest = BLOCKED_BLOCKS
            return self._measure_block()
        index = self._step % len(arms)
        arm = arms[index]
        if not arm.latest:
            return Block(index, 1, "warmup")
        seconds = min(defaults.BENCH_WARMUP_MIN / STEADY_BLOCKS, self._block_seconds)
        queries = max(arm.least, round(seconds / arm.latest))
        return Block(index, queries, "warmup", queries * arm.latest)

    def _given_up(self, arm: _Arm) -> bool:
        return arm.warm_seconds >= self.spec.warmup_max and len(arm.warm_medians) >= STEADY_BLOCKS

    def _measure_block(self) -> Block | None:
        count = len(self._arms)
        # Whole rounds only, and with two arms whole quartets A B B A: an even number of blocks each.
        whole_round = self._step % (2 * count) == 0
        if whole_round and all(self._done(arm) >= 1.0 for arm in self._arms):
            return None
        position = self._step % (2 * count)
        index = position if position < count else 2 * count - 1 - position
        # The second of a pair is as long as the first, so that pairs can be compared.
        queries = self._arms[1 - index].blocks[-1].size if position % count else self._measure_queries()
        return Block(index, queries, "measure", queries * self._arms[index].latest)

    def _measure_queries(self) -> int:
        latency = sum(arm.latest for arm in self._arms) / len(self._arms)
        least = max(arm.least for arm in self._arms)
        seconds = max(self.spec.min_duration, self.needed * latency) / self._fewest
        seconds = min(self._block_seconds if least == 1 else BLOCKED_LONGEST, seconds)
        queries = max(least, round(seconds / latency))
        halves = 2 if self._step % (2 * len(self._arms)) == 0 else 1
        room = min(self._room(arm) for arm in self._arms) // halves
        return min(queries, MAX_SAMPLES // (len(self._arms) * self._fewest), room)


class NotebookPlan(_Carried):
    """The notebooks' measurement of one arm. See the module's text."""

    def __init__(self, spec: Spec) -> None:
        """Raises :class:`FleetError` (``bad-spec``) for a spec that cannot be carried out."""
        super().__init__(spec, 1)
        self._warmed = 0
        self._block = self._next_block(1, "warmup")

    @property
    def share(self) -> float:
        """Share of the measurement that is done, 0..1; 0 during warm-up."""
        return self._arms[0].queries / NOTEBOOK_RUNS

    def shortfalls(self, arm: int = 0) -> list[str]:
        """Nothing but an early end: the protocol asks for no more than its number of queries."""
        queries = self._arms[arm].queries
        return [] if queries >= NOTEBOOK_RUNS else [f"too few queries: {queries}, the notebook's are {NOTEBOOK_RUNS}"]

    def _following(self) -> Block | None:
        arm = self._arms[0]
        if not arm.queries and not self._warmed:
            self._warmed = NOTEBOOK_WARMUP
            return self._next_block(NOTEBOOK_WARMUP, "warmup")
        left = NOTEBOOK_RUNS - arm.queries
        return self._next_block(min(max(NOTEBOOK_STEP, arm.least), left), "measure") if left else None

    def _next_block(self, queries: int, phase: Literal["warmup", "measure"]) -> Block:
        return Block(0, queries, phase, queries * self._arms[0].latest, "host")


def plan_for(spec: Spec, arms: int = 1) -> Plan | NotebookPlan:
    """The plan of the spec's protocol. Raises :class:`FleetError` (``bad-spec``) for what cannot be carried out."""
    if spec.protocol == "fleet":
        return Plan(spec, arms)
    if arms != 1:
        raise FleetError(
            "the notebook's protocol measures one bundle by itself", code="bad-spec", hint="measure them one by one"
        )
    return NotebookPlan(spec)


def _change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """How far the median moved between two neighbouring windows, relative, and how far noise would move it (2 sigma).

    Noise is taken from how unlike the steps from block to block are, so that a steady slope is not mistaken for it.
    """
    old, new = float(np.median(before)), float(np.median(after))
    steps = np.diff([*before, *after])
    # 1.4826 makes a median deviation a standard deviation; a step has the noise of two blocks.
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    # 1.2533 makes a mean's error a median's.
    error = 1.2533 * noise * math.sqrt(1 / len(before) + 1 / len(after))
    return new / old - 1, 2 * error / old


def _check(spec: Spec, arms: int) -> None:
    if arms not in (1, 2):
        raise FleetError(f"{arms} bundles cannot be measured together, only one or two", code="bad-spec")
    _within("min_duration", spec.min_duration, 0.0, 24 * 3600.0)
    _within("warmup_max", spec.warmup_max, 0.0, 3600.0)
    _within("max_other_load", spec.max_other_load, 0.0, 1.0)
    _within("min_queries", spec.min_queries, 0, MAX_SAMPLES // arms)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise FleetError(f"{name} {value:g} is not within {low:g} to {high:g}", code="bad-spec")
