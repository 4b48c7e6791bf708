"""Which way to a device: its own socket whenever that is reachable, else TVM RPC, directly or through a tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from controller.connection import Connection, OnEvent
from controller.inventory import Device
from controller.links.base import Link
from targets.base import FleetError
from targets.keys import Keys

#: Failures that another way to the same device may not have.
_NEXT = ("unreachable", "connection-lost", "timeout")


async def connect(
    device: Device, keys: Keys, *, client: str, on_event: OnEvent | None = None
) -> tuple[Connection, str]:
    """A session with the device's agent, and the carrier's name: ``socket``, ``rpc`` or ``tracker``.

    Raises FleetError ``unreachable`` with what each way said, or at once for what no other way can mend.
    """
    failures: list[FleetError] = []
    for carrier, make in _ways(current(device), keys):
        try:
            return await Connection.open(make(), name=device.name, client=client, on_event=on_event), carrier
        except FleetError as error:
            if error.code not in _NEXT:
                raise
            failures.append(error)
    if device.folder:
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


def _ways(device: Device, keys: Keys) -> Iterator[tuple[str, Callable[[], Link]]]:
    def socket() -> Link:
        from controller.links.zmq import ZmqLink

        return ZmqLink(device.address, agent_key=device.key, public=keys.curve_public, secret=keys.curve_secret)

    def rpc() -> Link:
        from controller.links.rpc import RpcLink

        host, _, port = device.rpc.rpartition(":")
        return RpcLink(host.strip("[]"), int(port), device.rpc_key or device.target)

    def tracker() -> Link:
        from controller.links.rpc import RpcLink

        host, _, port = device.tracker.rpartition(":")
        return RpcLink.through_tracker(host.strip("[]"), int(port), device.rpc_key)

    if device.address:
        yield "socket", socket
    if device.rpc:
        yield "rpc", rpc
    if device.tracker:
        yield "tracker", tracker
