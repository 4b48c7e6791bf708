"""Profiling on many devices: on each machine one at a time, as measuring does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent import protocol as p
from controller.deploy import check_target, explained, install, stages
from controller.events import DeviceChanged, Message
from controller.inventory import Device
from controller.options import ProfileOptions
from controller.prepare import Bundle, Job, Want, jobs_with_bundles
from controller.printable import printable
from controller.push import Traffic
from controller.reports import ProfileReport
from controller.roofline import analyse
from controller.session import CUT
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.session import Session

#: The minor version of the protocol in which agents learned to profile.
_SINCE = 1


async def profile(
    fleet: Fleet, model: str | None, selection: Sequence[Device], options: ProfileOptions
) -> list[ProfileReport]:
    """See `Fleet.profile`."""
    jobs, bundles = await jobs_with_bundles(fleet, model, selection, options)
    machines: dict[str, list[Device]] = {}
    for device in selection:
        machines.setdefault(device.machine, []).append(device)
    found: dict[str, list[ProfileReport]] = {}

    async def one_after_the_other(devices: Sequence[Device]) -> None:
        for device in devices:
            found[device.name] = await _device(fleet, device, jobs[device.name], bundles, options)

    await asyncio.gather(*(one_after_the_other(devices) for devices in machines.values()))
    return [report for device in selection for report in found[device.name]]


async def _device(
    fleet: Fleet,
    device: Device,
    jobs: Sequence[Job],
    bundles: dict[Want, Bundle | FleetError],
    options: ProfileOptions,
) -> list[ProfileReport]:
    """One report a job, or one of the slot's release. Never raises but when it is cancelled."""
    reports: list[ProfileReport] = []
    # None: the release.
    wanted: list[Job | None] = [*jobs] or [None]

    def failed(job: Job | None, error: FleetError) -> None:
        reason = explained(error)
        fleet.listener(Message(device.name, reason, "error"))
        reports.append(
            ProfileReport(
                device=device.name,
                target=device.target,
                simulated=device.simulated,
                model=job.want.model if job else "",
                error=reason,
            )
        )

    try:
        async with fleet.session(device, lease=True, lease_wait=options.lease_wait) as session:
            for job in wanted:
                try:
                    reports.append(await _one(fleet, session, job, bundles, options))
                except FleetError as error:
                    if error.code in CUT:
                        raise
                    failed(job, error)
    except FleetError as error:
        for job in wanted[len(reports) :]:
            failed(job, error)
    return reports


async def _one(
    fleet: Fleet,
    session: Session,
    job: Job | None,
    bundles: dict[Want, Bundle | FleetError],
    options: ProfileOptions,
) -> ProfileReport:
    name, welcome = session.device.name, session.connection.welcome
    if welcome.minor < _SINCE:
        raise FleetError(
            f"the agent of {name} speaks protocol {welcome.major}.{welcome.minor}, and profiles came with "
            f"{p.MAJOR}.{_SINCE}",
            code="old-agent",
            hint="update the agent; `fleet bench` measures the model as a whole",
        )
    asked = p.Profile(
        token=session.token,
        slot=job.slot if job else options.slot,
        threads=(job.threads if job else options.threads) or session.device.threads,
        seconds=options.seconds,
    )
    if job is not None:
        bundle = bundles[job.want]
        if isinstance(bundle, FleetError):
            raise bundle
        check_target(bundle, session)
        await install(session, bundle, Traffic(), fleet.listener)
        asked.bundle = bundle.id
    fleet.listener(DeviceChanged(name, "benching"))
    try:
        answer, _ = await session.connection.exchange(
            asked, p.Profiled, timeout=None, on_event=stages(name, fleet.listener)
        )
    finally:
        fleet.listener(DeviceChanged(name, "idle"))
    report = ProfileReport(
        device=name,
        target=printable(welcome.target),
        simulated=welcome.simulated,
        model=printable(answer.model),
        bundle=printable(answer.bundle),
        other_load=answer.other_load,
    )
    return analyse(report, answer.profile)
