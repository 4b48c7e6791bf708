"""The agent's state machine: cases by name, and every order of events that hypothesis can think of."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent import events as e
from agent import protocol as p
from agent.state import Machine
from agent.store import SlotRecord
from targets.base import FleetError, OperatorProfile

TTL, OFFLINE = 60.0, 30.0
S1, S2 = b"one", b"two"


def machine(slots: dict[str, SlotRecord] | None = None) -> Machine:
    tokens = itertools.count(1)
    made = Machine(slots or {}, new_token=lambda: f"token-{next(tokens)}", lease_ttl=TTL, offline_after=OFFLINE)
    for session in (S1, S2):
        made.handle(e.Opened(session), 0.0)
    return made


def replies(effects: list[e.Effect]) -> list[p.Message]:
    return [effect.message for effect in effects if isinstance(effect, e.Reply)]


def only(effects: list[e.Effect], kind: type[Any]) -> Any:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def acquire(m: Machine, now: float = 0.0, session: bytes = S1, holder: str = "me") -> str:
    (lease,) = replies(m.handle(e.AcquireAsked(e.Origin(session, 1), holder, 0.0), now))
    assert isinstance(lease, p.Lease)
    return lease.token


def ask_activation(m: Machine, token: str, bundle: str = "b1", now: float = 0.0, request: int = 2) -> list[e.Effect]:
    asked = p.Activate(token=token, bundle=bundle)
    return m.handle(e.ActivationAsked(e.Origin(S1, request), asked, f"model of {bundle}"), now)


def activate(m: Machine, token: str, bundle: str, now: float = 0.0) -> p.Message:
    run = only(ask_activation(m, token, bundle, now), e.StartRun).run
    save = only(m.handle(e.Proven(run, e.Proof(0.1, 2.0), at=now), now), e.SaveSlots)
    (reply,) = replies(m.handle(e.SlotsSaved(run, save.slots), now))
    return reply


def code(effects: list[e.Effect]) -> str:
    (failure,) = replies(effects)
    assert isinstance(failure, p.Failure), failure
    return failure.code


def bench(m: Machine, token: str, now: float = 0.0, request: int = 3, bundles: tuple[str, ...] = ()) -> list[e.Effect]:
    asked = p.Bench(token=token, spec=p.BenchSpec(), bundles=list(bundles))
    return m.handle(e.BenchAsked(e.Origin(S1, request), asked, bundles), now)


PROFILED = p.Profiled(
    bundle="b1",
    model="model of b1",
    engine="host_clock",
    profile=OperatorProfile(
        operators=(), between_seconds=0.0, query_seconds=1.0, peak_flops=1.0, peak_bytes=1.0, threads=1, queries=1
    ),
)


def test_a_profile_is_a_run_of_the_slots_release_or_of_a_bundle() -> None:
    m = machine()
    token = acquire(m)
    asked = e.ProfileAsked(e.Origin(S1, 5), p.Profile(token=token), "")
    assert code(m.handle(asked, 0.0)) == "no-release"
    activate(m, token, "b1")
    run = only(m.handle(asked, 0.0), e.StartRun).run
    assert (run.kind, run.bundles, run.models, m.state) == ("profile", ("b1",), ("model of b1",), "benching")
    assert code(bench(m, token)) == "busy"
    assert replies(m.handle(e.ProfileFinished(run, PROFILED), 1.0)) == [PROFILED]
    assert m.state == "leased"
    other = e.ProfileAsked(e.Origin(S1, 6), p.Profile(token=token, bundle="b2"), "model of b2")
    assert only(m.handle(other, 1.0), e.StartRun).run.bundles == ("b2",)


def test_a_profile_needs_the_lease() -> None:
    m = machine({"default": SlotRecord(bundle="b1", model="m", activated_at=0.0)})
    acquire(m)
    assert code(m.handle(e.ProfileAsked(e.Origin(S2, 5), p.Profile(token="none"), ""), 0.0)) == "leased"


def test_a_second_holder_is_refused_and_told_who_has_it() -> None:
    m = machine()
    acquire(m)
    (refusal,) = replies(m.handle(e.AcquireAsked(e.Origin(S2, 1), "you", 0.0), 10.0))
    assert isinstance(refusal, p.Failure) and refusal.code == "leased"
    assert "me" in refusal.message and "50 s" in refusal.message


def test_acquiring_again_renews() -> None:
    m = machine()
    token = acquire(m)
    m.handle(e.Heard(S1), 25.0)
    assert acquire(m, 40.0) == token
    assert m.lease_info(40.0) == p.LeaseInfo(holder="me", expires_in=TTL)


def test_a_lease_that_is_not_renewed_expires_and_goes_to_the_first_who_waits() -> None:
    m = machine()
    token = acquire(m)
    assert replies(m.handle(e.AcquireAsked(e.Origin(S2, 7), "you", 100.0), 1.0)) == []
    for now in (20.0, 40.0, 59.0):
        m.handle(e.Heard(S2), now)
    granted = only(m.handle(e.Tick(), TTL), e.Reply)
    assert granted.origin == e.Origin(S2, 7) and isinstance(granted.message, p.Lease)
    with pytest.raises(FleetError, match="leased to you"):
        m.check_token(token, TTL)


def test_a_wait_ends_with_a_refusal() -> None:
    m = machine()
    acquire(m)
    m.handle(e.AcquireAsked(e.Origin(S2, 7), "you", 5.0), 0.0)
    assert m.next_deadline() == 5.0
    assert code(m.handle(e.Tick(), 5.0)) == "leased"


@pytest.mark.parametrize("wait", [float("nan"), -1.0, 0.0])
def test_a_senseless_wait_is_none(wait: float) -> None:
    m = machine()
    acquire(m)
    assert code(m.handle(e.AcquireAsked(e.Origin(S2, 1), "you", wait), 0.0)) == "leased"


def test_an_endless_wait_is_bounded_and_one_a_session() -> None:
    m = machine()
    acquire(m)
    m.handle(e.AcquireAsked(e.Origin(S2, 1), "you", float("inf")), 0.0)
    assert code(m.handle(e.AcquireAsked(e.Origin(S2, 2), "you", 5.0), 0.0)) == "busy"
    (refusal,) = replies(m.handle(e.CancelAsked(e.Origin(S2, 3), 1), 0.0))[1:]
    assert isinstance(refusal, p.Failure) and refusal.code == "cancelled"


@pytest.mark.parametrize("token", ["", "token-2", "token-1 "])
def test_whatever_changes_the_device_needs_the_lease(token: str) -> None:
    m = machine({"default": SlotRecord(bundle="b0", previous="b00")})
    acquire(m)
    assert code(ask_activation(m, token)) == "leased"
    assert code(bench(m, token)) == "leased"
    asked = e.RollbackAsked(e.Origin(S1, 2), p.Rollback(token=token))
    assert code(m.handle(asked, 0.0)) == "leased"
    assert code(m.handle(e.RenewAsked(e.Origin(S1, 2), token), 0.0)) == "leased"


def test_without_any_lease_the_token_is_called_wrong() -> None:
    assert code(ask_activation(machine(), "token-1")) == "no-lease"


def test_activation_keeps_what_was_before() -> None:
    m = machine()
    token = acquire(m)
    reply = activate(m, token, "b1")
    assert reply == p.Activated(status="active", bundle="b1", active="b1", golden_error=0.1, latency_ms=2.0)
    activate(m, token, "b2", now=5.0)
    (release,) = m.releases()
    assert (release.bundle, release.previous, release.previous_model) == ("b2", "b1", "model of b1")
    assert m.in_use() == {"b1", "b2"}


def test_what_is_active_already_is_unchanged_at_once() -> None:
    m = machine()
    token = acquire(m)
    activate(m, token, "b1")
    (reply,) = replies(ask_activation(m, token, "b1"))
    assert isinstance(reply, p.Activated) and reply.status == "unchanged" and m.run is None


@pytest.mark.parametrize(
    ("before", "tried", "status"),
    [("", True, "failed"), ("b0", True, "rolled-back"), ("b0", False, "failed"), ("", False, "failed")],
)
def test_a_failed_check_leaves_the_release_before(before: str, tried: bool, status: str) -> None:
    slots = {"default": SlotRecord(bundle=before)} if before else {}
    m = machine(slots)
    run = only(ask_activation(m, acquire(m)), e.StartRun).run
    (reply,) = replies(m.handle(e.CheckFailed(run, "golden check: 3 > 2", e.Proof(3.0), tried=tried), 1.0))
    assert reply == p.Activated(
        status=status, bundle="b1", reason="golden check: 3 > 2", active=before, golden_error=3.0
    )
    assert m.slots == slots and m.state == "leased"


def test_slots_that_cannot_be_saved_do_not_change() -> None:
    m = machine({"default": SlotRecord(bundle="b0")})
    run = only(ask_activation(m, acquire(m)), e.StartRun).run
    m.handle(e.Proven(run, e.Proof(), 0.0), 0.0)
    assert m.slots["default"].bundle == "b0"
    (reply,) = replies(m.handle(e.CheckFailed(run, "saving: disk full"), 0.0))
    assert isinstance(reply, p.Activated) and reply.status == "rolled-back" and m.slots["default"].bundle == "b0"


def test_rollback_swaps() -> None:
    m = machine({"default": SlotRecord(bundle="b2", model="m2", previous="b1", previous_model="m1")})
    token = acquire(m)
    run = only(m.handle(e.RollbackAsked(e.Origin(S1, 2), p.Rollback(token=token)), 0.0), e.StartRun).run
    assert run.bundles == ("b1",)
    save = only(m.handle(e.Proven(run, e.Proof(), 3.0), 3.0), e.SaveSlots)
    m.handle(e.SlotsSaved(run, save.slots), 3.0)
    record = SlotRecord(bundle="b1", model="m1", activated_at=3.0, previous="b2", previous_model="m2")
    assert m.slots == {"default": record}


def test_a_rollback_without_a_release_before_is_refused() -> None:
    m = machine({"default": SlotRecord(bundle="b2")})
    token = acquire(m)
    for slot in ("default", "other"):
        asked = e.RollbackAsked(e.Origin(S1, 2), p.Rollback(token=token, slot=slot))
        assert code(m.handle(asked, 0.0)) == "nothing-to-roll-back"


def test_one_run_at_a_time() -> None:
    m = machine({"default": SlotRecord(bundle="b0", model="net")})
    token = acquire(m)
    only(bench(m, token), e.StartRun)
    assert m.state == "benching"
    assert code(ask_activation(m, token)) == "busy"
    assert code(bench(m, token, request=9)) == "busy"
    with pytest.raises(FleetError, match="net is being measured"):
        m.check_free()


def test_a_bench_without_a_release_says_so() -> None:
    m = machine()
    assert code(bench(m, acquire(m))) == "no-release"


def test_a_run_keeps_its_expired_lease_until_it_has_ended() -> None:
    m = machine({"default": SlotRecord(bundle="b0")})
    token = acquire(m)
    run = only(bench(m, token), e.StartRun).run
    for now in (20.0, 40.0, 55.0, 70.0):
        assert m.handle(e.Heard(S1), now) == [] or now == 40.0
    m.check_token(token, 70.0)
    effects = m.handle(e.BenchFinished(run, ("r1",), b"results"), 71.0)
    assert only(effects, e.Reply) == e.Reply(e.Origin(S1, 3), p.BenchDone(runs=["r1"]), b"results")
    assert m.lease_info(71.0) is None and m.state == "idle"


def test_a_run_whose_session_is_silent_is_stopped() -> None:
    m = machine({"default": SlotRecord(bundle="b0")})
    token = acquire(m)
    run = only(bench(m, token), e.StartRun).run
    m.handle(e.Heard(S2), 20.0)
    assert only(m.handle(e.Tick(), OFFLINE), e.StopRun).run is run
    assert S1 not in m.sessions
    m.handle(e.RunBroken(run, p.Failure(code="worker-crashed", message="killed")), OFFLINE + 1)
    # The lease stays until it expires: its holder may come back with a new session.
    assert m.state == "leased"
    m.check_token(token, OFFLINE + 2)


def test_giving_the_lease_back_stops_the_run_and_frees_the_device_when_it_has_ended() -> None:
    m = machine({"default": SlotRecord(bundle="b0")})
    token = acquire(m)
    run = only(bench(m, token), e.StartRun).run
    only(m.handle(e.ReleaseAsked(e.Origin(S1, 4), token), 1.0), e.StopRun)
    assert code(m.handle(e.AcquireAsked(e.Origin(S2, 1), "you", 0.0), 1.0)) == "leased"
    assert code(m.handle(e.RunBroken(run, p.Failure(code="x", message="y")), 2.0)) == "cancelled"
    assert m.state == "idle"


@pytest.mark.parametrize("end", ["proven", "failed", "broken"])
def test_a_cancelled_activation_changes_nothing_however_it_ends(end: str) -> None:
    m = machine({"default": SlotRecord(bundle="b0")})
    run = only(ask_activation(m, acquire(m)), e.StartRun).run
    only(m.handle(e.CancelAsked(e.Origin(S1, 5), 2), 0.0), e.StopRun)
    assert not any(isinstance(x, e.StopRun) for x in m.handle(e.CancelAsked(e.Origin(S1, 6), 2), 0.0))
    ends: dict[str, e.Event] = {
        "proven": e.Proven(run, e.Proof(), 0.0),
        "failed": e.CheckFailed(run, "killed"),
        "broken": e.RunBroken(run, p.Failure(code="worker-crashed", message="killed")),
    }
    assert code(m.handle(ends[end], 1.0)) == "cancelled"
    assert m.slots["default"].bundle == "b0" and m.run is None


def test_a_release_that_is_being_saved_can_no_longer_be_cancelled() -> None:
    m = machine()
    run = only(ask_activation(m, acquire(m)), e.StartRun).run
    save = only(m.handle(e.Proven(run, e.Proof(), 0.0), 0.0), e.SaveSlots)
    assert not any(isinstance(x, e.StopRun) for x in m.handle(e.CancelAsked(e.Origin(S1, 5), 2), 0.0))
    (reply,) = replies(m.handle(e.SlotsSaved(run, save.slots), 0.0))
    assert isinstance(reply, p.Activated) and reply.status == "active"


class DeviceModel(RuleBasedStateMachine):
    """Any order of events, with the effects carried out as the server would, at any speed."""

    tokens = Bundle("tokens")

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.sequence = itertools.count(1)
        self.issued: list[str] = []
        self.m = Machine({}, new_token=self._token, lease_ttl=TTL, offline_after=OFFLINE)
        self.open_requests: set[e.Origin] = set()
        #: Requests whose session has gone: answered at most once, to nobody.
        self.orphaned: set[e.Origin] = set()
        self.running: list[e.Run] = []
        self.saving: list[e.SaveSlots] = []
        self.proven: set[str] = set()

    def _token(self) -> str:
        self.issued.append(f"t{next(self.sequence)}")
        return self.issued[-1]

    def _origin(self, session: bytes) -> e.Origin:
        return e.Origin(session, next(self.numbers))

    def _do(self, event: e.Event) -> None:
        before = dict(self.m.slots)
        origin = getattr(event, "origin", None)
        if origin is not None:
            if origin.session not in self.m.sessions:
                return  # The server refuses whoever has not said hello.
            self.open_requests.add(origin)
        effects = self.m.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, e.Reply):
                # Exactly one answer each, unless the one who asked has gone.
                assert effect.origin in self.open_requests | self.orphaned, effect
                self.open_requests.discard(effect.origin)
                self.orphaned.discard(effect.origin)
            elif isinstance(effect, e.StartRun):
                assert not self.running and not self.saving
                self.running.append(effect.run)
            elif isinstance(effect, e.StopRun):
                assert effect.run in self.running and effect.run.stopping
            elif isinstance(effect, e.SaveSlots):
                assert effect.run not in self.running
                self.saving.append(effect)
            elif isinstance(effect, e.ForgetSession):
                self.orphaned |= {o for o in self.open_requests if o.session == effect.session}
                self.open_requests -= self.orphaned
        if not isinstance(event, e.SlotsSaved):
            assert self.m.slots == before, "slots change only when they were saved"

    @rule(session=st.sampled_from([b"a", b"b", b"c"]))
    def hello(self, session: bytes) -> None:
        self._do(e.Opened(session))

    @rule(session=st.sampled_from([b"a", b"b", b"c"]))
    def heard(self, session: bytes) -> None:
        self._do(e.Heard(session))

    @rule(session=st.sampled_from([b"a", b"b", b"c"]))
    def closed(self, session: bytes) -> None:
        self._do(e.Closed(session))

    @rule(
        session=st.sampled_from([b"a", b"b", b"c"]),
        holder=st.sampled_from(["ann", "bob"]),
        wait=st.sampled_from([0.0, 10.0, 1e9]),
    )
    def acquire(self, session: bytes, holder: str, wait: float) -> None:
        self._do(e.AcquireAsked(self._origin(session), holder, wait))

    def _some_token(self, fresh: bool) -> str:
        return self.issued[-1] if fresh and self.issued else "t0"

    @rule(session=st.sampled_from([b"a", b"b"]), fresh=st.booleans(), give_back=st.booleans())
    def keep_or_give_back(self, session: bytes, fresh: bool, give_back: bool) -> None:
        kind = e.ReleaseAsked if give_back else e.RenewAsked
        self._do(kind(self._origin(session), self._some_token(fresh)))

    @rule(session=st.sampled_from([b"a", b"b"]), bundle=st.sampled_from(["b1", "b2", "b3"]))
    def activate(self, session: bytes, bundle: str) -> None:
        asked = p.Activate(token=self._some_token(True), bundle=bundle)
        self._do(e.ActivationAsked(self._origin(session), asked, bundle))

    @rule(session=st.sampled_from([b"a", b"b"]))
    def rollback(self, session: bytes) -> None:
        self._do(e.RollbackAsked(self._origin(session), p.Rollback(token=self._some_token(True))))

    @rule(session=st.sampled_from([b"a", b"b"]))
    def bench(self, session: bytes) -> None:
        asked = p.Bench(token=self._some_token(True), spec=p.BenchSpec())
        self._do(e.BenchAsked(self._origin(session), asked, ()))

    @rule(session=st.sampled_from([b"a", b"b"]), bundle=st.sampled_from(["", "b1"]))
    def profile(self, session: bytes, bundle: str) -> None:
        asked = p.Profile(token=self._some_token(True), bundle=bundle)
        self._do(e.ProfileAsked(self._origin(session), asked, bundle))

    @rule(session=st.sampled_from([b"a", b"b"]), back=st.integers(1, 5))
    def cancel(self, session: bytes, back: int) -> None:
        origin = self._origin(session)
        self._do(e.CancelAsked(origin, origin.request - back))

    @precondition(lambda self: self.running)
    @rule(end=st.sampled_from(["good", "bad", "broken"]))
    def run_ends(self, end: str) -> None:
        run = self.running.pop()
        if end == "broken":
            self._do(e.RunBroken(run, p.Failure(code="worker-crashed", message="crashed")))
        elif run.kind == "bench":
            self._do(e.BenchFinished(run, ("r",), b""))
        elif run.kind == "profile":
            self._do(e.ProfileFinished(run, PROFILED))
        elif end == "bad":
            self._do(e.CheckFailed(run, "wrong"))
        else:
            if not run.stopping:
                self.proven.add(run.bundles[0])
            self._do(e.Proven(run, e.Proof(), self.now))

    @precondition(lambda self: self.saving)
    @rule(full=st.booleans())
    def saved(self, full: bool) -> None:
        save = self.saving.pop()
        self._do(e.CheckFailed(save.run, "disk full") if full else e.SlotsSaved(save.run, save.slots))

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.9, 29.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._do(e.Tick())

    @rule()
    def next_timer(self) -> None:
        deadline = self.m.next_deadline()
        if deadline is not None:
            assert deadline > self.now, "what is due was done"
            self.now = deadline
            self._do(e.Tick())

    @invariant()
    def only_what_was_proven_is_active(self) -> None:
        if not hasattr(self, "m"):
            return
        for slot in self.m.slots.values():
            assert slot.bundle in self.proven and (not slot.previous or slot.previous in self.proven)
            assert slot.bundle != slot.previous

    @invariant()
    def run_and_lease_agree(self) -> None:
        if not hasattr(self, "m"):
            return
        busy = [*self.running, *(save.run for save in self.saving)]
        assert busy == ([self.m.run] if self.m.run else [])
        lease = self.m.lease_info(self.now)
        assert lease is not None or self.m.run is None, "a run has the lease"
        assert lease is None or self.m.run is not None or lease.expires_in > 0
        if lease is not None or self.m.sessions:
            assert self.m.run is not None or self.m.next_deadline() is not None

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Each unanswered request waits for the lease, or belongs to the run."""
        if not hasattr(self, "m"):
            return
        expected = {w.origin for w in self.m._waiters}
        if self.m.run is not None and self.m.run.origin.session in self.m.sessions:
            expected.add(self.m.run.origin)
        assert {o for o in self.open_requests if o.session in self.m.sessions} <= expected


TestDevice = DeviceModel.TestCase
TestDevice.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
