"""`fleet provision`: looks at boards, makes the agents that they need, runs the playbook, and tells of each board."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from controller.events import Message, Progress
from controller.inventory import Device
from controller.printable import printable
from controller.provision import board as boards
from controller.provision import hosts, package, playbook
from controller.provision.board import Board
from controller.provision.package import Package
from controller.provision.playbook import Playbook, PlaybookEvent
from controller.provision.wheels import Runtime
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.fleet import Fleet

Status = Literal[
    "provisioned", "updated", "removed", "unchanged", "good", "would-change", "rolled-back", "failed", "unreachable"
]
#: Seconds that a board has for the look: Python and a shell on the slowest.
_LOOK_DEADLINE = 90.0
#: Boards looked at at once.
_MOST = 16
#: Tasks that a playbook comes by, roughly: how far it is.
_TASKS = {"provision": 24, "update": 12, "remove": 8, "check": 24}
_DONE: dict[Playbook, Status] = {"provision": "provisioned", "update": "updated", "remove": "removed"}

# Argument: the look. As root, which the login is or becomes.
_AS_ROOT = """\
[ "$(id -u)" = 0 ] && exec sh -c "$1" look
command -v sudo >/dev/null || { echo "no sudo" >&2; exit 77; }
sudo -n true || exit 77
exec sudo -n sh -c "$1" look
"""


class ProvisionReport(msgspec.Struct, kw_only=True):
    """One device of ``fleet provision``. ``changes`` are the playbook's words for what it did, or would do."""

    device: str
    target: str
    status: Status
    #: Name of the agent that the board has then; empty when that is not known, or there is none.
    agent: str = ""
    changes: list[str] = []
    #: What is worth knowing of the board.
    notes: list[str] = []
    seconds: float = 0.0
    code: str = ""
    reason: str = ""
    hint: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class ProvisionOptions:
    playbook: Playbook = "provision"
    #: Tell what would be changed, and change nothing.
    dry_run: bool = False
    runtime: Runtime = "own"
    #: When an agent is removed: its releases, keys and results, too.
    remove_data: bool = False
    #: Seconds in which a new agent has to be up; 0 is the playbooks' own.
    deadline: int = 0


@dataclass
class _Work:
    """What is known of one device while it is worked on."""

    device: Device
    report: ProvisionReport
    variables: dict[str, Any] = field(default_factory=dict)
    board: Board | None = None
    tasks: int = 0
    failed: bool = False


async def provision(fleet: Fleet, selection: Sequence[Device], options: ProvisionOptions) -> list[ProvisionReport]:
    """Turn boards into devices, or what ``options`` say; a report for each, in the selection's order.

    Raises FleetError for what concerns them all: ``missing-extra``, ``playbook-failed``.
    """
    began = time.monotonic()
    works = [_Work(one, ProvisionReport(device=one.name, target=one.target, status="unchanged")) for one in selection]
    gate = asyncio.Semaphore(_MOST)

    async def look(work: _Work) -> None:
        async with gate:
            await _look(fleet, work, options)

    await asyncio.gather(*(look(work) for work in works))
    if options.playbook != "remove":
        await _packages(fleet, works, options)
    ready = {work.device.name: work for work in works if not work.failed}
    if ready:
        document = hosts.dynamic([work.device for work in ready.values()], fleet.keys, fleet.home)
        inventory = hosts.static(document, {name: work.variables for name, work in ready.items()})

        def told(event: PlaybookEvent) -> None:
            if event.host in ready:
                _take(fleet, ready[event.host], event, options)

        words = await playbook.run(options.playbook, inventory, told, dry_run=options.dry_run)
        for work in ready.values():
            _conclude(work, options, words)
    for work in works:
        work.report.seconds = round(time.monotonic() - began, 2)
        name, share = ("failed", 1.0) if work.failed else ("done", 1.0)
        fleet.listener(Progress(device=work.device.name, stage=name, share=share))
    return [work.report for work in works]


# --- Before the playbook ------------------------------------------------------------------------


async def _look(fleet: Fleet, work: _Work, options: ProvisionOptions) -> None:
    """Reach a board over SSH, see that root can be had, and what an agent for it is made of."""
    from controller.ssh.session import SshSession

    device = work.device
    fleet.listener(Progress(device=device.name, stage="look", share=0.01))
    try:
        if why := hosts.unreachable(device):
            raise FleetError(f"{device.name} cannot be provisioned: {why}", code="not-provisionable")
        hosts.variables(device, fleet.keys, fleet.home)
        session = await SshSession.open(device)
        try:
            argv = ["sh", "-c", _AS_ROOT, "root", boards.LOOK.read_text()]
            done = await session.run(argv, deadline=_LOOK_DEADLINE)
        finally:
            await session.close()
        if done.status == 77:
            raise _no_root(device, str(session), done.stderr)
        facts = boards.parse(done.stdout)
        work.variables = {
            "ansible_become": facts.get("login", "root") != "root",
            "fleet_remove_data": options.remove_data,
            **({"fleet_agent_deadline": options.deadline} if options.deadline else {}),
        }
        if python := facts.get("python", "").partition(" ")[0]:
            work.variables["ansible_python_interpreter"] = python
        if options.playbook != "remove":
            work.board = boards.check(facts, device.target)
    except FleetError as error:
        _fail(fleet, work, error)


def _no_root(device: Device, where: str, words: str) -> FleetError:
    if "no sudo" in words:
        return FleetError(
            f"the login {where} is not root, and {device.name} has no sudo",
            code="no-root",
            hint="log in as root (`ssh: root@…`), or install sudo there and let the login use it",
        )
    return FleetError(
        f"sudo on {device.name} asks {where} for a password: {printable(words.strip()[-200:])}",
        code="sudo-password",
        hint="let the login use it without: a line `LOGIN ALL=(ALL) NOPASSWD: ALL` in /etc/sudoers.d on the board; "
        "or run the playbooks yourself with --ask-become-pass (docs/provision.md)",
    )


async def _packages(fleet: Fleet, works: Sequence[_Work], options: ProvisionOptions) -> None:
    """An agent for each kind of board, made once, one after the other: each takes the whole machine."""
    made: dict[Board, Package | FleetError] = {}
    for work in works:
        if work.board is None:
            continue
        kind = work.board
        if kind not in made:
            made[kind] = await _package(fleet, kind, options)
        found = made[kind]
        if isinstance(found, FleetError):
            _fail(fleet, work, found)
        else:
            work.report.agent = found.id
            work.variables["fleet_package"] = msgspec.to_builtins(found)


async def _package(fleet: Fleet, kind: Board, options: ProvisionOptions) -> Package | FleetError:
    loop = asyncio.get_running_loop()
    name = f"agent for {kind.tag}"

    def progress(stage: str, share: float) -> None:
        event = Progress(device="", stage="build", share=min(share, 0.99), detail=f"{name}: {printable(stage)}")
        loop.call_soon_threadsafe(fleet.listener, event)

    progress("wheels", 0.0)
    try:
        found = await asyncio.to_thread(package.make, kind, fleet.home, progress, runtime=options.runtime)
    except FleetError as error:
        fleet.listener(Progress(device="", stage="build", share=1.0, detail=f"{name}: failed"))
        return error
    fleet.listener(Progress(device="", stage="build", share=1.0, detail=f"{name}: done"))
    return found


def _fail(fleet: Fleet, work: _Work, error: FleetError) -> None:
    work.failed = True
    report = work.report
    report.status = "unreachable" if error.code in ("unreachable", "connection-lost") else "failed"
    report.code, report.reason, report.hint = error.code, error.message, error.hint
    fleet.listener(Message(work.device.name, error.message, "error"))


# --- The playbook's words -----------------------------------------------------------------------


def _take(fleet: Fleet, work: _Work, event: PlaybookEvent, options: ProvisionOptions) -> None:
    """One event of the playbook about this device."""
    report, name = work.report, work.device.name
    if event.event == "start":
        work.tasks += 1
        share = min(0.95, 0.05 + work.tasks / _TASKS[options.playbook])
        fleet.listener(Progress(device=name, stage=event.role or "board", share=share, detail=printable(event.task)))
    elif event.event == "item":
        report.changes.append(printable(f"{event.task}: {event.item}"))
    elif event.event == "changed" and not any(one.startswith(f"{event.task}: ") for one in report.changes):
        report.changes.append(printable(event.task))
    elif event.event in ("failed", "unreachable"):
        # A loop tells of its item, and then of itself.
        work.failed = True
        report.status = "unreachable" if event.event == "unreachable" else "failed"
        report.code = "unreachable" if event.event == "unreachable" else "task-failed"
        report.reason = printable(f"{event.task}: {event.message}")
        if "runs again" in event.message:
            report.status, report.code = "rolled-back", "rolled-back"
        fleet.listener(Message(name, report.reason, "error"))
    for note in event.notes:
        report.notes.append(printable(note))
        fleet.listener(Message(name, printable(note), "warning" if note.startswith("warning") else "info"))


def _conclude(work: _Work, options: ProvisionOptions, words: str) -> None:
    report = work.report
    if work.failed:
        if report.status != "rolled-back":
            report.hint = report.hint or "put right what it says, then run it again: it goes on where it stopped"
            report.agent = ""
        return
    if not work.tasks:
        work.failed = True
        report.status, report.code, report.reason = "failed", "playbook-failed", words or "the playbook left it out"
    elif not report.changes:
        report.status = "good" if options.playbook == "check" else "unchanged"
    elif options.dry_run or options.playbook == "check":
        report.status = "would-change"
    else:
        report.status = _DONE[options.playbook]
    if options.playbook == "remove" and not options.dry_run:
        report.agent = ""
