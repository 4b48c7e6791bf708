"""Asking many devices at once what they are doing. Imports nothing heavy: `fleet devices` must be quick."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent import protocol as p
from controller.carriers import connect
from controller.inventory import Device
from controller.printable import printable
from controller.reports import DeviceReport, StatusReport
from targets.base import FleetError
from targets.defaults import REQUEST_TIMEOUT
from targets.waiting import within

if TYPE_CHECKING:
    from controller.fleet import Fleet


async def devices(fleet: Fleet, selection: Sequence[Device]) -> list[DeviceReport]:
    """See `Fleet.devices`."""
    reports = []
    for device, found in zip(selection, await status(fleet, selection), strict=True):
        default = next((release for release in found.releases if release.slot == "default"), None)
        reports.append(
            DeviceReport(
                name=found.name,
                target=found.target,
                state=found.state,
                release=default.bundle if default else "",
                model=default.model if default else "",
                lease=found.lease,
                agent_version=found.agent_version,
                labels=found.labels,
                simulated=found.simulated,
                address=device.address or device.ssh or device.rpc or device.tracker,
                reason=found.reason,
            )
        )
    return reports


async def status(fleet: Fleet, selection: Sequence[Device]) -> list[StatusReport]:
    """See `Fleet.status`."""
    return list(await asyncio.gather(*(_one(fleet, device) for device in selection)))


async def _one(fleet: Fleet, device: Device) -> StatusReport:
    # By SSH, servers on the way answer first.
    patience = REQUEST_TIMEOUT * (2 if device.ssh else 1)
    try:
        found, carrier = await within(patience, _ask(fleet, device))
    except asyncio.TimeoutError:
        return _unreached(device, "unreachable", f"no answer within {patience:.0f} s")
    except FleetError as error:
        return _unreached(device, error.code, error.message + (f" ({error.hint})" if error.hint else ""))
    reason = ""
    if found.target != device.target:
        reason = f"the inventory says target {device.target}, the agent says {printable(found.target[:64])}"
    return StatusReport(
        name=device.name,
        target=device.target,
        state=found.state,
        agent_version=printable(found.agent_version[:64]),
        labels=device.labels,
        simulated=found.simulated,
        reason=reason,
        carrier=carrier,
        releases=found.releases,
        lease=printable(found.lease.holder[:200]) if found.lease else "",
        lease_expires_in=found.lease.expires_in if found.lease else 0.0,
        uptime=found.uptime,
        telemetry=found.telemetry,
        unacknowledged=found.unacknowledged,
        store_bytes=found.store_bytes,
        free_bytes=found.free_bytes,
    )


async def _ask(fleet: Fleet, device: Device) -> tuple[p.Status, str]:
    connection, carrier = await connect(device, fleet.keys, client=fleet.holder, start=False)
    try:
        return await connection.request(p.GetStatus(), p.Status), carrier
    finally:
        await connection.close()


def _unreached(device: Device, state: str, reason: str) -> StatusReport:
    return StatusReport(
        name=device.name,
        target=device.target,
        state=state,
        agent_version="",
        labels=device.labels,
        simulated=device.simulated,
        reason=reason,
    )
