"""From a destination to the servers on the way to it: what the configuration says of each, jump hosts first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh

from controller.inventory import Device
from controller.printable import printable
from controller.ssh import known_hosts
from controller.ssh.destination import Destination
from controller.ssh.known_hosts import HostKeys
from targets.base import FleetError
from targets.defaults import HEARTBEAT_INTERVAL, SUSPECT_AFTER

#: More jump hosts than anybody has: the configuration runs in a circle.
_MOST_HOPS = 8
#: With AES instructions this takes a quarter of ChaCha20's time, which is the first choice of OpenSSH and asyncssh.
_FASTEST = "aes128-gcm@openssh.com"
#: Targets of which some boards have no such instructions: Cortex-A7 and A9, and Raspberry Pi before the 5.
_WITHOUT_AES = frozenset({"arm64", "armv7", "pynq"})
_USER_CONFIG = "~/.ssh/config"


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way: how to log in to it, and who it must prove to be."""

    #: ``user@host:port`` as it was resolved.
    name: str
    #: The name that the configuration goes by.
    alias: str
    options: Any  # asyncssh.SSHClientConnectionOptions
    host_keys: HostKeys
    #: What ``ProxyJump`` names, in the order of the way.
    jump: tuple[str, ...]


async def route(device: Device) -> list[Hop]:
    """The servers on the way to a device, itself last. Raises FleetError ``ssh-config``, ``bad-ssh``."""
    last = await _hop(Destination.parse(device.ssh), device, identity=device.ssh_identity)
    return [*await _before(last, device, _MOST_HOPS), last]


async def _before(hop: Hop, device: Device, depth: int) -> list[Hop]:
    """The way to a server, by its own ``ProxyJump``; of several jump hosts, the first may have one itself."""
    # OpenSSH: a server that is its own jump host, as by `Host *`, is reached directly.
    if not hop.jump or hop.jump[-1].rpartition("@")[2].partition(":")[0] == hop.alias:
        return []
    if depth <= len(hop.jump):
        raise FleetError(
            f"the way to {device.ssh} has more than {_MOST_HOPS} jump hosts",
            code="ssh-config",
            hint="does ProxyJump lead in a circle? `ProxyJump none` for the jump host ends it",
        )
    hops = [await _hop(Destination.parse(text.strip()), device, identity="") for text in hop.jump]
    return [*await _before(hops[0], device, depth - len(hops)), *hops]


async def _hop(to: Destination, device: Device, *, identity: str) -> Hop:
    """What is configured for one server. An ``identity`` is the only key that is offered, by itself or its agent."""
    given: dict[str, Any] = {
        "config": _configs(device),
        "host": to.host,
        "port": to.port or (),
        "username": to.user or (),
        # Never anybody to answer a question: keys and agents only, and encrypted keys are left to an agent.
        "password_auth": False,
        "kbdint_auth": False,
        "ignore_encrypted": True,
        # The board gets nothing of ours, whatever the configuration says.
        "agent_forwarding": False,
        "x11_forwarding": False,
        "keepalive_interval": HEARTBEAT_INTERVAL,
        "keepalive_count_max": round(SUSPECT_AFTER / HEARTBEAT_INTERVAL),
        "known_hosts": (lambda *_: ([],) * 7),
    }
    if identity:
        given["client_keys"] = [identity]
        given["agent_identities"] = await asyncio.to_thread(_public_of, identity)
    options = await _resolved(given, device)
    config = options.config
    host_keys = await asyncio.to_thread(
        HostKeys,
        known_hosts.files(device.ssh_known_hosts, config.get("UserKnownHostsFile"), config.get("GlobalKnownHostsFile")),
        options.host,
        options.port,
        options.host_key_alias or "",
    )
    more: dict[str, Any] = {"known_hosts": host_keys.match}
    if config.get("HostKeyAlgorithms") is None:
        more["server_host_key_algs"] = host_keys.algorithms
    if config.get("Ciphers") is None and device.target not in _WITHOUT_AES:
        more["encryption_algs"] = f"^{_FASTEST}"
    resolved = Destination(host=options.host, user=options.username, port=options.port)
    return Hop(
        name=str(resolved if options.port != 22 else replace(resolved, port=0)),
        alias=to.host,
        options=await _resolved({**given, **more}, device),
        host_keys=host_keys,
        jump=tuple((options.tunnel or "").split(",")) if options.tunnel else (),
    )


async def _resolved(given: dict[str, Any], device: Device) -> Any:
    try:
        # In a thread: it reads files, and the configuration may run commands.
        return await asyncssh.SSHClientConnectionOptions.construct(None, **given)
    except (OSError, ValueError, asyncssh.Error, asyncssh.KeyImportError) as error:
        raise FleetError(
            f"cannot use the SSH configuration for {device.ssh}: {printable(str(error))}",
            code="ssh-config",
            hint="`ssh -G HOST` prints what OpenSSH makes of it",
        ) from None


def _configs(device: Device) -> list[str]:
    """Files to read. One that the inventory names must be there; the user's need not."""
    path = Path(device.ssh_config or _USER_CONFIG).expanduser()
    return [str(path)] if device.ssh_config or path.exists() else []


def _public_of(identity: str) -> list[Any]:
    """The public half of a private key, by which an agent is asked for it; none when there is no ``.pub`` file."""
    try:
        return [asyncssh.read_public_key(f"{identity}.pub")]
    except (OSError, asyncssh.KeyImportError):
        return []
