"""Simulated boards: real agents on this machine, each in a folder of its own below ``HOME/sim``.

``board.json`` in that folder is the registry's entry; ``agent.json`` beside it is the agent's own and tells its ports.
Boards of a target that is reached over SSH have an SSH server each, and are devices that nothing else reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from controller import sim_process, sim_ssh
from controller.home import Home
from controller.inventory import Device
from controller.sim_process import Process
from targets.base import FleetError, HardwareTarget, Link, LinkedTarget, PreparedTarget, Target, find
from targets.keys import Keys
from targets.waiting import within

#: Seconds that an agent may take from its start until it can be reached; sixteen at once on two cores need ten.
_START_DEADLINE = 60.0
#: What an agent exits with when it was called wrongly.
_USAGE_STATUS = 2
_LOG = "output.log"


class SimBoard(msgspec.Struct, kw_only=True):
    """One simulated board, as ``fleet sim status --json`` prints it."""

    name: str
    target: str
    state: Literal["running", "dead"]
    pid: int
    port: int = 0
    rpc_port: int = 0
    #: Of a board that is reached over SSH: ``user@host:port``.
    ssh: str = ""
    faults: list[str] = []
    tracker: str = ""
    log: str = ""
    simulated: bool = True


class _Entry(msgspec.Struct, kw_only=True):
    """What ``board.json`` holds. ``pid`` and ``created`` are of the agent that was started last, as far as is known."""

    name: str
    target: str
    faults: list[str] = []
    tracker: str = ""
    pid: int = 0
    created: float = 0.0
    link: Link | Literal[""] = ""
    #: Variables that its agent needs beside a login's own.
    environment: dict[str, str] = {}
    server: sim_ssh.Server | None = None

    @property
    def agent(self) -> Process:
        return Process(pid=self.pid, created=self.created)

    @property
    def alive(self) -> bool:
        return self.agent.alive and (self.server is None or self.server.process.alive)

    @property
    def over_ssh(self) -> bool:
        return "ssh" in self.link


def up(
    home: Home,
    count: int,
    target: str = "x86",
    faults: Sequence[str] = (),
    tracker: tuple[str, int] | None = None,
    prefix: str = "sim",
) -> list[SimBoard]:
    """Have ``count`` boards of this kind running, and return them.

    What runs already is left alone, what died is started again with its store, what is missing is added under the next
    free name. Raises FleetError ``sim-failed`` with the end of the log when an agent does not start, ``usage`` when it
    refused what it was told, such as a fault that there is not, and ``no-sshd`` when its boards need an SSH server.
    """
    kind = find(target)
    if isinstance(kind, HardwareTarget) and (lacking := kind.lacking()):
        raise FleetError(
            f"nothing simulates boards of target '{target}', and here is none: {lacking}", code="sim-failed"
        )
    link = kind.link if isinstance(kind, LinkedTarget) else ""
    if "ssh" in link:
        sim_ssh.program()
    at = f"{tracker[0]}:{tracker[1]}" if tracker else ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", prefix):
        raise FleetError(f"boards may not be named '{prefix}-1'", code="usage")
    keys = Keys(home.keys)
    with _locked(home):
        entries = _known(home)
        alike = [
            e
            for e in entries
            if (e.target, e.faults, e.tracker) == (target, list(faults), at) and e.name.rpartition("-")[0] == prefix
        ]
        taken = {e.name for e in entries}
        names = (name for n in range(1, 10_000) if (name := f"{prefix}-{n}") not in taken)
        added = [
            _Entry(name=next(names), target=target, faults=list(faults), tracker=at, link=link)
            for _ in range(count - len(alike))
        ]
        wanted = (alike + added)[:count]
        for entry in wanted:
            if entry.over_ssh and not (entry.server and entry.server.process.alive):
                port = entry.server.port if entry.server else 0
                entry.server = sim_ssh.start(home.sim / entry.name / "ssh", port)
                _save(home, entry)
        starting = [entry for entry in wanted if not entry.agent.alive]
        for entry in starting:
            _start(home, keys, entry, kind)
        failures = _await(home, starting)
        for failure in failures:
            _end([failure.entry])
            if failure.entry in added:
                shutil.rmtree(home.sim / failure.entry.name, ignore_errors=True)
        if failures:
            raise FleetError(
                "\n".join(f"the simulated board '{one.entry.name}' did not start: {one.why}" for one in failures),
                code="usage" if all(one.refused for one in failures) else "sim-failed",
            )
        return [_board(home, entry) for entry in wanted]


def down(home: Home, names: Sequence[str] = ()) -> list[str]:
    """End boards (all of them by default), remove what they stored, and return their names.

    Raises FleetError ``unknown-device``.
    """
    with _locked(home):
        entries = _known(home)
        known = [entry.name for entry in entries]
        for name in names:
            if name not in known:
                from controller.inventory import suggest

                raise FleetError(
                    f"there is no simulated board '{name}'", code="unknown-device", hint=suggest(name, known)
                )
        chosen = [entry for entry in entries if not names or entry.name in names]
        running = [entry for entry in chosen if entry.agent.alive]
        asyncio.run(_ask_to_end(home, running))
        sim_process.left_after([entry.agent for entry in running])
        for entry in _end(chosen):
            raise FleetError(
                f"the simulated board '{entry.name}' (process {entry.pid}) does not end", code="sim-failed"
            )
        for entry in chosen:
            shutil.rmtree(home.sim / entry.name, ignore_errors=True)
        return [entry.name for entry in chosen]


def status(home: Home) -> list[SimBoard]:
    """All simulated boards of this machine."""
    return [_board(home, entry) for entry in _known(home)]


def devices(home: Home) -> list[Device]:
    """The boards as devices. Quick, and without looking whether they run."""
    return [_over_ssh(home, entry) if entry.server else _local(home, entry) for entry in _entries(home)]


def _local(home: Home, entry: _Entry) -> Device:
    """A board as a device of this machine."""
    info = _agent_info(home, entry)
    return Device(
        name=entry.name,
        target=entry.target,
        address=f"tcp://127.0.0.1:{info['port']}" if info else "",
        key=str(info.get("public", "")),
        rpc=f"127.0.0.1:{info['rpc_port']}" if info.get("rpc_port") else "",
        # All of them compete for this machine's cores.
        host="127.0.0.1",
        simulated=True,
        folder=str(home.sim / entry.name),
    )


def _over_ssh(home: Home, entry: _Entry) -> Device:
    """A board as a device that only its SSH server leads to, which tells all else."""
    folder = home.sim / entry.name
    environment = [f"{name}={value}" for name, value in sorted(entry.environment.items())]
    # It is written down together with its server.
    assert entry.server is not None
    return Device(
        name=entry.name,
        target=entry.target,
        host="127.0.0.1",
        simulated=True,
        link=entry.link,
        agent_home=str(folder),
        agent_command=("env", *environment, *_command(folder, entry)),
        **sim_ssh.fields(folder / "ssh", entry.server),
    )


# --- The registry -------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    home.sim.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home.sim / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries(home: Home) -> list[_Entry]:
    """In the order of their numbers. What cannot be read is no board."""
    found = []
    for file in home.sim.glob("*/board.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode(file.read_bytes(), type=_Entry))
    return sorted(found, key=lambda entry: (entry.name.rpartition("-")[0], _number(entry.name), entry.name))


def _known(home: Home) -> list[_Entry]:
    """As `_entries`, with the agents that run now: one that has died is started again over SSH, by whoever needs it."""
    entries = _entries(home)
    for entry in entries:
        pid = _agent_info(home, entry).get("pid")
        if isinstance(pid, int) and pid != entry.pid and not entry.agent.alive:
            process = sim_process.find(pid, ["agent.main", str(home.sim / entry.name)])
            if process.alive:
                entry.pid, entry.created = process.pid, process.created
    return entries


def _save(home: Home, entry: _Entry) -> None:
    folder = home.sim / entry.name
    temporary = folder / ".board.json"
    temporary.write_bytes(msgspec.json.encode(entry))
    temporary.replace(folder / "board.json")


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _agent_info(home: Home, entry: _Entry) -> dict[str, object]:
    """What the agent tells about itself; empty when there is none."""
    try:
        info = json.loads((home.sim / entry.name / "agent.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) and isinstance(info.get("port"), int) else {}


def _board(home: Home, entry: _Entry) -> SimBoard:
    alive = entry.alive
    info = _agent_info(home, entry) if alive else {}
    port, rpc_port = info.get("port"), info.get("rpc_port")
    return SimBoard(
        name=entry.name,
        target=entry.target,
        state="running" if alive else "dead",
        pid=entry.pid,
        port=port if isinstance(port, int) else 0,
        rpc_port=rpc_port if isinstance(rpc_port, int) else 0,
        ssh=sim_ssh.fields(home.sim / entry.name / "ssh", entry.server)["ssh"] if entry.server else "",
        faults=entry.faults,
        tracker=entry.tracker,
        log=str(home.sim / entry.name / _LOG),
    )


# --- Processes ----------------------------------------------------------------------------------


def _start(home: Home, keys: Keys, entry: _Entry, kind: Target) -> None:
    folder = home.sim / entry.name
    for what, key in (("authorized", keys.curve_public.decode()), ("trusted", keys.signing_public)):
        (folder / what).mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / what / "controller.pub").write_text(key + "\n")
    if isinstance(kind, PreparedTarget):
        entry.environment = kind.prepare(folder)
    if "PYTHONPATH" in os.environ:
        # Targets that are not installed are found by it, over SSH too.
        entry.environment = {"PYTHONPATH": os.environ["PYTHONPATH"], **entry.environment}
    # Left behind by an agent that was killed.
    (folder / "agent.json").unlink(missing_ok=True)
    process = sim_process.start(_command(folder, entry), folder / _LOG, entry.environment)
    entry.pid, entry.created = process.pid, process.created
    _save(home, entry)


def _command(folder: Path, entry: _Entry) -> list[str]:
    command = [sys.executable, "-m", "agent.main", "run", "--home", str(folder), "--name", entry.name]
    command += ["--target", entry.target, "--simulated"]
    command += ["--tracker", entry.tracker] if entry.tracker else []
    return command + [word for fault in entry.faults for word in ("--fault", fault)]


@dataclass(frozen=True, slots=True)
class _Failure:
    """An agent that did not start, and why; ``refused`` when it did not understand what it was told."""

    entry: _Entry
    why: str
    refused: bool = False


def _await(home: Home, starting: Sequence[_Entry]) -> list[_Failure]:
    """Wait until every agent is ready; those that are not."""
    deadline = time.monotonic() + _START_DEADLINE
    waiting, failures = list(starting), []
    while waiting:
        for entry in list(waiting):
            if _agent_info(home, entry).get("pid") == entry.pid:
                waiting.remove(entry)
            elif not entry.agent.alive:
                waiting.remove(entry)
                refused = entry.agent.status == _USAGE_STATUS
                failures.append(_Failure(entry, _words(home, entry) or "it ended without a word", refused))
            elif time.monotonic() > deadline:
                waiting.remove(entry)
                why = f"it was not ready after {_START_DEADLINE:.0f} s\n{_words(home, entry)}"
                failures.append(_Failure(entry, why))
        time.sleep(0.02)
    return failures


def _words(home: Home, entry: _Entry) -> str:
    return sim_process.tail(home.sim / entry.name / _LOG)


async def _ask_to_end(home: Home, entries: Sequence[_Entry]) -> None:
    """The gentle way: a message. What fails here is ended by a signal."""
    from agent.protocol import Done, Shutdown
    from controller.carriers import connect

    keys = Keys(home.keys)

    async def ask(entry: _Entry) -> None:
        connection, _ = await connect(_local(home, entry), keys, client="fleet sim down")
        try:
            await connection.request(Shutdown(), Done)
        finally:
            await connection.close()

    async def in_time(entry: _Entry) -> None:
        with contextlib.suppress(FleetError, asyncio.TimeoutError):
            await within(sim_process.END_PATIENCE, ask(entry))

    await asyncio.gather(*(in_time(entry) for entry in entries))


def _end(entries: Sequence[_Entry]) -> list[_Entry]:
    """End what runs of these boards; those whose agent is still there."""
    for entry in entries:
        if entry.server is not None:
            sim_ssh.end(entry.server)
    sim_process.end([entry.agent for entry in entries])
    return [entry for entry in entries if entry.agent.alive]
