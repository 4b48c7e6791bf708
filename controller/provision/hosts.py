"""The inventory as Ansible takes it: how each board is reached, and what its agent is to be told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import targets
from controller.home import Home
from controller.inventory import Device
from controller.provision.wheels import digest
from controller.ssh.destination import Destination
from targets.base import FleetError
from targets.keys import Keys

_RPC_ANY = "0"


def dynamic(devices: Iterable[Device], keys: Keys, home: Home) -> dict[str, Any]:
    """The document of a dynamic inventory: groups by target (``target_arm64``) and label (``label_room_lab``).

    Boards without an SSH server and simulated ones are left out: nothing can be done about them in this way.
    """
    hostvars = {device.name: variables(device, keys, home) for device in devices if not unreachable(device)}
    groups: dict[str, Any] = {}
    for device in devices:
        if device.name in hostvars:
            labels = [f"label_{key}_{value}" for key, value in device.labels.items()]
            for name in (f"target_{device.target}", *labels):
                # Ansible takes names that could be a variable's.
                group = groups.setdefault(re.sub(r"\W", "_", name, flags=re.ASCII), {"hosts": []})
                if device.name not in group["hosts"]:
                    group["hosts"].append(device.name)
    everybody = {"hosts": list(hostvars), "children": sorted(groups)}
    return {"_meta": {"hostvars": hostvars}, "all": everybody, **groups}


def unreachable(device: Device) -> str:
    """Why Ansible cannot work on a device, in words; empty when it can."""
    if device.simulated:
        return "it is a simulated board: `fleet sim` starts its agent"
    if not device.ssh:
        return "its entry in fleet.yaml has no ssh, by which it could be reached"
    return ""


def variables(device: Device, keys: Keys, home: Home) -> dict[str, Any]:
    """Ansible's variables of a device. Raises FleetError ``bad-ssh``."""
    to = Destination.parse(device.ssh)
    given: dict[str, Any] = {
        "ansible_host": to.host,
        "ansible_ssh_common_args": shlex.join(_options(device)),
        "fleet_name": device.name,
        "fleet_target": device.target,
        "fleet_curve_public": keys.curve_public.decode(),
        "fleet_signing_public": keys.signing_public,
        "fleet_signing_key_id": keys.key_id,
        # The playbooks take what targets bring for their boards from where this program has it.
        "fleet_targets_path": str(Path(targets.__file__).parent),
        "fleet_bitstreams": _bitstreams(device, home),
        **_listening(device),
    }
    if to.port:
        given["ansible_port"] = to.port
    if to.user:
        given["ansible_user"] = to.user
    if to.user == "root":
        given["ansible_become"] = False
    if device.ssh_identity:
        given["ansible_ssh_private_key_file"] = str(Path(device.ssh_identity).expanduser())
    if device.agent_home:
        given["fleet_home"] = _home(device)
    return given


def _options(device: Device) -> list[str]:
    """What is checked and used as by `controller.ssh`: no key is taken that is not known, nobody is asked."""
    options = ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ForwardAgent=no"]
    if device.ssh_config:
        options = ["-F", str(Path(device.ssh_config).expanduser()), *options]
    if device.ssh_known_hosts:
        options += ["-o", f"UserKnownHostsFile={Path(device.ssh_known_hosts).expanduser()}"]
    if device.ssh_identity:
        options += ["-o", "IdentitiesOnly=yes"]
    return options


def _listening(device: Device) -> dict[str, Any]:
    """Where the agent listens: on loopback, but for what the inventory says is reached directly."""
    direct = "ssh" not in device.link
    address = device.address.removeprefix("tcp://") if direct else ""
    rpc = device.rpc if direct else ""
    open_ports = [int(endpoint.rpartition(":")[2]) for endpoint in (address, rpc) if endpoint]
    return {
        "fleet_listen": f"tcp://0.0.0.0:{address.rpartition(':')[2]}" if address else "tcp://127.0.0.1:0",
        "fleet_rpc_host": "0.0.0.0" if rpc else "127.0.0.1",
        "fleet_rpc_port": rpc.rpartition(":")[2] if rpc else _RPC_ANY,
        "fleet_rpc_key": device.rpc_key,
        "fleet_tracker": device.tracker if device.rpc_key else "",
        "fleet_open_ports": open_ports,
    }


def _home(device: Device) -> str:
    if not device.agent_home.startswith("/var/lib/fleet/"):
        raise FleetError(
            f"the agent of {device.name} cannot have its home in {device.agent_home}",
            code="bad-agent-home",
            hint="leave `agent: {home: …}` out of its entry, or name a directory below /var/lib/fleet",
        )
    return device.agent_home


def static(document: dict[str, Any], more: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The same as a file that Ansible's YAML plug-in reads, with ``more`` variables for each host."""
    hosts = {name: {**found, **more.get(name, {})} for name, found in document["_meta"]["hostvars"].items()}
    groups = document["all"]["children"]
    children: dict[str, Any] = {name: {"hosts": {host: {} for host in document[name]["hosts"]}} for name in groups}
    return {"all": {"hosts": hosts, "children": children}}


def _bitstreams(device: Device, home: Home) -> list[dict[str, str]]:
    """The published bitstreams of a board with VTA that lie in the cache, each with its SHA-256: it keeps them, too."""
    from bitstreams import fetch, manifest

    found = []
    for known in manifest.known():
        if known.board == device.target and (path := fetch.cached(known, home.cache / "bitstreams")) is not None:
            found.append({"path": str(path), "sha256": digest(path)})
    return found
