"""Measuring on many devices: on each machine one at a time, results stored before they are acknowledged."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent import protocol as p
from controller.connection import results_of
from controller.deploy import check_target, explained, install, stages
from controller.events import DeviceChanged, Message, SampleBatch
from controller.inventory import Device
from controller.options import BenchOptions
from controller.prepare import Bundle, Job, Want, jobs_for, prepare
from controller.printable import printable
from controller.push import Traffic
from controller.reports import RunReport
from controller.session import CUT, Session
from targets.base import BundleError, FleetError
from targets.bundle import Manifest, bundle_id, parse_manifest
from targets.defaults import OFFLINE_AFTER

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.results import Results

Outcome = p.RunResult | RunReport

#: What leaves nothing to go on with.
_ENDS = frozenset({"results", "unreachable", "leased"})
#: The minor version of the protocol in which agents learned other protocols than their own, and to check outputs.
_SINCE = 2
_BUNDLE_ID = re.compile(r"[0-9a-f]{6,64}")
#: Results fetched from a journal at once.
_JOURNAL = 16


@dataclass(frozen=True, slots=True)
class Measurement:
    """One `Bench` request. ``arms`` are builds, or ids of bundles on the device; none means the slot's release."""

    slot: str
    threads: int
    arms: tuple[Want | str, ...] = ()
    batch: int = 0
    #: What is measured instead when this, of two arms, fails: the second by itself.
    alone: Measurement | None = None

    @property
    def words(self) -> str:
        return " and ".join(arm.model if isinstance(arm, Want) else arm[:12] for arm in self.arms)


async def bench(fleet: Fleet, model: str | None, selection: Sequence[Device], options: BenchOptions) -> list[Outcome]:
    """See `Fleet.bench`."""
    plans = {device.name: _plan(fleet, model, device, options) for device in selection}
    done = await carry_out(fleet, selection, plans, options, one_model=model is not None or options.ab is not None)
    return [outcome for device in selection for outcome in done.outcomes[device.name]]


@dataclass(frozen=True, slots=True)
class Done:
    """What was measured on each device, by its name, and what was built for that."""

    outcomes: dict[str, list[Outcome]]
    bundles: dict[Want, Bundle | FleetError]


async def carry_out(
    fleet: Fleet,
    selection: Sequence[Device],
    plans: Mapping[str, Sequence[Measurement]],
    options: BenchOptions,
    *,
    one_model: bool,
) -> Done:
    """Build what the plans want and carry them out, on each machine one at a time.

    Raises :class:`FleetError` when ``one_model`` was asked for and none of its builds is there.
    """
    from controller.commit import working_commit
    from controller.results import Results

    wants = [arm for plan in plans.values() for one in plan for arm in one.arms if isinstance(arm, Want)]
    # Where results go is found out before anything is measured.
    results = await asyncio.to_thread(Results, fleet.home.results_url)
    try:
        commit = await asyncio.to_thread(working_commit)
        bundles = await prepare(fleet, wants, jobs=options.jobs, scheduler=options.scheduler)
        errors = [bundle for bundle in bundles.values() if isinstance(bundle, FleetError)]
        if errors and len(errors) == len(bundles) and one_model:
            raise errors[0]
        machines: dict[str, list[Device]] = {}
        for device in selection:
            machines.setdefault(device.machine, []).append(device)
        found: dict[str, list[Outcome]] = {}

        async def one_after_the_other(devices: Sequence[Device]) -> None:
            for device in devices:
                bencher = _Bencher(fleet, device, options, results, commit, bundles, not one_model)
                found[device.name] = await bencher.run(plans[device.name])

        tasks = [asyncio.create_task(one_after_the_other(devices)) for devices in machines.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            # When results cannot be stored, the others must not go on measuring.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await asyncio.to_thread(results.close)
    return Done(found, bundles)


def _plan(fleet: Fleet, model: str | None, device: Device, options: BenchOptions) -> list[Measurement]:
    """What is to be measured on one device."""
    measurements: list[Measurement] = []
    for batch in options.batches or (0,):
        extra = {**options.options, **({"batch": batch} if batch else {})}

        def jobs(name: str | None, extra: dict[str, str | int | float | bool] = extra) -> list[Job]:
            return jobs_for(
                fleet,
                name,
                device,
                weights=options.weights,
                options=extra,
                slot=options.slot,
                threads=options.threads,
            )

        if options.ab:
            arms: list[Want | str] = []
            for name in options.ab:
                arms.append(name if _is_id(fleet, name) else jobs(name)[0].want)
            measurements.append(Measurement(options.slot, options.threads or device.threads, tuple(arms), batch))
            continue
        for job in jobs(model):
            measurements.append(Measurement(job.slot, job.threads, (job.want,), batch))
    if not measurements and options.batches:
        raise FleetError(
            "batch sizes need a model to build",
            code="usage",
            hint="name one, or assign one to the device in the inventory",
        )
    return measurements or [Measurement(options.slot, options.threads or device.threads)]


def _is_id(fleet: Fleet, name: str) -> bool:
    return bool(_BUNDLE_ID.fullmatch(name)) and name not in fleet.inventory.models and not Path(name).exists()


@dataclass(slots=True)
class _Bencher:
    """One device's measurements."""

    fleet: Fleet
    device: Device
    options: BenchOptions
    results: Results
    commit: str
    bundles: dict[Want, Bundle | FleetError]
    #: Whether what is measured was not asked for, and is what the inventory assigns.
    assigned: bool
    manifests: dict[str, Manifest] = field(default_factory=dict)

    async def run(self, plan: Sequence[Measurement]) -> list[Outcome]:
        """Never raises but when it is cancelled, or when results cannot be stored."""
        outcomes: list[Outcome] = []
        done = 0
        try:
            async with self.fleet.session(self.device, lease=True, lease_wait=self.options.lease_wait) as session:
                await self._collect(session)
                for measurement in plan:
                    outcomes += await self._tried(session, measurement)
                    done += 1
        except FleetError as error:
            if error.code == "results":
                raise
            outcomes += [self._failed(measurement, error) for measurement in plan[done:]]
        return outcomes

    async def _tried(self, session: Session, measurement: Measurement) -> list[Outcome]:
        """Raises :class:`FleetError` only for what ends the other measurements too."""
        try:
            return await self._measure(session, measurement)
        except FleetError as error:
            if error.code in _ENDS:
                raise
            if measurement.alone is None:
                return [self._failed(measurement, error)]
            text = f"{measurement.words}: not in turn, {error.message}"
            self.fleet.listener(Message(self.device.name, text, "warning"))
        return await self._tried(session, measurement.alone)

    async def _measure(self, session: Session, measurement: Measurement) -> list[Outcome]:
        listener, name = self.fleet.listener, self.device.name
        self._check_version(session)
        ids = [await self._arm(session, arm) for arm in measurement.arms]
        status = await session.connection.request(p.GetStatus(), p.Status)
        release = next((r for r in status.releases if r.slot == measurement.slot), None)
        if self.assigned and not self.options.batches and ids and release and release.bundle not in ids:
            text = f"measured is {measurement.words}, as the inventory assigns it; it runs {printable(release.model)}"
            listener(Message(name, f"{text} {release.bundle[:12]}: name that one to measure it"))
        listener(DeviceChanged(name, "benching", *((release.bundle, printable(release.model)) if release else ())))
        try:
            tell = stages(name, listener)

            def on_event(event: p.Message) -> None:
                if isinstance(event, p.Samples):
                    model = printable(event.model[:200])
                    listener(SampleBatch(name, model, event.bundle, event.values, event.share))
                else:
                    tell(event)

            asked = p.Bench(
                token=session.token,
                spec=msgspec.structs.replace(self.options.spec, threads=measurement.threads),
                bundles=ids,
                slot=measurement.slot,
            )
            try:
                _, payload = await session.connection.exchange(asked, p.BenchDone, timeout=None, on_event=on_event)
                results = results_of(payload)
                await self._keep(session, results)
            except FleetError as error:
                if error.code not in CUT:
                    raise
                # The measurement may have ended while nobody listened: then it is in the journal.
                await session.restore()
                await session.settled(2 * OFFLINE_AFTER)
                results = [r for r in await self._collect(session) if not ids or r.bundle in ids]
                if not results:
                    raise
            return list(results)
        finally:
            listener(DeviceChanged(name, "idle"))

    def _check_version(self, session: Session) -> None:
        """Raises :class:`FleetError` (``old-agent``) when the agent would overlook what is asked of it."""
        welcome, spec = session.connection.welcome, self.options.spec
        if welcome.minor < _SINCE and (spec.protocol != "fleet" or spec.check):
            raise FleetError(
                f"the agent of {self.device.name} speaks protocol {welcome.major}.{welcome.minor}; measuring by"
                f" another protocol, and checking outputs, came with {p.MAJOR}.{_SINCE}",
                code="old-agent",
                hint="update the agent",
            )

    async def _arm(self, session: Session, arm: Want | str) -> str:
        """The id of a bundle that is in the device's store."""
        if isinstance(arm, Want):
            bundle = self.bundles[arm]
            if isinstance(bundle, FleetError):
                raise bundle
            check_target(bundle, session)
            await install(session, bundle, Traffic(), self.fleet.listener)
            self.manifests[bundle.id] = bundle.manifest
            return bundle.id
        if len(arm) == 64:
            return arm
        status = await session.connection.request(p.GetStatus(), p.Status)
        known = {bundle for release in status.releases for bundle in (release.bundle, release.previous) if bundle}
        fitting = [bundle for bundle in known if bundle.startswith(arm)]
        if len(fitting) != 1:
            raise FleetError(
                f"'{arm}' is not the beginning of {'one' if fitting else 'any'} release of {self.device.name}",
                code="unknown-bundle",
                hint="give the whole id for a bundle that is not a release; `fleet status` shows releases",
            )
        return fitting[0]

    async def _collect(self, session: Session) -> list[p.RunResult]:
        """Fetch and keep what earlier, interrupted measurements left in the device's journal."""
        found: list[p.RunResult] = []
        while True:
            _, payload = await session.connection.exchange(p.GetJournal(limit=_JOURNAL), p.Done)
            batch = results_of(payload)
            found += await self._keep(session, batch)
            # Without an acknowledgement the same ones would come again.
            if len(batch) < _JOURNAL or self.options.keep:
                break
        if found:
            text = f"collected {len(found)} results of earlier measurements"
            self.fleet.listener(Message(self.device.name, text))
        return found

    async def _keep(self, session: Session, results: Sequence[p.RunResult]) -> list[p.RunResult]:
        """Store results, then tell the device that it may forget them; those that were new."""
        new = []
        for result in results:
            # What it is called here: an agent may have been started under another name.
            result.device = self.device.name
            manifest = await self._manifest(session, result.bundle)
            added = await asyncio.to_thread(
                self.results.add,
                result,
                commit=self.commit,
                versions=manifest.toolchain if manifest else {},
                origin=manifest.model.origin if manifest else "",
            )
            if added:
                new.append(result)
        if results and not self.options.keep:
            await session.connection.request(p.AckResults(runs=[result.run for result in results]), p.Done)
        return new

    async def _manifest(self, session: Session, bundle: str) -> Manifest | None:
        """The manifest of what was measured; None when the device has it no more."""
        if bundle not in self.manifests:
            try:
                _, data = await session.connection.exchange(p.GetManifest(bundle=bundle), p.Done)
            except FleetError as error:
                if error.code in CUT:
                    raise
                return None
            if bundle_id(data) != bundle:
                raise BundleError(f"{self.device.name} sent another manifest than that of {bundle[:12]}")
            self.manifests[bundle] = parse_manifest(data)
        return self.manifests[bundle]

    def _failed(self, measurement: Measurement, error: FleetError) -> RunReport:
        reason = explained(error)
        self.fleet.listener(Message(self.device.name, reason, "error"))
        last = measurement.arms[-1] if measurement.arms else ""
        built = self.bundles.get(last) if isinstance(last, Want) else None
        return RunReport(
            id="",
            device=self.device.name,
            target=self.device.target,
            model=measurement.words,
            bundle=built.id if isinstance(built, Bundle) else "",
            engine="",
            batch=measurement.batch or 1,
            verdict="INVALID",
            reason=reason,
            latency_ms=None,
            throughput=0.0,
            samples=0,
            counters={},
            simulated=self.device.simulated,
            failed=True,
            protocol=self.options.spec.protocol,
        )
