"""Diagnosis: what is wrong with this machine, the inventory and each device, and what to do next."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from agent import protocol as p
from controller.carriers import connect, link_of
from controller.home import Home
from controller.inventory import Device, Inventory
from controller.printable import printable
from targets.base import FleetError
from targets.defaults import DISK_RESERVE, REQUEST_TIMEOUT
from targets.waiting import within

if TYPE_CHECKING:
    from controller.fleet import Fleet

Verdict = Literal["ok", "warning", "error"]

#: Clocks further apart than this make timestamps of results misleading.
_CLOCK_SKEW = 2.0
#: Free space below which a full disk is near.
_LITTLE_SPACE = 1 << 30
#: Times of one round trip of a healthy link are below this.
_SLOW = 1.0
_TOOL_PATIENCE = 60.0


class Check(msgspec.Struct, kw_only=True):
    """One thing that was looked at, as ``fleet doctor --json`` prints it. ``hint`` says what to do next."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""
    #: The device it is about; empty for this machine.
    device: str = ""


async def machine(home: Home, inventory: Path | None = None) -> list[Check]:
    """This machine and the inventory: works when the inventory cannot be read, too."""
    checks: list[Callable[[], Check | list[Check]]] = [
        _python,
        lambda: _space(home),
        lambda: _keys(home),
        lambda: check_inventory(home, inventory),
        _targets,
        _zig,
        _tvm,
        lambda: _results(home),
    ]
    found: list[Check] = []
    for check in checks:
        # In threads: TVM takes seconds to import.
        result = await asyncio.to_thread(check)
        found += result if isinstance(result, list) else [result]
    return found


async def devices(fleet: Fleet, selection: Sequence[Device]) -> list[Check]:
    """Each device: can it be reached, which protocol, its clock, its disk, what it owes us."""
    found = await asyncio.gather(*(_device(fleet, device) for device in selection))
    return [check for checks in found for check in checks]


# --- This machine -------------------------------------------------------------------------------


def _python() -> Check:
    detail = f"Python {platform.python_version()} on {platform.machine()}"
    missing = [name for name in ("msgspec", "pyzmq", "zstandard", "cryptography", "numpy") if not _version(name)]
    if missing:
        hint = "install fleet again: `pip install 'fleet-edge[controller,tvm]'`"
        return Check(name="python", verdict="error", detail=f"not installed: {', '.join(missing)}", hint=hint)
    return Check(name="python", verdict="ok", detail=f"{detail}, fleet {_version('fleet-edge') or 'not installed'}")


def _space(home: Home) -> Check:
    folder = home.cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{_size(free)} free below {folder}"
    if free < _LITTLE_SPACE:
        hint = f"builds and downloads are kept in {home.cache} and can be made again: remove what is old"
        return Check(name="disk", verdict="warning", detail=detail, hint=hint)
    return Check(name="disk", verdict="ok", detail=detail)


def _keys(home: Home) -> Check:
    from targets.keys import Keys

    try:
        keys = Keys(home.keys)
        detail = f"{home.keys}, signing key {keys.key_id}, CURVE key {keys.curve_public.decode()}"
    except (FleetError, OSError) as error:
        hint = error.hint if isinstance(error, FleetError) else ""
        return Check(name="keys", verdict="error", detail=str(error), hint=hint)
    return Check(name="keys", verdict="ok", detail=detail)


def check_inventory(home: Home, given: Path | None) -> Check:
    """Whether the inventory can be read, and has anything in it. ``given`` must exist if it is."""
    from controller import sim

    path = home.inventory(given)
    boards = sim.devices(home)
    try:
        inventory = Inventory.load(path, must_exist=given is not None).merged(boards)
    except FleetError as error:
        return Check(name="inventory", verdict="error", detail=error.message, hint=error.hint)
    if not inventory.devices:
        hint = "`fleet sim up` starts simulated boards; `fleet init` writes an inventory for real ones"
        return Check(name="inventory", verdict="warning", detail="there are no devices", hint=hint)
    where = f"{path}: " if path.exists() else "no fleet.yaml; "
    detail = f"{where}{len(inventory.devices) - len(boards)} devices, {len(boards)} simulated boards"
    return Check(name="inventory", verdict="ok", detail=detail)


def _targets() -> list[Check]:
    from targets.base import find, names

    checks = []
    for name in names():
        try:
            checks.append(Check(name=f"target {name}", verdict="ok", detail=find(name).description))
        except Exception as error:
            # A plug-in is somebody else's code: whatever it raises is what is wrong with it.
            hint = "reinstall or remove the package that brings it"
            checks.append(Check(name=f"target {name}", verdict="error", detail=repr(error), hint=hint))
    return checks


def _zig() -> Check:
    import subprocess

    found = _version("ziglang")
    hint = "install it: `pip install 'fleet-edge[controller]'`"
    if not found:
        return Check(name="zig", verdict="error", detail="the linker (ziglang) is not installed", hint=hint)
    command = [sys.executable, "-m", "ziglang", "version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name="zig", verdict="error", detail=f"zig {found} does not run: {error}", hint=hint)
    if done.returncode:
        words = done.stderr.strip()[-300:]
        return Check(name="zig", verdict="error", detail=f"zig {found} does not run: {words}", hint=hint)
    return Check(name="zig", verdict="ok", detail=f"zig {done.stdout.strip()}")


def _tvm() -> Check:
    import subprocess

    hint = "install the pair that fits together: `pip install 'fleet-edge[tvm]'`"
    found = _version("apache-tvm")
    if not found:
        return Check(name="tvm", verdict="error", detail="apache-tvm is not installed: nothing can be built", hint=hint)
    # In a process of its own: a broken library must not take this one along.
    command = [sys.executable, "-c", "import tvm; print(tvm.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name="tvm", verdict="error", detail=f"apache-tvm {found} does not load: {error}", hint=hint)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]
        return Check(name="tvm", verdict="error", detail=f"apache-tvm {found} does not load: {words}", hint=hint)
    return Check(name="tvm", verdict="ok", detail=f"apache-tvm {found}, apache-tvm-ffi {_version('apache-tvm-ffi')}")


def _results(home: Home) -> Check:
    from controller.results import Results

    try:
        results = Results(home.results_url)
        results.close()
    except FleetError as error:
        return Check(name="results", verdict="error", detail=error.message, hint=error.hint)
    return Check(name="results", verdict="ok", detail=str(results))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


# --- Devices ------------------------------------------------------------------------------------


async def _device(fleet: Fleet, device: Device) -> list[Check]:
    name = device.name
    clock: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_event(event: p.Message) -> None:
        if isinstance(event, p.Telemetry) and not clock.done():
            clock.set_result(event.at - time.time())

    try:
        connection, carrier = await connect(device, fleet.keys, client=fleet.holder, on_event=on_event, start=False)
    except FleetError as error:
        return [Check(name=_what(device, error), verdict="error", detail=error.message, hint=error.hint, device=name)]
    checks: list[Check] = _ssh(connection.link, name)
    try:
        start = time.monotonic()
        status = await connection.request(p.GetStatus(), p.Status)
        took = time.monotonic() - start
        checks += [_reachable(device, carrier, took), _protocol(connection.welcome, name), _target(device, status)]
        await connection.request(p.Subscribe(telemetry=True), p.Done)
        try:
            checks.append(_clock(await within(REQUEST_TIMEOUT, clock), name))
        except asyncio.TimeoutError:
            detail = f"no reading within {REQUEST_TIMEOUT:.0f} s"
            checks.append(Check(name="clock", verdict="warning", detail=detail, device=name))
        checks.append(_device_space(status, name))
        if status.unacknowledged:
            detail = f"{status.unacknowledged} results that nobody has fetched"
            hint = "the next `fleet bench` on it fetches them"
            checks.append(Check(name="journal", verdict="warning", detail=detail, hint=hint, device=name))
    except FleetError as error:
        checks.append(Check(name="reachable", verdict="error", detail=error.message, hint=error.hint, device=name))
    finally:
        await connection.close()
    return checks


def _what(device: Device, error: FleetError) -> str:
    """What a failure to connect is about: the way to the board, or the agent on it."""
    if error.code.startswith("agent-"):
        return "agent"
    return "ssh" if device.ssh and error.code.startswith(("ssh-", "host-key")) else "reachable"


def _ssh(link: object, name: str) -> list[Check]:
    """How a board was reached over SSH, and by which host key it has proven to be itself."""
    session = getattr(link, "ssh", None)
    if session is None:
        return []
    detail = f"{session.way}, {session.server}, host key {session.fingerprint} as known_hosts says"
    return [Check(name="ssh", verdict="ok", detail=detail, device=name)]


def _reachable(device: Device, carrier: str, took: float) -> Check:
    detail = f"by {carrier}, answers in {took * 1000:.1f} ms"
    if carrier != "socket" and device.address and not link_of(device):
        hint = f"open {device.address} to this machine: other ways carry less"
        detail = f"its own socket is not reachable; {detail}"
        return Check(name="reachable", verdict="warning", detail=detail, hint=hint, device=device.name)
    if took > _SLOW:
        hint = "look at the network and at what else the board does: `fleet top`"
        return Check(name="reachable", verdict="warning", detail=detail, hint=hint, device=device.name)
    return Check(name="reachable", verdict="ok", detail=detail, device=device.name)


def _protocol(welcome: p.Welcome, name: str) -> Check:
    agent = printable(welcome.agent_version[:64])
    detail = f"agent {agent}, protocol {welcome.major}.{welcome.minor}; ours is {p.MAJOR}.{p.MINOR}"
    if welcome.minor != p.MINOR:
        hint = "they work together; update the older side for what is new"
        return Check(name="protocol", verdict="warning", detail=detail, hint=hint, device=name)
    return Check(name="protocol", verdict="ok", detail=detail, device=name)


def _target(device: Device, status: p.Status) -> Check:
    said = printable(status.target[:64])
    if status.target != device.target:
        detail = f"the inventory says '{device.target}', the agent says '{said}'"
        hint = "correct `target` in the inventory, or start the agent with the right --target"
        return Check(name="target", verdict="error", detail=detail, hint=hint, device=device.name)
    return Check(name="target", verdict="ok", detail=said, device=device.name)


def _clock(skew: float, name: str) -> Check:
    detail = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > _CLOCK_SKEW:
        hint = "set it: `timedatectl set-ntp true` on the board"
        return Check(name="clock", verdict="warning", detail=detail, hint=hint, device=name)
    return Check(name="clock", verdict="ok", detail=detail, device=name)


def _device_space(status: p.Status, name: str) -> Check:
    detail = f"store {_size(status.store_bytes)}, free {_size(status.free_bytes)}"
    if status.free_bytes <= DISK_RESERVE:
        hint = "make room on the board: nothing can be deployed"
        return Check(name="disk", verdict="error", detail=detail, hint=hint, device=name)
    return Check(name="disk", verdict="ok", detail=detail, device=name)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
