"""What a board is, as a few lines of shell on it tell, and whether an agent can run there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from controller.printable import printable
from targets.base import FleetError

#: The playbooks, their roles and plug-ins.
PLAYBOOKS = Path(__file__).parent / "playbooks"
#: What tells about a board; the playbooks run the same.
LOOK = PLAYBOOKS / "roles" / "common" / "files" / "look.sh"

#: Machines whose boards the targets are, as ``uname -m`` calls them; a target that is not here may be any.
_MACHINES = {
    "x86": ("x86_64",),
    "arm64": ("aarch64",),
    "armv7": ("armv7l",),
    "pynq": ("armv7l",),
    "ultra96": ("aarch64",),
    "jetson": ("aarch64",),
}
#: Machines that agents are made for.
MADE_FOR = ("x86_64", "aarch64", "armv7l")
_LEAST_PYTHON = (3, 10)
#: KiB that an agent takes while it is installed, beside the one before.
_LEAST_SPACE = 300 << 10

_PYTHON = re.compile(r"(/[^\s=]+) ([0-9]+)\.([0-9]+) (32|64) (?:glibc-([0-9]+)\.([0-9]+))?.* ?[01]")


@dataclass(frozen=True, slots=True)
class Board:
    """A machine with a Python that an agent can run in."""

    #: ``x86_64``, ``aarch64`` or ``armv7l``: of its programs, which may be smaller than its kernel's.
    machine: str
    #: The interpreter's path on the board.
    python: str
    #: Its major and minor version.
    version: tuple[int, int]
    #: Major and minor version of the C library.
    libc: tuple[int, int]

    @property
    def tag(self) -> str:
        """The directory of its wheels, such as ``aarch64-cp311-glibc2.36``."""
        return f"{self.machine}-cp{self.version[0]}{self.version[1]}-glibc{self.libc[0]}.{self.libc[1]}"


def parse(text: str) -> dict[str, str]:
    """The lines of `LOOK`. Raises FleetError ``no-shell`` when it did not run to its end."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip("\r").partition("=")
        if equals:
            found[key] = printable(value.strip())
    if found.get("look") != "1" or "running" not in found:
        raise FleetError(
            f"the board has no POSIX shell that can be used: {printable(text.strip()[-200:]) or 'it said nothing'}",
            code="no-shell",
        )
    return found


def check(facts: dict[str, str], target: str) -> Board:
    """What an agent for ``target`` is to be made for.

    Raises FleetError ``wrong-architecture``, ``old-python``, ``no-space``.
    """
    found = _PYTHON.fullmatch(facts.get("python", ""))
    if found is None:
        raise FleetError(
            "the board has no Python",
            code="old-python",
            hint="install python3 (3.10 or later) on it: `apt install python3`",
        )
    path, major, minor, bits, libc_major, libc_minor = found.groups()
    version = (int(major), int(minor))
    machine = _programs(facts.get("machine", ""), int(bits))
    allowed = _MACHINES.get(target, MADE_FOR)
    if machine not in allowed:
        raise FleetError(
            f"the board is a {machine}, and target {target} is for {' or '.join(allowed)}",
            code="wrong-architecture",
            hint=_fitting(machine),
        )
    if version < _LEAST_PYTHON:
        raise FleetError(
            f"the newest Python of the board is {major}.{minor} ({path}); the agent needs 3.10 or later",
            code="old-python",
            hint="install a later one beside it, such as python3.10 in /usr/local/bin: it is found there",
        )
    if libc_major is None:
        raise FleetError("the board's C library is not glibc, for which the wheels are made", code="wrong-architecture")
    free = facts.get("free:/opt", "")
    if free.isdecimal() and int(free) < _LEAST_SPACE:
        raise FleetError(
            f"{int(free) >> 10} MiB are free on the board below /opt; an agent needs {_LEAST_SPACE >> 10} MiB",
            code="no-space",
            hint="free some space there, then try again",
        )
    return Board(machine=machine, python=path, version=version, libc=(int(libc_major), int(libc_minor)))


def _programs(machine: str, bits: int) -> str:
    """What the board's programs are for: systems of 32 bits run on kernels of 64."""
    if bits == 32:
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
    return machine


def _fitting(machine: str) -> str:
    targets = [target for target, machines in _MACHINES.items() if machine in machines]
    return f"targets for a {machine}: {', '.join(targets)}" if targets else f"agents are made for {', '.join(MADE_FOR)}"
