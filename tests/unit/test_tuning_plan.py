"""The tuning loop without a device: a made-up machine whose true times are known, a clock that tests turn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.cli.tune import seconds
from controller.tuning_plan import CONFIRMING_ROUNDS, MARGIN, ROUNDS, Measured, Trial, TuningPlan
from controller.tuning_session import TuningSession
from targets.base import FleetError
from targets.tuning import Candidate, Race, TunableLayer


def layer(number: int, candidates: int, cost: float = 1.0) -> TunableLayer:
    return TunableLayer(
        signature=f"layer {number}",
        words=f"layer {number}",
        count=1,
        cost=cost,
        candidates=tuple(Candidate(f"choice {n}", f"kernel {n}") for n in range(candidates)),
    )


@dataclass
class Machine:
    """Runs candidates in true milliseconds (the default's is 1.0), with noise that both of a round share in part."""

    true_ms: dict[tuple[str, str], float]
    noise: float = 0.0
    #: Choices that fail.
    broken: frozenset[tuple[str, str]] = frozenset()
    seconds: float = 2.0
    now: float = 100.0
    ran: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)

    def clock(self) -> float:
        return self.now

    def race(self, plan: TuningPlan, trial: Trial) -> Race:
        at = plan.layers[trial.layer]
        key = (at.signature, at.candidates[trial.candidate].choice)
        self.ran.append(trial)
        self.now += self.seconds
        if key in self.broken:
            return Race(error="it ended with SIGILL")
        own = np.exp(self.noise * self.random.standard_normal((2, trial.rounds)))
        return Race(default_ms=tuple(own[0]), ms=tuple(own[1] * self.true_ms.get(key, 1.0)))

    def run(self, plan: TuningPlan) -> list[Measured]:
        found = []
        while (trial := plan.next()) is not None:
            found.append(plan.record(trial, self.race(plan, trial)))
        return found


def test_what_costs_most_comes_first_and_a_winner_must_win_twice() -> None:
    layers = [layer(0, 3, cost=1.0), layer(1, 4, cost=5.0)]
    machine = Machine({("layer 1", "choice 2"): 0.8, ("layer 1", "choice 3"): 0.9})
    plan = TuningPlan(layers, clock=machine.clock)
    machine.run(plan)
    assert [(t.layer, t.candidate, t.confirming) for t in machine.ran] == [
        (1, 1, False),
        (1, 2, False),
        (1, 2, True),
        # 3 is faster than the default and slower than what won already: it is not worth a second race.
        (1, 3, False),
        (0, 1, False),
        (0, 2, False),
    ]
    assert {t.rounds for t in machine.ran if t.confirming} == {CONFIRMING_ROUNDS}
    assert {t.rounds for t in machine.ran if not t.confirming} == {ROUNDS}
    one, other = plan.findings("board", "2026-01-31")
    assert (one.signature, one.choice, one.default_choice) == ("layer 1", "choice 2", "choice 0")
    assert one.ms == pytest.approx(0.8) and one.default_ms == pytest.approx(1.0)
    assert (other.signature, other.choice) == ("layer 0", "")
    assert [plan.verdict(n).state for n in (0, 1)] == ["default", "tuned"]


@pytest.mark.parametrize("ratio", [1.0 - MARGIN + 0.001, 1.0, 2.0])
def test_what_is_not_faster_by_the_margin_leaves_the_default(ratio: float) -> None:
    machine = Machine({("layer 0", "choice 1"): ratio})
    plan = TuningPlan([layer(0, 2)], clock=machine.clock)
    assert [one.faster for one in machine.run(plan)] == [False]
    (finding,) = plan.findings("board", "2026-01-31")
    assert finding.choice == "" and finding.ms == finding.default_ms


def test_luck_is_found_out() -> None:
    """Two hundred candidates that are as fast as the default, under noise of 10 %: hardly one may pass for faster."""
    layers = [layer(n, 21) for n in range(10)]
    machine = Machine({}, noise=0.1)
    plan = TuningPlan(layers, clock=machine.clock)
    measured = machine.run(plan)
    lucky = [one for one in measured if not one.confirming and one.faster]
    won = [one for one in measured if one.confirming and one.faster]
    assert len(lucky) >= 20, "the noise is too small for this test to mean anything"
    assert len(won) <= 2


def test_what_is_truly_faster_is_found_under_noise() -> None:
    layers = [layer(n, 6) for n in range(10)]
    machine = Machine({(f"layer {n}", "choice 4"): 0.8 for n in range(10)}, noise=0.1)
    plan = TuningPlan(layers, clock=machine.clock)
    machine.run(plan)
    assert sum(finding.choice == "choice 4" for finding in plan.findings("b", "2026-01-31")) >= 9


def test_the_fastest_of_several_winners_is_kept() -> None:
    machine = Machine({("layer 0", "choice 1"): 0.9, ("layer 0", "choice 2"): 0.7, ("layer 0", "choice 3"): 0.8})
    plan = TuningPlan([layer(0, 4)], clock=machine.clock)
    machine.run(plan)
    assert plan.findings("b", "2026-01-31")[0].choice == "choice 2"


def test_a_candidate_that_fails_loses_and_is_told() -> None:
    machine = Machine({}, broken=frozenset({("layer 0", "choice 1")}))
    plan = TuningPlan([layer(0, 3)], clock=machine.clock)
    machine.run(plan)
    verdict = plan.verdict(0)
    assert verdict.state == "default" and [one.error for one in verdict.failures] == ["it ended with SIGILL"]
    assert verdict.words_of(verdict.failures[0].choice) == "kernel 1"


def test_budgets_are_kept() -> None:
    layers = [layer(n, 10) for n in range(3)]
    machine = Machine({})
    plan = TuningPlan(layers, trials=4, clock=machine.clock)
    machine.run(plan)
    assert len(machine.ran) == plan.used == 4 and plan.spent and plan.share == 1.0
    assert [plan.verdict(n).state for n in range(3)] == ["unfinished", "untried", "untried"]
    # Nothing is said of what is not finished: an earlier finding stays.
    assert plan.findings("b", "2026-01-31") == []
    machine = Machine({}, seconds=3.0)
    plan = TuningPlan(layers, seconds=10.0, clock=machine.clock)
    assert plan.left == 10.0
    machine.run(plan)
    # The race that is under way when the time is up is not thrown away.
    assert len(machine.ran) == 4 and plan.left == 0.0


def test_what_time_is_left_is_what_there_is_to_do_or_the_budget() -> None:
    machine = Machine({}, seconds=1.0)
    plan = TuningPlan([layer(0, 5)], seconds=1000.0, clock=machine.clock)
    trial = plan.next()
    assert trial is not None
    plan.record(trial, machine.race(plan, trial))
    assert plan.left == pytest.approx(3.0) and plan.share == pytest.approx(0.25)


def test_races_against_another_default_do_not_count() -> None:
    machine = Machine({("layer 0", "choice 1"): 0.8})
    known = machine.run(TuningPlan([layer(0, 3)], clock=machine.clock))
    turned = msgspec.structs.replace(layer(0, 3), candidates=layer(0, 3).candidates[::-1])
    assert TuningPlan([layer(0, 3)], known, clock=machine.clock).next() is None
    anew = TuningPlan([turned], known, clock=machine.clock)
    assert anew.next() is not None and anew.findings("b", "2026-01-31") == []


def test_nothing_to_choose_is_no_error() -> None:
    plan = TuningPlan([layer(0, 1)], clock=lambda: 0.0)
    assert plan.next() is None and plan.share == 1.0 and plan.findings("b", "2026-01-31") == []
    empty = TuningPlan([], clock=lambda: 0.0)
    assert empty.next() is None and empty.share == 1.0


class Interrupted(RuleBasedStateMachine):
    """However often it is interrupted, a tuning ends with what one that never was ends with, and no race runs twice."""

    @initialize(
        ratios=st.lists(
            st.lists(st.sampled_from([0.6, 0.8, 0.95, 1.0, 1.3]), min_size=0, max_size=5), min_size=1, max_size=4
        )
    )
    def begin(self, ratios: list[list[float]]) -> None:
        self.layers = [layer(n, len(row) + 1, cost=float(n % 2)) for n, row in enumerate(ratios)]
        true = {(f"layer {n}", f"choice {c}"): r for n, row in enumerate(ratios) for c, r in enumerate(row, 1)}
        self.machine = Machine(true)
        self.known: list[Measured] = []
        whole = TuningPlan(self.layers, clock=lambda: 0.0)
        Machine(true).run(whole)
        self.expected = whole.findings("b", "2026-01-31")
        self.plan = TuningPlan(self.layers, clock=self.machine.clock)

    @rule()
    def measure(self) -> None:
        trial = self.plan.next()
        if trial is None:
            assert self.plan.spent or self.plan.findings("b", "2026-01-31") == self.expected
            return
        assert trial.candidate > 0, "the default races against itself"
        self.known.append(self.plan.record(trial, self.machine.race(self.plan, trial)))

    @rule(order=st.randoms(use_true_random=False), trials=st.integers(0, 3))
    def resume(self, order: object, trials: int) -> None:
        order.shuffle(known := list(self.known))  # type: ignore[attr-defined]
        self.plan = TuningPlan(self.layers, known, trials=trials, clock=self.machine.clock)
        assert self.plan.used == 0

    @rule()
    def forget_the_budget(self) -> None:
        self.plan = TuningPlan(self.layers, self.known, clock=self.machine.clock)

    @precondition(lambda self: hasattr(self, "plan"))
    @invariant()
    def nothing_runs_twice(self) -> None:
        ran = [(t.layer, t.candidate, t.confirming) for t in self.machine.ran]
        assert len(ran) == len(set(ran))

    @precondition(lambda self: hasattr(self, "plan"))
    @invariant()
    def what_is_kept_did_win(self) -> None:
        won = {(one.signature, one.choice) for one in self.known if one.confirming and one.faster}
        kept = {(one.signature, one.choice) for one in self.plan.findings("b", "2026-01-31") if one.choice}
        assert kept <= won and 0.0 <= self.plan.share <= 1.0


TestInterrupted = Interrupted.TestCase
TestInterrupted.settings = settings(deadline=None, max_examples=40, stateful_step_count=40)


# --- The session's file -------------------------------------------------------------------------

measured = st.builds(
    Measured,
    signature=st.text(max_size=20),
    choice=st.text(max_size=20),
    default=st.text(max_size=20),
    confirming=st.booleans(),
    default_ms=st.floats(0, 1e6),
    ms=st.floats(0, 1e6),
    faster=st.booleans(),
    error=st.text(max_size=20),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(measured, max_size=5), measured, st.data())
def test_a_session_outlives_a_cut(
    tmp_path_factory: pytest.TempPathFactory, before: list[Measured], last: Measured, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("session") / "folder" / "s.jsonl"
    session = TuningSession(path, "a")
    for one in before:
        session.add(one)
    size = path.stat().st_size if before else 0
    session.add(last)
    # The power goes while the last line is written.
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(size, len(whole) - 2))])
    assert session.known() == before
    session.add(last)
    assert session.known() == [*before, last]


def test_a_session_is_of_one_compiler(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    one = Measured(signature="s", choice="c", default="d", confirming=False, default_ms=2.0, ms=1.0, faster=True)
    TuningSession(path, "old").add(one)
    session = TuningSession(path, "new")
    assert session.known() == []
    session.add(one)
    assert session.known() == [one]
    assert [json.loads(line)["compiler"] for line in path.read_text().splitlines()] == ["old", "new"]
    session.forget()
    assert session.known() == [] and not path.exists()
    session.forget()


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0", 0), ("1.5h", 5400)]
)
def test_budgets_are_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "10 m", "-5m", "10x", "ten", "1e3", "5m!"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(FleetError, match="not a time"):
        seconds(text)
