"""What lies in the home of a board's agent: whether it runs, on which ports, and whom it lets in.

Read as files where the board has SFTP: a login's shell costs a slow board, or one with a long ``.bashrc``, more than
all else that comes before a push. A shell is asked where files do not tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

import asyncssh
import msgspec

from controller.inventory import Device
from controller.printable import printable
from controller.ssh.session import SshSession
from targets.base import FleetError
from targets.waiting import within

LOOK_DEADLINE = 20.0
_MARK = "fleet-agent-look"
# Z85, and what printable names and paths are.
_PUBLIC = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,32}")
#: Where `fleet provision` writes what an agent's environment is.
_ENVIRONMENT = "/etc/fleet/agent.env"
_HOME_LINE = re.compile(rb'^FLEET_AGENT_HOME="(.*)"$', re.M)
_DEFAULT_HOME = ".local/share/fleet-agent"
_MOST_BYTES = 64 << 10
_MOST_KEYS = 64

# Argument: the agent's home, or nothing. Prints the home, whether it can be read, whether the process of agent.json
# lives, agent.json itself, and the keys in authorized/ and trusted/, in sections.
_LOOK = """\
home=${1:-${FLEET_AGENT_HOME:-$(sed -n 's/^FLEET_AGENT_HOME="\\(.*\\)"$/\\1/p' /etc/fleet/agent.env 2>/dev/null)}}
home=${home:-$HOME/.local/share/fleet-agent}
case $home in "~/"*) home=$HOME/${home#"~/"};; esac
mark=$2; at=$home/agent.json
echo "$home"
if [ -d "$home" ] && [ ! -x "$home" ] || [ -e "$at" ] && [ ! -r "$at" ]; then echo denied; exit; fi
pid=$(sed -n 's/^ *"pid": *\\([0-9]*\\),*$/\\1/p' "$at" 2>/dev/null | head -n 1)
if [ -n "$pid" ] && { kill -0 "$pid" 2>/dev/null || [ -d "/proc/$pid" ]; }; then echo alive; else echo none; fi
echo "$mark"; head -c 65536 "$at" 2>/dev/null
for keys in authorized trusted; do
  echo; echo "$mark"
  for key in "$home/$keys"/*.pub; do [ -f "$key" ] && head -c 4096 "$key" && echo; done
done
exit 0
"""


class RemoteAgent(msgspec.Struct, kw_only=True, frozen=True):
    """An agent that runs on a board: its ports are on the board's loopback."""

    name: str
    target: str
    pid: int
    port: int
    #: Of its TVM RPC listener; 0 when it has none.
    rpc_port: int
    #: Its CURVE public key in Z85: read over an authenticated connection, so it needs no line in the inventory.
    public: str
    home: str
    version: str


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """What lies in an agent's home."""

    home: str
    agent: RemoteAgent | None
    authorized: frozenset[str]
    trusted: frozenset[str]


async def look(session: SshSession, device: Device) -> Found:
    """Raises FleetError ``agent-home``, ``agent-missing``, ``agent-failed``, and as `SshSession.run` does."""
    return await _read(session, device) or await _ask(session, device)


# --- Files --------------------------------------------------------------------------------------


async def _read(session: SshSession, device: Device) -> Found | None:
    """What files tell of an agent that runs; None where they do not: then a shell can say why."""
    sftp = None
    try:
        sftp = await within(LOOK_DEADLINE, session.connection.start_sftp_client())
        return await within(LOOK_DEADLINE, _read_home(sftp, device))
    except (asyncssh.Error, OSError, asyncio.TimeoutError, FleetError):
        return None
    finally:
        if sftp is not None:
            sftp.exit()


async def _read_home(sftp: Any, device: Device) -> Found | None:
    home = await _home(sftp, device.agent_home)
    if not PurePosixPath(home).is_absolute():
        return None
    agent = _parsed((await _content(sftp, f"{home}/agent.json")).decode(errors="replace"), home, device)
    if not await sftp.exists(f"/proc/{agent.pid}"):
        return None
    authorized, trusted = await asyncio.gather(*(_keys(sftp, f"{home}/{keys}") for keys in ("authorized", "trusted")))
    return Found(home=home, agent=agent, authorized=authorized, trusted=trusted)


async def _home(sftp: Any, given: str) -> str:
    """The agent's home: what the inventory says, what the board was provisioned with, or where it is by default."""
    if not given:
        with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied):
            line = _HOME_LINE.search(await _content(sftp, _ENVIRONMENT))
            given = line[1].decode(errors="replace") if line else ""
    given = given or f"~/{_DEFAULT_HOME}"
    # Relative names are of the login's own directory.
    return f"{await sftp.realpath('.')}/{given[2:]}" if given.startswith("~/") else given


async def _keys(sftp: Any, folder: str) -> frozenset[str]:
    try:
        names = [name for name in await sftp.listdir(folder) if name.endswith(".pub")]
    except asyncssh.SFTPNoSuchFile:
        return frozenset()
    if len(names) > _MOST_KEYS:
        raise OSError("too many keys")
    texts = await asyncio.gather(*(_content(sftp, f"{folder}/{name}") for name in names))
    return frozenset(word for text in texts for word in text.decode(errors="replace").split())


async def _content(sftp: Any, path: str) -> bytes:
    """The first bytes of a file, by one request."""
    async with sftp.open(path, asyncssh.FXF_READ, encoding=None, block_size=0) as file:
        return bytes(await file.read(_MOST_BYTES, 0))


# --- A shell ------------------------------------------------------------------------------------


async def _ask(session: SshSession, device: Device) -> Found:
    done = await session.run(["sh", "-c", _LOOK, "look", device.agent_home, _MARK], deadline=LOOK_DEADLINE)
    # A home's name is the first line; nobody's key or JSON holds the mark.
    head, *sections = done.stdout.split(f"{_MARK}\n")
    lines = head.splitlines()
    if len(lines) >= 2 and lines[1] == "denied":
        raise FleetError(
            f"the agent's directory {printable(lines[0])} on {device.name} cannot be read as {session}",
            code="agent-home",
            hint="log in as who runs the agent, or name another directory: `agent: {home: …}` in fleet.yaml",
        )
    if len(lines) < 2 or len(sections) != 3 or not lines[0].startswith("/"):
        words = printable((done.stderr.strip() or done.stdout.strip())[-300:])
        raise FleetError(
            f"{device.name} ({session}) has no POSIX shell that can be used: {words or 'it said nothing'}",
            code="agent-missing",
        )
    info, authorized, trusted = sections
    return Found(
        home=lines[0],
        agent=_parsed(info, lines[0], device) if lines[1] == "alive" else None,
        authorized=frozenset(authorized.split()),
        trusted=frozenset(trusted.split()),
    )


def _parsed(text: str, home: str, device: Device) -> RemoteAgent:
    """``agent.json``, checked. Raises FleetError ``agent-failed``."""
    try:
        info = msgspec.convert({**json.loads(text), "home": home}, RemoteAgent)
        fits = 0 < info.port < 65536 and 0 <= info.rpc_port < 65536
        if fits and _PUBLIC.fullmatch(info.public) and _VERSION.fullmatch(info.version):
            return info
    except (ValueError, TypeError):
        pass
    raise FleetError(
        f"{printable(home)}/agent.json on {device.name} is not what an agent writes",
        code="agent-failed",
        hint="remove it, and the agent is started anew",
    )
