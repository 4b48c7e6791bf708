"""The agent of a board, over SSH: found by the file it writes, started when it does not run, told whom to let in.

Who has a shell on the board may do all of this; nothing of it goes beyond what the login is allowed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from controller.inventory import Device
from controller.printable import printable
from controller.ssh.look import LOOK_DEADLINE, Found, RemoteAgent, look
from controller.ssh.session import SshSession
from targets.base import FleetError

if TYPE_CHECKING:
    from targets.keys import Keys

#: Seconds until a started agent answers: Python on a board of 2012 takes ten.
START_DEADLINE = 60.0
_POLL = 0.3
_PROGRAM = "fleet-agent"

# Argument: a program. Prints where it is: the PATH of a command over SSH is short.
_WHERE = """\
case $1 in "~/"*) set -- "$HOME/${1#"~/"}";; esac
for place in "" "$HOME/.local/bin/" /opt/fleet/agent/bin/ /opt/fleet/bin/ /usr/local/bin/; do
  at=$(command -v "$place$1" 2>/dev/null) && { echo "$at"; exit 0; }
  case $1 in */*) exit 127;; esac
done
exit 127
"""

# Arguments: seconds, the agent's home, what starts it. A service is preferred, the one of `fleet provision` or the
# user's own: it is there again after a reboot, and a provisioned agent has a user of its own.
# Else the agent is a session of its own, which outlives this connection. Waits for another agent.json than before; ends
# with 125 and the agent's words when it ended badly, with 124 when the time was over.
_START = """\
limit=$1 home=$2 pid=; shift 2
umask 077
mkdir -p "$home" || exit 126
log=$home/start.log; before=$(cat "$home/agent.json" 2>/dev/null); : >"$log" || exit 126
if [ -x /opt/fleet/activate ] && grep -qxF "FLEET_AGENT_HOME=\\"$home\\"" /etc/fleet/agent.env 2>/dev/null; then
  set -- /opt/fleet/run-agent start
  [ ! -d /run/systemd/system ] || set -- systemctl start fleet-agent.service
  [ "$(id -u)" = 0 ] || set -- sudo -n "$@"
  "$@" >"$log" 2>&1 || { cat "$log"; exit 125; }
elif command -v systemctl >/dev/null && systemctl --user cat fleet-agent.service >/dev/null 2>&1; then
  systemctl --user start fleet-agent.service >"$log" 2>&1 || { cat "$log"; exit 125; }
else
  setsid nohup "$@" </dev/null >"$log" 2>&1 &
  pid=$!
fi
end=$(($(date +%s) + limit))
while now=$(cat "$home/agent.json" 2>/dev/null); [ -z "$now" ] || [ "$now" = "$before" ]; do
  if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then
    wait "$pid" || { tail -c 2000 "$log"; exit 125; }
    pid=
  fi
  [ "$(date +%s)" -lt "$end" ] || { tail -c 2000 "$log"; exit 124; }
  sleep 0.2 2>/dev/null || sleep 1
done
"""


async def find_agent(
    session: SshSession, device: Device, *, keys: Keys | None = None, start: bool = True
) -> RemoteAgent:
    """The agent of a board, which is started when it does not run, and told to let ``keys`` in.

    Raises FleetError ``agent-missing`` when none is installed, ``agent-not-running`` when it may not be started,
    ``agent-failed`` with its own words when it does not start, ``agent-home`` for a home that this login cannot read,
    ``wrong-key`` when the inventory gives another key for it.
    """
    found = await look(session, device)
    agent = found.agent
    runs = agent is not None and await _answers(session, agent)
    if not runs:
        program = await _program(session, device, device.agent_command[0] if device.agent_command else _PROGRAM)
        if not start:
            raise FleetError(
                f"the agent of {device.name} does not run ({printable(found.home)} on {session})",
                code="agent-not-running",
                hint="`fleet deploy`, and whatever else uses the board, starts it",
            )
    if keys is not None and not _admitted(found, keys):
        await _authorize(session, device, found.home, keys)
    if agent is None or not runs:
        agent = await _start(session, device, found.home, program)
    if device.key and device.key != agent.public:
        raise FleetError(
            f"the agent of {device.name} does not hold the key that the inventory gives for it",
            code="wrong-key",
            hint="remove `key` from its entry: over SSH it is read from the board itself",
        )
    return agent


async def _answers(session: SshSession, agent: RemoteAgent) -> bool:
    """Whether somebody listens: after a power cut, agent.json may be there and its process number another's."""
    try:
        await session.forward(agent.port)
    except FleetError as error:
        if error.code != "no-listener":
            raise
        return False
    return True


# --- Starting -----------------------------------------------------------------------------------


async def _start(session: SshSession, device: Device, home: str, program: str) -> RemoteAgent:
    options = ("run", "--target", device.target, "--name", device.name, "--home", home)
    command = (program, *(device.agent_command[1:] if device.agent_command else options))
    argv = ["sh", "-c", _START, "start", f"{START_DEADLINE:.0f}", home, *command]
    done = await session.run(argv, deadline=START_DEADLINE + LOOK_DEADLINE)
    deadline = time.monotonic() + LOOK_DEADLINE
    while True:
        agent = (await look(session, device)).agent
        if agent is not None and await _answers(session, agent):
            return agent
        # Of two controllers that start it at once, one is told so by the agent's lock, and waits for the other's.
        if (done.status and "already" not in done.stdout) or time.monotonic() > deadline:
            raise _failed(device, home, done.stdout.strip() or done.stderr.strip())
        await asyncio.sleep(_POLL)


async def _program(session: SshSession, device: Device, name: str) -> str:
    """Where a program is on the board. Raises FleetError ``agent-missing``."""
    done = await session.run(["sh", "-c", _WHERE, "where", name], deadline=LOOK_DEADLINE)
    at = done.stdout.strip()
    if done.status or not at.startswith("/"):
        raise FleetError(
            f"no agent is installed on {device.name} ({session}): there is no program {printable(name)}",
            code="agent-missing",
            hint="install it: `pip install fleet-edge` on the board; or say where it is: `agent: {command: […]}`",
        )
    return at


async def _authorize(session: SshSession, device: Device, home: str, keys: Keys) -> None:
    """Have the agent let this controller in, by the agent's own program: the format of its files is its own."""
    # `python -m agent.main run …` authorizes as `python -m agent.main authorize …`; of `systemctl start …` nothing is
    # known, and the program is where it usually is.
    given = device.agent_command
    before = given[: given.index("run")] if "run" in given else (_PROGRAM,)
    program = (await _program(session, device, before[0]), *before[1:])
    words = ("authorize", "--home", home, keys.curve_public.decode(), keys.signing_public)
    done = await session.run([*program, *words], deadline=START_DEADLINE)
    if done.status:
        said = printable((done.stderr.strip() or done.stdout.strip())[-500:]) or f"status {done.status}"
        raise FleetError(
            f"this controller's keys could not be authorized on {device.name}: {said}",
            code="agent-failed",
            hint="on the board: `fleet-agent authorize` with the two keys that `fleet keys` prints",
        )


def _admitted(found: Found, keys: Keys) -> bool:
    """Whether the agent lets us in and takes what we sign; with nobody in ``trusted`` it takes anybody's."""
    signs = not found.trusted or keys.signing_public in found.trusted
    return keys.curve_public.decode() in found.authorized and signs


def _failed(device: Device, home: str, words: str) -> FleetError:
    said = printable(words[-500:]) or f"it was not ready after {START_DEADLINE:.0f} s"
    return FleetError(
        f"the agent of {device.name} does not start: {said}",
        code="agent-failed",
        hint=f"more may be in {printable(home)}/agent.log on the board",
    )
