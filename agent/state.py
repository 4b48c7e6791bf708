"""What a device is doing, without any I/O: events go in with the time, effects come out.

Four things live here because each decides about the others: sessions (who is there), the lease (who may change or
measure the device), the run (the one activation, rollback, bench or profile in progress) and the slots (which bundle is
active and which one can be gone back to). Slots change in one place only: after a run was proven *and* its slots were
saved.

A lease that expires while its run is in progress stays until the run has ended, so a measurement is never taken away
half-way by a lost renewal; a run whose session has gone is stopped, which bounds that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent import events as e
from agent import protocol as p
from agent.store import SlotRecord
from targets.base import FleetError
from targets.defaults import LEASE_TTL, OFFLINE_AFTER

#: What a run that was stopped is answered with, besides the reason.
CANCELLED = "cancelled"
_DOING = {"activation": "activated", "rollback": "rolled back", "bench": "measured", "profile": "profiled"}
#: Longest that anybody may queue for the lease, in seconds.
MAX_WAIT = 3600.0


@dataclass(slots=True)
class _Lease:
    token: str
    holder: str
    expires: float
    #: Given back while a run was in progress: goes when the run has ended.
    released: bool = False


@dataclass(frozen=True, slots=True)
class _Waiter:
    origin: e.Origin
    holder: str
    deadline: float


def failure(error: FleetError) -> p.Failure:
    return p.Failure(code=error.code, message=error.message, hint=error.hint)


class Machine:
    """The device's state. `handle` takes an event and the monotonic time in seconds, and returns what to do."""

    def __init__(
        self,
        slots: Mapping[str, SlotRecord],
        *,
        new_token: Callable[[], str],
        lease_ttl: float = LEASE_TTL,
        offline_after: float = OFFLINE_AFTER,
    ) -> None:
        self.slots: dict[str, SlotRecord] = dict(slots)
        self.sessions: dict[bytes, float] = {}
        self.run: e.Run | None = None
        self._lease: _Lease | None = None
        self._waiters: list[_Waiter] = []
        self._new_token = new_token
        self._lease_ttl = lease_ttl
        self._offline_after = offline_after
        self._runs = 0

    # --- Questions ----------------------------------------------------------------------------------

    @property
    def state(self) -> p.DeviceState:
        if self.run is not None:
            # Older controllers know no other word for a device that is measured.
            return "benching" if self.run.kind in ("bench", "profile") else "activating"
        return "leased" if self._lease is not None else "idle"

    def lease_info(self, now: float) -> p.LeaseInfo | None:
        if self._lease is None:
            return None
        return p.LeaseInfo(holder=self._lease.holder, expires_in=max(0.0, self._lease.expires - now))

    def releases(self) -> list[p.ReleaseInfo]:
        return [
            p.ReleaseInfo(
                slot=name,
                bundle=slot.bundle,
                model=slot.model,
                activated_at=slot.activated_at,
                previous=slot.previous,
                previous_model=slot.previous_model,
            )
            for name, slot in sorted(self.slots.items())
        ]

    def in_use(self) -> set[str]:
        """Bundles that must not be collected."""
        kept = {b for slot in self.slots.values() for b in (slot.bundle, slot.previous) if b}
        return kept | set(self.run.bundles if self.run else ())

    def check_token(self, token: str, now: float) -> None:
        """Raises :class:`FleetError` (``leased``, ``no-lease``) unless ``token`` is the lease's."""
        lease = self._lease
        if lease is not None and not lease.released and lease.token == token:
            if lease.expires > now or self.run is not None:
                return
        elif lease is not None:
            raise self._leased(lease, now)
        raise FleetError("this needs the device's lease, and the token given is not that of a lease", code="no-lease")

    def check_free(self) -> None:
        """Raises :class:`FleetError` (``busy``) while a run is in progress that an inference would disturb."""
        if self.run is not None:
            raise FleetError(
                f"the device is busy: {', '.join(self.run.models)} is being {_DOING[self.run.kind]}",
                code="busy",
                hint="try again when it has ended",
            )

    def next_deadline(self) -> float | None:
        """When something will expire; None when nothing will."""
        times = [heard + self._offline_after for heard in self.sessions.values()]
        times += [w.deadline for w in self._waiters]
        if self._lease is not None and self.run is None:
            times.append(self._lease.expires)
        return min(times, default=None)

    # --- Events -------------------------------------------------------------------------------------

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Take in one event. Never raises for what a client asked: that becomes a `Reply` with a `Failure`."""
        effects = self._expire(now)
        try:
            if isinstance(event, e.Opened | e.Heard):
                if isinstance(event, e.Opened) or event.session in self.sessions:
                    self.sessions[event.session] = now
            elif isinstance(event, e.Closed):
                effects += self._close(event.session, "its session was closed")
            elif isinstance(event, e.AcquireAsked):
                effects += self._acquire(event, now)
            elif isinstance(event, e.RenewAsked):
                effects += self._renew(event, now)
            elif isinstance(event, e.ReleaseAsked):
                effects += self._release(event, now)
            elif isinstance(event, e.ActivationAsked):
                effects += self._ask_activation(event, now)
            elif isinstance(event, e.RollbackAsked):
                effects += self._ask_rollback(event, now)
            elif isinstance(event, e.BenchAsked):
                effects += self._ask_bench(event, now)
            elif isinstance(event, e.ProfileAsked):
                effects += self._ask_profile(event, now)
            elif isinstance(event, e.CancelAsked):
                effects += self._cancel(event)
            elif isinstance(event, e.Proven):
                effects += self._proven(event)
            elif isinstance(event, e.SlotsSaved):
                effects += self._saved(event)
            elif isinstance(event, e.CheckFailed):
                effects += self._check_failed(event)
            elif isinstance(event, e.BenchFinished):
                effects += self._finish(
                    event.run, e.Reply(event.run.origin, p.BenchDone(runs=list(event.runs)), event.payload)
                )
            elif isinstance(event, e.ProfileFinished):
                effects += self._finish(event.run, e.Reply(event.run.origin, event.answer))
            elif isinstance(event, e.RunBroken):
                effects += self._broken(event)
        except FleetError as error:
            origin = getattr(event, "origin", None)
            if origin is None:
                raise
            effects.append(e.Reply(origin, failure(error)))
        # An event may have freed the lease, or ended the run that kept an expired one alive.
        effects += self._expire(now)
        return effects

    # --- Leases -------------------------------------------------------------------------------------

    def _acquire(self, event: e.AcquireAsked, now: float) -> list[e.Effect]:
        lease = self._lease
        if lease is None:
            return [self._grant(event.origin, event.holder, now)]
        if lease.holder == event.holder and not lease.released:
            lease.expires = now + self._lease_ttl
            return [e.Reply(event.origin, p.Lease(token=lease.token, ttl=self._lease_ttl))]
        if event.wait > 0:
            if any(w.origin.session == event.origin.session for w in self._waiters):
                raise FleetError("this session waits for the lease already", code="busy")
            self._waiters.append(_Waiter(event.origin, event.holder, now + min(event.wait, MAX_WAIT)))
            return []
        raise self._leased(lease, now)

    def _renew(self, event: e.RenewAsked, now: float) -> list[e.Effect]:
        self.check_token(event.token, now)
        assert self._lease is not None
        self._lease.expires = now + self._lease_ttl
        return [e.Reply(event.origin, p.Lease(token=event.token, ttl=self._lease_ttl))]

    def _release(self, event: e.ReleaseAsked, now: float) -> list[e.Effect]:
        self.check_token(event.token, now)
        assert self._lease is not None
        effects: list[e.Effect] = [e.Reply(event.origin, p.Done())]
        if self.run is None:
            self._lease = None
        else:
            self._lease.released = True
            effects += self._stop("its lease was given back")
        return effects

    def _grant(self, origin: e.Origin, holder: str, now: float) -> e.Effect:
        self._lease = _Lease(self._new_token(), holder, now + self._lease_ttl)
        return e.Reply(origin, p.Lease(token=self._lease.token, ttl=self._lease_ttl))

    def _leased(self, lease: _Lease, now: float) -> FleetError:
        return FleetError(
            f"the device is leased to {lease.holder} for another {max(0.0, lease.expires - now):.0f} s",
            code="leased",
            hint="wait for it, or ask its holder to finish",
        )

    # --- Runs ---------------------------------------------------------------------------------------

    def _start(
        self,
        kind: e.RunKind,
        origin: e.Origin,
        request: p.Activate | p.Rollback | p.Bench | p.Profile,
        bundles: tuple[str, ...],
        models: tuple[str, ...],
    ) -> list[e.Effect]:
        self._runs += 1
        self.run = e.Run(self._runs, kind, origin, request.slot, bundles, models, request)
        return [e.StartRun(self.run)]

    def _ask_activation(self, event: e.ActivationAsked, now: float) -> list[e.Effect]:
        request = event.request
        self.check_token(request.token, now)
        self.check_free()
        slot = self.slots.get(request.slot)
        if slot is not None and slot.bundle == request.bundle:
            unchanged = p.Activated(status="unchanged", bundle=request.bundle, active=request.bundle)
            return [e.Reply(event.origin, unchanged)]
        return self._start("activation", event.origin, request, (request.bundle,), (event.model,))

    def _ask_rollback(self, event: e.RollbackAsked, now: float) -> list[e.Effect]:
        self.check_token(event.request.token, now)
        self.check_free()
        slot = self.slots.get(event.request.slot)
        if slot is None or not slot.previous:
            raise FleetError(
                f"slot '{event.request.slot}' has no release before this one to go back to", code="nothing-to-roll-back"
            )
        return self._start("rollback", event.origin, event.request, (slot.previous,), (slot.previous_model,))

    def _ask_bench(self, event: e.BenchAsked, now: float) -> list[e.Effect]:
        self.check_token(event.request.token, now)
        self.check_free()
        bundles, models = tuple(event.request.bundles), event.models
        if not bundles:
            release = self._measurable(event.request.slot)
            bundles, models = (release.bundle,), (release.model,)
        return self._start("bench", event.origin, event.request, bundles, models)

    def _ask_profile(self, event: e.ProfileAsked, now: float) -> list[e.Effect]:
        self.check_token(event.request.token, now)
        self.check_free()
        bundle, model = event.request.bundle, event.model
        if not bundle:
            release = self._measurable(event.request.slot)
            bundle, model = release.bundle, release.model
        return self._start("profile", event.origin, event.request, (bundle,), (model,))

    def _measurable(self, slot: str) -> SlotRecord:
        record = self.slots.get(slot)
        if record is None:
            raise FleetError(
                f"slot '{slot}' has no release to measure",
                code="no-release",
                hint="deploy a model to it first: `fleet deploy`",
            )
        return record

    def _cancel(self, event: e.CancelAsked) -> list[e.Effect]:
        asked = e.Origin(event.origin.session, event.request)
        effects: list[e.Effect] = [e.Reply(event.origin, p.Done())]
        if self.run is not None and self.run.origin == asked:
            effects += self._stop("it was cancelled")
        for waiter in [w for w in self._waiters if w.origin == asked]:
            self._waiters.remove(waiter)
            effects.append(e.Reply(asked, p.Failure(code=CANCELLED, message="waiting for the lease was cancelled")))
        return effects

    def _stop(self, why: str) -> list[e.Effect]:
        run = self.run
        if run is None or run.stopping or run.proof is not None:
            return []
        run.stopping = why
        return [e.StopRun(run)]

    def _proven(self, event: e.Proven) -> list[e.Effect]:
        run = event.run
        if run is not self.run or run.proof is not None:
            return []
        if run.stopping:
            return self._broken(e.RunBroken(run, p.Failure(code=CANCELLED, message=run.stopping)))
        run.proof = event.proof
        before = self.slots.get(run.slot)
        record = SlotRecord(
            bundle=run.bundles[0],
            model=run.models[0],
            activated_at=event.at,
            previous=before.bundle if before else "",
            previous_model=before.model if before else "",
        )
        return [e.SaveSlots(run, {**self.slots, run.slot: record})]

    def _saved(self, event: e.SlotsSaved) -> list[e.Effect]:
        run = event.run
        if run is not self.run or run.proof is None:
            return []
        self.slots = dict(event.slots)
        active = run.bundles[0]
        done = p.Activated(
            status="active",
            bundle=active,
            active=active,
            golden_error=run.proof.golden_error,
            latency_ms=run.proof.latency_ms,
        )
        verb = "went back to" if run.kind == "rollback" else "activated"
        announce = e.Announce(f"slot {run.slot} {verb} {run.models[0]} ({active[:12]})")
        return [*self._finish(run, e.Reply(run.origin, done)), announce]

    def _check_failed(self, event: e.CheckFailed) -> list[e.Effect]:
        run = event.run
        if run is not self.run:
            return []
        if run.stopping:
            return self._broken(e.RunBroken(run, p.Failure(code=CANCELLED, message=run.stopping)))
        before = self.slots.get(run.slot)
        status: p.DeployStatus = "rolled-back" if before and event.tried and run.kind == "activation" else "failed"
        answer = p.Activated(
            status=status,
            bundle=run.bundles[0],
            reason=event.reason,
            active=before.bundle if before else "",
            golden_error=event.proof.golden_error,
            latency_ms=event.proof.latency_ms,
        )
        announce = e.Announce(f"{run.kind} of {run.models[0]} ({run.bundles[0][:12]}) failed: {event.reason}", "error")
        return [*self._finish(run, e.Reply(run.origin, answer)), announce]

    def _broken(self, event: e.RunBroken) -> list[e.Effect]:
        run = event.run
        if run is not self.run:
            return []
        answer = event.failure
        if run.stopping:
            answer = p.Failure(code=CANCELLED, message=f"the {run.kind} was stopped: {run.stopping}")
        announce = e.Announce(
            f"{run.kind} of {', '.join(run.models)} ended without a result: {answer.message}", "warning"
        )
        return [*self._finish(run, e.Reply(run.origin, answer)), announce]

    def _finish(self, run: e.Run, reply: e.Reply) -> list[e.Effect]:
        if run is not self.run:
            return []
        self.run = None
        return [reply]

    # --- Time ---------------------------------------------------------------------------------------

    def _expire(self, now: float) -> list[e.Effect]:
        effects: list[e.Effect] = []
        for session in [s for s, heard in self.sessions.items() if heard + self._offline_after <= now]:
            effects += self._close(session, f"its session was silent for {self._offline_after:.0f} s")
        for waiter in [w for w in self._waiters if w.deadline <= now]:
            self._waiters.remove(waiter)
            assert self._lease is not None, "nobody waits for a free device"
            effects.append(e.Reply(waiter.origin, failure(self._leased(self._lease, now))))
        lease = self._lease
        if lease is not None and self.run is None and (lease.released or lease.expires <= now):
            self._lease = None
            if not lease.released:
                effects.append(e.Announce(f"the lease of {lease.holder} expired", "warning"))
        if self._lease is None and self._waiters:
            first = self._waiters.pop(0)
            effects.append(self._grant(first.origin, first.holder, now))
        return effects

    def _close(self, session: bytes, why: str) -> list[e.Effect]:
        if self.sessions.pop(session, None) is None:
            return []
        self._waiters = [w for w in self._waiters if w.origin.session != session]
        effects: list[e.Effect] = [e.ForgetSession(session)]
        if self.run is not None and self.run.origin.session == session:
            effects += self._stop(why)
        return effects
