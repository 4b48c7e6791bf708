"""Simulated boards: real agents on this machine, each in a folder of its own below ``HOME/sim``.

``board.json`` in that folder is the registry's entry; ``agent.json`` beside it is the agent's own and tells its ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from controller.home import Home
from controller.inventory import Device
from targets.base import FleetError
from targets.keys import Keys
from targets.waiting import within

#: Seconds that an agent may take from its start until it can be reached; sixteen at once on two cores need ten.
_START_DEADLINE = 60.0
#: Seconds between one way to end an agent and the next, harsher one.
_END_PATIENCE = 5.0
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
    faults: list[str] = []
    tracker: str = ""
    log: str = ""
    simulated: bool = True


class _Entry(msgspec.Struct, kw_only=True):
    """What ``board.json`` holds. ``created`` is the process's start time: a pid alone may have been given anew."""

    name: str
    target: str
    faults: list[str] = []
    tracker: str = ""
    pid: int = 0
    created: float = 0.0


#: Agents that this very process started: without this they would stay behind as zombies when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


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
    refused what it was told, such as a fault that there is not.
    """
    from targets.base import HardwareTarget, find

    kind = find(target)
    if isinstance(kind, HardwareTarget) and (lacking := kind.lacking()):
        raise FleetError(
            f"nothing simulates boards of target '{target}', and here is none: {lacking}", code="sim-failed"
        )
    at = f"{tracker[0]}:{tracker[1]}" if tracker else ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", prefix):
        raise FleetError(f"boards may not be named '{prefix}-1'", code="usage")
    keys = Keys(home.keys)
    with _locked(home):
        entries = _entries(home)
        alike = [
            e
            for e in entries
            if (e.target, e.faults, e.tracker) == (target, list(faults), at) and e.name.rpartition("-")[0] == prefix
        ]
        taken = {e.name for e in entries}
        names = (name for n in range(1, 10_000) if (name := f"{prefix}-{n}") not in taken)
        added = [
            _Entry(name=next(names), target=target, faults=list(faults), tracker=at) for _ in range(count - len(alike))
        ]
        wanted = (alike + added)[:count]
        starting = [entry for entry in wanted if not _alive(entry)]
        for entry in starting:
            _start(home, keys, entry)
        failures = _await(home, starting)
        for failure in failures:
            _kill(failure.entry)
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
        entries = _entries(home)
        known = [entry.name for entry in entries]
        for name in names:
            if name not in known:
                from controller.inventory import suggest

                raise FleetError(
                    f"there is no simulated board '{name}'", code="unknown-device", hint=suggest(name, known)
                )
        chosen = [entry for entry in entries if not names or entry.name in names]
        running = [entry for entry in chosen if _alive(entry)]
        asyncio.run(_ask_to_end(home, running))
        for entry in _await_end(running):
            _signal(entry, signal.SIGTERM)
        for entry in _await_end(running):
            _signal(entry, signal.SIGKILL)
        for entry in _await_end(running):
            raise FleetError(
                f"the simulated board '{entry.name}' (process {entry.pid}) does not end", code="sim-failed"
            )
        for entry in chosen:
            shutil.rmtree(home.sim / entry.name, ignore_errors=True)
        return [entry.name for entry in chosen]


def status(home: Home) -> list[SimBoard]:
    """All simulated boards of this machine."""
    return [_board(home, entry) for entry in _entries(home)]


def devices(home: Home) -> list[Device]:
    """The boards as devices. Quick, and without looking whether they run."""
    found = []
    for entry in _entries(home):
        info = _agent_info(home, entry)
        found.append(
            Device(
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
        )
    return found


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
    alive = _alive(entry)
    info = _agent_info(home, entry) if alive else {}
    port, rpc_port = info.get("port"), info.get("rpc_port")
    return SimBoard(
        name=entry.name,
        target=entry.target,
        state="running" if alive else "dead",
        pid=entry.pid,
        port=port if isinstance(port, int) else 0,
        rpc_port=rpc_port if isinstance(rpc_port, int) else 0,
        faults=entry.faults,
        tracker=entry.tracker,
        log=str(home.sim / entry.name / _LOG),
    )


# --- Processes ----------------------------------------------------------------------------------


def _start(home: Home, keys: Keys, entry: _Entry) -> None:
    folder = home.sim / entry.name
    for kind, key in (("authorized", keys.curve_public.decode()), ("trusted", keys.signing_public)):
        (folder / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / kind / "controller.pub").write_text(key + "\n")
    # Left behind by an agent that was killed.
    (folder / "agent.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "agent.main", "run", "--home", str(folder), "--name", entry.name]
    command += ["--target", entry.target, "--simulated"]
    command += ["--tracker", entry.tracker] if entry.tracker else []
    command += [word for fault in entry.faults for word in ("--fault", fault)]
    with (folder / _LOG).open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    _children[child.pid] = child
    entry.pid, entry.created = child.pid, _created(child.pid)
    temporary = folder / ".board.json"
    temporary.write_bytes(msgspec.json.encode(entry))
    temporary.replace(folder / "board.json")


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
    children = {entry.pid: _children[entry.pid] for entry in starting}
    while waiting:
        for entry in list(waiting):
            if _agent_info(home, entry).get("pid") == entry.pid:
                waiting.remove(entry)
            elif not _alive(entry):
                waiting.remove(entry)
                refused = children[entry.pid].poll() == _USAGE_STATUS
                failures.append(_Failure(entry, _tail(home, entry) or "it ended without a word", refused))
            elif time.monotonic() > deadline:
                waiting.remove(entry)
                why = f"it was not ready after {_START_DEADLINE:.0f} s\n{_tail(home, entry)}"
                failures.append(_Failure(entry, why))
        time.sleep(0.02)
    return failures


def _tail(home: Home, entry: _Entry, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        text = (home.sim / entry.name / _LOG).read_text(errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])
    return ""


def _created(pid: int) -> float:
    """When a process was started; 0 when there is none, or one that has ended and was not waited for."""
    import psutil

    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    try:
        process = psutil.Process(pid)
        # Its parent may never ask for the end of one that it left behind. Ours, until we have its end, still has
        # threads that hold its port.
        ended = child is None and process.status() == psutil.STATUS_ZOMBIE
        return 0.0 if ended else float(process.create_time())
    except psutil.Error:
        return 0.0


def _alive(entry: _Entry) -> bool:
    # The start time is derived from the boot time, which may be off by a tick between two readings.
    return entry.pid > 0 and entry.created > 0 and abs(_created(entry.pid) - entry.created) < 1.0


async def _ask_to_end(home: Home, entries: Sequence[_Entry]) -> None:
    """The gentle way: a message. What fails here is ended by a signal."""
    from agent.protocol import Done, Shutdown
    from controller.carriers import connect

    keys = Keys(home.keys)
    boards = {device.name: device for device in devices(home)}

    async def ask(entry: _Entry) -> None:
        connection, _ = await connect(boards[entry.name], keys, client="fleet sim down")
        try:
            await connection.request(Shutdown(), Done)
        finally:
            await connection.close()

    async def in_time(entry: _Entry) -> None:
        with contextlib.suppress(FleetError, asyncio.TimeoutError):
            await within(_END_PATIENCE, ask(entry))

    await asyncio.gather(*(in_time(entry) for entry in entries))


def _await_end(entries: Sequence[_Entry]) -> list[_Entry]:
    """Those that are still there after a while."""
    deadline = time.monotonic() + _END_PATIENCE
    while (left := [entry for entry in entries if _alive(entry)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _signal(entry: _Entry, number: signal.Signals) -> None:
    if _alive(entry):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, number)


def _kill(entry: _Entry) -> None:
    _signal(entry, signal.SIGKILL)
    _await_end([entry])
