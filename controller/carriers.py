"""Which way to a device: its own socket whenever it is reachable, else SSH, else TVM RPC, directly or by a tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from controller.connection import Connection, OnEvent
from controller.inventory import Device
from controller.links.base import Link as Carrier
from targets.base import FleetError, Link, LinkedTarget, find
from targets.keys import Keys

#: Failures that another way to the same device may not have.
_NEXT = ("unreachable", "connection-lost", "timeout")


async def connect(
    device: Device, keys: Keys, *, client: str, on_event: OnEvent | None = None, start: bool = True
) -> tuple[Connection, str]:
    """A session with an agent, and the carrier's name: ``socket``, ``ssh``, ``rpc+ssh``, ``rpc`` or ``tracker``.

    Over SSH, an agent that does not run is started; not with ``start`` false, which is for looking only.
    Raises FleetError ``unreachable`` with what each way said, or at once for what no other way can mend.
    """
    failures: list[FleetError] = []
    for carrier, make in ways(current(device), keys, start=start):
        try:
            return await Connection.open(make(), name=device.name, client=client, on_event=on_event), carrier
        except FleetError as error:
            if error.code not in _NEXT:
                raise
            failures.append(error)
    if device.folder and not device.ssh:
        raise _not_running(device)
    if len(failures) == 1:
        raise failures[0]
    raise FleetError("; ".join(error.message for error in failures), code="unreachable", hint=failures[0].hint)


def current(device: Device) -> Device:
    """A simulated board as it is now: its ports change when it is started again. Raises FleetError ``unreachable``."""
    if not device.folder:
        return device
    try:
        info = json.loads((Path(device.folder) / "agent.json").read_bytes())
        return msgspec.structs.replace(
            device,
            address=f"tcp://127.0.0.1:{int(info['port'])}",
            key=str(info["public"]),
            rpc=f"127.0.0.1:{int(info['rpc_port'])}" if info["rpc_port"] else "",
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise _not_running(device) from None


def _not_running(device: Device) -> FleetError:
    return FleetError(
        f"the simulated board '{device.name}' does not answer",
        code="unreachable",
        hint="`fleet sim up` starts it again with its store",
    )


def link_of(device: Device) -> Link | Literal[""]:
    """What goes where: the device's own choice, or its target's for a device that has an SSH server."""
    if device.link or not device.ssh:
        return device.link
    target = find(device.target)
    return target.link if isinstance(target, LinkedTarget) else ""


def ways(device: Device, keys: Keys, *, start: bool = True) -> Iterator[tuple[str, Callable[[], Carrier]]]:
    """Every way to a device that its link allows, the best one first."""

    def socket() -> Carrier:
        from controller.links.zmq import ZmqLink

        return ZmqLink(device.address, agent_key=device.key, public=keys.curve_public, secret=keys.curve_secret)

    def ssh() -> Carrier:
        from controller.links.ssh import SshLink

        return SshLink(device, keys, start=start)

    def rpc_ssh() -> Carrier:
        from controller.links.ssh import SshLink

        return SshLink(device, keys, rpc=True, start=start)

    def rpc() -> Carrier:
        from controller.links.rpc import RpcLink

        host, _, port = device.rpc.rpartition(":")
        return RpcLink(host.strip("[]"), int(port), device.rpc_key or device.target)

    def tracker() -> Carrier:
        from controller.links.rpc import RpcLink

        host, _, port = device.tracker.rpartition(":")
        return RpcLink.through_tracker(host.strip("[]"), int(port), device.rpc_key)

    link = link_of(device)
    for carrier, make, there, of in (
        ("socket", socket, device.address, ()),
        ("ssh", ssh, device.ssh, ("ssh",)),
        ("rpc+ssh", rpc_ssh, device.ssh and link, ("rpc+ssh",)),
        ("rpc", rpc, device.rpc, ("rpc",)),
        ("tracker", tracker, device.tracker, ("rpc",)),
    ):
        if there and (not link or link in of):
            yield carrier, make
