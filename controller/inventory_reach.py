"""How a device of the inventory is reached: its agent's socket, SSH, TVM RPC, a tracker; and which of them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml.comments import CommentedMap

from controller.inventory_values import Values, is_endpoint, line_of, plain
from controller.ssh.destination import Destination
from targets.base import FleetError, Link

#: What stands in a device's entry.
KEYS = ("address", "key", "ssh", "agent", "link", "rpc", "tracker", "rpc_key")
_SSH = ("to", "config", "identity", "known_hosts")
_AGENT = ("home", "command")

# The alphabet of Z85, ZeroMQ's way to write a CURVE key.
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


def reach(values: Values, node: CommentedMap, where: str, line: int, tracker: str) -> dict[str, Any]:
    """The fields of a `Device` that say how it is reached; ``tracker`` is everybody's. Mistakes go to ``values``."""
    given: dict[str, Any] = {**_socket(values, node, where, line), **_rpc(values, node, where, tracker)}
    given |= _ssh(values, node, where)
    given |= _agent(values, node, where)
    link = given["link"] = values.string(node, "link", where)
    if link and link not in get_args(Link):
        values.wrong(line_of(node, "link"), f"{where}: link must be {', '.join(get_args(Link))}, not '{link}'")
        given["link"] = ""
    elif "ssh" in link and not given["ssh"]:
        values.wrong(line_of(node, "link"), f"{where}: link '{link}' needs ssh, where its SSH server is: user@host")
    elif link == "rpc" and not (given["rpc"] or given["tracker"]):
        values.wrong(line_of(node, "link"), f"{where}: link 'rpc' needs rpc, or tracker with rpc_key")
    if not any(given[way] for way in ("address", "ssh", "rpc", "tracker")):
        ways = "address (with key), ssh, rpc, or tracker with rpc_key"
        values.wrong(line, f"{where}: no way to reach it; give {ways}")
    return given


def _socket(values: Values, node: CommentedMap, where: str, line: int) -> dict[str, str]:
    address = values.string(node, "address", where)
    if address and not (address.startswith("tcp://") and is_endpoint(address.removeprefix("tcp://"))):
        values.wrong(line_of(node, "address"), f"{where}: address must be tcp://HOST:PORT, not '{address}'")
    key = values.string(node, "key", where)
    if key and not _KEY.fullmatch(key):
        values.wrong(line_of(node, "key"), f"{where}: key must be 40 characters of Z85; `fleet-agent show` prints it")
    if address and not key:
        values.wrong(line, f"{where}: an address needs the agent's key; `fleet-agent show` on the board prints it")
    return {"address": address, "key": key}


def _rpc(values: Values, node: CommentedMap, where: str, tracker: str) -> dict[str, str]:
    rpc = values.endpoint(node, "rpc", where)
    own = values.endpoint(node, "tracker", where)
    rpc_key = values.string(node, "rpc_key", where)
    if own and not rpc_key:
        values.wrong(line_of(node, "tracker"), f"{where}: a tracker needs rpc_key, the board's name at the tracker")
    return {"rpc": rpc, "tracker": own or (tracker if rpc_key else ""), "rpc_key": rpc_key}


def _ssh(values: Values, node: CommentedMap, where: str) -> dict[str, str]:
    """``ssh: user@host``, or a mapping with files of its own: absolute, from ``~``, or beside the inventory."""
    if isinstance(node.get("ssh"), CommentedMap):
        inner, at = values.mapping(node["ssh"], line_of(node, "ssh"), f"{where}: ssh", _SSH), f"{where}: ssh"
        to = values.string(inner, "to", at, required=line_of(node, "ssh"))
        line = line_of(inner, "to", line_of(node, "ssh"))
        files = {key: values.string(inner, key, at) for key in _SSH[1:]}
    else:
        to, line, files = values.string(node, "ssh", where), line_of(node, "ssh"), dict.fromkeys(_SSH[1:], "")
    if to:
        try:
            Destination.parse(to)
        except FleetError as error:
            values.wrong(line, f"{where}: ssh: {error.message}")
    return {"ssh": to, **{f"ssh_{key}": _file(values.path, file) for key, file in files.items()}}


def _file(inventory: Path, name: str) -> str:
    if not name:
        return ""
    with contextlib.suppress(RuntimeError):  # somebody's home whom nobody knows: said when the file is needed
        return str(inventory.absolute().parent / Path(name).expanduser())
    return name


def _agent(values: Values, node: CommentedMap, where: str) -> dict[str, Any]:
    if node.get("agent") is None:
        return {"agent_home": "", "agent_command": ()}
    if node.get("ssh") is None:
        values.wrong(line_of(node, "agent"), f"{where}: agent is for what is reached over SSH; there is no ssh")
    inner = values.mapping(node["agent"], line_of(node, "agent"), f"{where}: agent", _AGENT)
    home = values.string(inner, "home", f"{where}: agent")
    if home and not home.startswith(("/", "~/")):
        values.wrong(line_of(inner, "home"), f"{where}: agent: home must be absolute, or begin with ~/: '{home}'")
    command = plain(inner.get("command") or [])
    if not isinstance(command, list) or not all(isinstance(word, str) and word for word in command):
        words = "command must be a list of words, such as [/opt/fleet/bin/fleet-agent, run, --target, jetson]"
        values.wrong(line_of(inner, "command"), f"{where}: agent: {words}")
        command = []
    return {"agent_home": home, "agent_command": tuple(command)}


def written(values: dict[str, Any]) -> dict[str, Any]:
    """A `Device`'s fields as a mapping for YAML: the entry's keys, in the order in which a person reads them."""
    files = {key: values[f"ssh_{key}"] for key in _SSH[1:] if values[f"ssh_{key}"]}
    agent = {"home": values["agent_home"], "command": list(values["agent_command"])}
    ssh = {"to": values["ssh"], **files} if files else values["ssh"]
    return {**values, "ssh": ssh, "agent": {key: value for key, value in agent.items() if value}}
