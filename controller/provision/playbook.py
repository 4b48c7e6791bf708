"""Runs a playbook as a process of its own, and hands on what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from controller.printable import printable
from controller.provision.board import PLAYBOOKS
from targets.base import FleetError
from targets.waiting import done_within

Playbook = Literal["provision", "update", "remove", "check"]
#: How long ansible-playbook has to end its connections after an interrupt.
_PATIENCE = 10.0
#: Longest line that is taken: a task's words are cut by who writes them.
_MAX_LINE = 1 << 20
_LAST_WORDS = 4000


class PlaybookEvent(msgspec.Struct, frozen=True):
    """One line of the callback plug-in: see ansible/plugins/callback/fleet_events.py."""

    event: str
    host: str
    role: str = ""
    task: str = ""
    message: str = ""
    item: str = ""
    notes: list[str] = []


async def run(
    playbook: Playbook,
    inventory: Mapping[str, Any],
    on_event: Callable[[PlaybookEvent], None],
    *,
    dry_run: bool = False,
) -> str:
    """Run a playbook on all hosts of ``inventory`` (see `hosts.static`); what it said beside the events.

    That a host fails is told by an event. When this is cancelled, the playbook is interrupted and waited for.
    Raises FleetError ``missing-extra`` without Ansible, ``playbook-failed`` when it ends before it begins.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-ansible-") as folder:
        hosts = Path(folder) / "hosts.json"
        # Keys in it are public; still nobody else's business.
        hosts.touch(mode=0o600)
        hosts.write_text(json.dumps(inventory))
        command = [_program(), "--inventory", str(hosts), str(PLAYBOOKS / f"{playbook}.yml"), *(["--check"] * dry_run)]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=PLAYBOOKS,
            env=_environment(Path(folder)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE,
            # Ctrl-C at the terminal is ours to pass on.
            start_new_session=True,
        )
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []
        told = asyncio.ensure_future(_events(process.stdout, on_event, said))
        rest = asyncio.ensure_future(_words(process.stderr, said))
        try:
            hosts_seen = await told
            await rest
            status = await process.wait()
        finally:
            await _end(process)
            for task in (told, rest):
                task.cancel()
            await asyncio.gather(told, rest, return_exceptions=True)
    words = printable(" ".join(said)[-_LAST_WORDS:])
    if status not in (0, 2, 4) or (status and not hosts_seen):
        raise FleetError(f"ansible-playbook failed: {words or f'exit status {status}'}", code="playbook-failed")
    return words


def _program() -> str:
    beside = Path(sys.executable).with_name("ansible-playbook")
    found = str(beside) if beside.exists() else shutil.which("ansible-playbook")
    if found is None:
        raise FleetError(
            "this needs Ansible, which is not installed", code="missing-extra", hint="pip install 'fleet-edge[ansible]'"
        )
    if shutil.which("ssh") is None:
        raise FleetError(
            "Ansible needs OpenSSH's client, which is not installed",
            code="missing-extra",
            hint="install it (Debian: openssh-client)",
        )
    return found


def _environment(folder: Path) -> dict[str, str]:
    # Settings of a person's own Ansible are for other playbooks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return environment | {
        "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "fleet_events",
        "ANSIBLE_HOME": str(folder / "ansible"),
        # Sockets have short names, whatever the home is called.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "ANSIBLE_NOCOLOR": "true",
        "LC_ALL": "C.UTF-8",
    }


async def _events(
    stream: asyncio.StreamReader, on_event: Callable[[PlaybookEvent], None], said: list[str]
) -> frozenset[str]:
    """Hand on each event; the hosts that anything was told of."""
    hosts: set[str] = set()
    while line := await stream.readline():
        try:
            event = msgspec.json.decode(line, type=PlaybookEvent)
        except msgspec.MsgspecError:
            said.append(line.decode(errors="replace"))
            continue
        hosts.add(event.host)
        on_event(event)
    return frozenset(hosts)


async def _words(stream: asyncio.StreamReader, said: list[str]) -> None:
    size = 0
    while data := await stream.read(1 << 16):
        size += len(data)
        if size <= 16 * _LAST_WORDS:
            said.append(data.decode(errors="replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupt what still runs, and its whole session after a while."""
    if process.returncode is not None:
        return
    waiting = asyncio.ensure_future(process.wait())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    if not await done_within(_PATIENCE, waiting):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await waiting
