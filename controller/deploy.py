"""Deploying to many devices: build once, then for each one push, stage, prove and activate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import protocol as p
from controller.connection import OnEvent
from controller.events import DeviceChanged, Listener, Message, Progress
from controller.inventory import Device
from controller.options import DeployOptions
from controller.prepare import Bundle, Job, jobs_with_bundles
from controller.printable import printable
from controller.push import Traffic, push, query
from controller.reports import DeployReport
from controller.rollout import rollout
from controller.session import CUT, Session
from targets.base import BundleError, FleetError
from targets.defaults import WORKER_CALL_DEADLINE

if TYPE_CHECKING:
    from controller.fleet import Fleet

#: Cuts in a row without a byte having arrived in between after which a device is given up.
_FRUITLESS = 3


async def deploy(
    fleet: Fleet, model: str | None, selection: Sequence[Device], options: DeployOptions
) -> list[DeployReport]:
    """See `Fleet.deploy`."""
    jobs, bundles = await jobs_with_bundles(fleet, model, selection, options)

    async def act(device: Device) -> list[DeployReport]:
        return await _Deployment(fleet, device, options).run([(job, bundles[job.want]) for job in jobs[device.name]])

    def skip(device: Device, why: str) -> list[DeployReport]:
        deployment = _Deployment(fleet, device, options)
        return [deployment.failed(job, why) for job in jobs[device.name]] or [_report(device, why)]

    reports = await rollout(
        selection,
        act,
        failed=lambda found: any(report.status not in ("active", "unchanged") for report in found),
        skip=skip,
        canary=0 if options.dry_run else options.canary,
        max_failures=None if options.dry_run else options.max_failures,
    )
    return [report for found in reports for report in found]


async def rollback(fleet: Fleet, selection: Sequence[Device], slot: str) -> list[DeployReport]:
    """See `Fleet.rollback`."""

    async def act(device: Device) -> DeployReport:
        start = time.monotonic()
        report = _report(device, "")
        try:
            async with fleet.session(device, lease=True) as session:
                report.carrier = session.carrier
                report.simulated = session.connection.welcome.simulated
                asked = p.Rollback(token=session.token, slot=slot)
                answer, _ = await session.connection.exchange(
                    asked, p.Activated, timeout=None, on_event=stages(device.name, fleet.listener)
                )
                status = await session.connection.request(p.GetStatus(), p.Status)
                report.status, report.bundle, report.active = answer.status, answer.bundle, answer.active
                report.reason = printable(answer.reason)
                report.model = next((r.model for r in status.releases if r.bundle == answer.bundle), "")
        except FleetError as error:
            report.reason = explained(error)
        report.seconds = time.monotonic() - start
        return report

    return await rollout(selection, act, failed=lambda r: r.status == "failed", skip=_report)


@dataclass(slots=True)
class _Deployment:
    """One device's part of a deployment."""

    fleet: Fleet
    device: Device
    options: DeployOptions
    start: float = field(default_factory=time.monotonic)

    async def run(self, jobs: Sequence[tuple[Job, Bundle | FleetError]]) -> list[DeployReport]:
        """One report per job. Never raises but when it is cancelled."""
        if not jobs:
            return [_report(self.device, "the inventory assigns no model to it; name one, or add it under `assign:`")]
        reports: list[DeployReport] = []
        try:
            async with self.fleet.session(
                self.device, lease=not self.options.dry_run, lease_wait=self.options.lease_wait
            ) as session:
                for job, bundle in jobs:
                    reports.append(await self._job(session, job, bundle))
        except FleetError as error:
            for job, bundle in jobs[len(reports) :]:
                found = bundle if isinstance(bundle, FleetError) else error
                reports.append(self.failed(job, explained(found), None if isinstance(bundle, FleetError) else bundle))
        for report in reports:
            if report.status in ("failed", "rolled-back"):
                self.fleet.listener(Message(self.device.name, f"{report.model}: {report.reason}", "error"))
        return reports

    async def _job(self, session: Session, job: Job, bundle: Bundle | FleetError) -> DeployReport:
        if isinstance(bundle, FleetError):
            return self.failed(job, explained(bundle))
        traffic = Traffic()
        report = self.failed(job, "", bundle)
        try:
            check_target(bundle, session)
            if self.options.dry_run:
                await query(session, bundle, traffic)
                report.status, report.bytes_to_send = "unchanged", traffic.lacking
                report.reason = f"dry run: {traffic.lacking} of {traffic.total} bytes would be sent"
            else:
                await install(session, bundle, traffic, self.fleet.listener)
                await self._activate(session, job, bundle, report)
        except FleetError as error:
            report.status, report.reason = "failed", explained(error)
        report.bytes_sent, report.bytes_on_wire = traffic.sent, traffic.on_wire
        report.bytes_skipped = traffic.skipped
        report.carrier = session.carrier
        report.simulated = session.connection.welcome.simulated
        report.seconds = time.monotonic() - self.start
        return report

    async def _activate(self, session: Session, job: Job, bundle: Bundle, report: DeployReport) -> None:
        listener, name = self.fleet.listener, self.device.name
        listener(DeviceChanged(name, "activating"))

        async def activate() -> p.Activated:
            asked = p.Activate(
                token=session.token,
                bundle=bundle.id,
                slot=job.slot,
                latency_budget_ms=self.options.latency_budget_ms,
                threads=job.threads,
            )
            answer, _ = await session.connection.exchange(
                asked, p.Activated, timeout=None, on_event=stages(name, listener)
            )
            return answer

        active = model = ""
        try:
            try:
                answer = await activate()
            except FleetError as error:
                if error.code not in CUT:
                    raise
                # Whether it came to an end without us shows when it is asked for again.
                await session.restore()
                await session.settled(2 * WORKER_CALL_DEADLINE)
                answer = await activate()
                if answer.status == "unchanged":
                    answer.status = "active"
            active = answer.active
            model = bundle.manifest.model.name if active == bundle.id else ""
            report.status, report.active, report.reason = answer.status, active, printable(answer.reason)
        finally:
            listener(DeviceChanged(name, "idle", active, model))

    def failed(self, job: Job, reason: str, bundle: Bundle | None = None) -> DeployReport:
        report = _report(self.device, reason)
        report.model = bundle.manifest.model.name if bundle else job.want.model
        report.bundle = bundle.id if bundle else ""
        report.origin = bundle.manifest.model.origin if bundle else ""
        report.warnings = list(bundle.manifest.warnings or ()) if bundle else []
        report.seconds = time.monotonic() - self.start
        return report


async def install(session: Session, bundle: Bundle, traffic: Traffic, listener: Listener) -> None:
    """Bring a bundle into the device's store, over as many cuts as it takes while there is progress."""
    fruitless = 0
    while True:
        before = traffic.sent
        try:
            await push(session, bundle, traffic, listener)
            signature = bundle.signature
            staged = p.StageBundle(
                token=session.token,
                key_id=signature.key_id if signature else "",
                signature=signature.signature if signature else b"",
            )
            answer = await session.connection.request(staged, p.BundleStaged, bundle.manifest_bytes)
            if answer.bundle != bundle.id:
                raise BundleError(f"{session.device.name} has staged another bundle than the one sent")
            return
        except FleetError as error:
            if error.code not in CUT:
                raise
            fruitless = 0 if traffic.sent > before else fruitless + 1
            if fruitless >= _FRUITLESS:
                raise
            await session.restore()


def check_target(bundle: Bundle, session: Session) -> None:
    """Raises BundleError ``wrong-target`` before anything is sent."""
    target = session.connection.welcome.target
    if bundle.manifest.target != target:
        raise BundleError(
            f"the bundle is for target '{bundle.manifest.target}', {session.device.name} is '{printable(target[:64])}'",
            code="wrong-target",
            hint=f"build the model for it: `fleet build MODEL --target {printable(target[:64])}`",
        )


def explained(error: FleetError) -> str:
    """An error in one line, with what to do next."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def stages(device: str, listener: Listener) -> OnEvent:
    """Tells the listener about the stages of an activation or a bench."""

    def tell(event: p.Message) -> None:
        if isinstance(event, p.Stage):
            listener(Progress(device, printable(event.stage[:64]), detail=printable(event.detail[:500])))

    return tell


def _report(device: Device, reason: str) -> DeployReport:
    """Of a device for which nothing has come to a good end yet."""
    return DeployReport(
        device=device.name,
        target=device.target,
        model="",
        status="failed",
        bundle="",
        bytes_sent=0,
        bytes_skipped=0,
        seconds=0.0,
        reason=reason,
        simulated=device.simulated,
    )
