"""The power mode of a Jetson, and whether its clocks are pinned. Nothing here is ever set: that needs root.

``nvpmodel`` caps clocks and cores, ``jetson_clocks`` pins clocks to the cap. Asking the latter needs root, so that is
inferred: a clock whose lowest, highest and present value are one cannot move.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from targets.jetson.sysfs import Clock, Roots
from targets.sensors import text

#: Of ``nvpmodel -q``, in seconds.
DEADLINE = 5.0
_NAME = re.compile(r"^\s*(?:NV Power Mode|NVPOWERMODE|NVPM Power Mode)\s*:\s*(\S.{0,63}?)\s*$", re.IGNORECASE)
_ID = re.compile(r"^\s*(\d{1,4})\s*$")
_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID\s*=\s*(\d{1,4})\s+NAME\s*=\s*([^\s>]{1,64})\s*>", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*<\s*PM_CONFIG\s+DEFAULT\s*=\s*(\d{1,4})\s*>", re.MULTILINE)
_STATUS = re.compile(r"\bpmode:(\d{1,4})\b")


@dataclass(frozen=True, slots=True)
class PowerMode:
    """Ids are the board's: 0 is MAXN on most, and 15W on an Orin Nano Super. Either may be unknown."""

    name: str = ""
    id: int | None = None


@dataclass(frozen=True, slots=True)
class ModeList:
    """The modes of ``nvpmodel.conf`` by id, and the one that the board starts in."""

    names: dict[int, str] = field(default_factory=dict)
    default: int | None = None


def parse_query(printed: str) -> PowerMode:
    """What ``nvpmodel -q`` prints: the name on one line, the id on the next; warnings may come before and between."""
    name = ""
    for line in printed[:65536].splitlines():
        if found := _NAME.match(line):
            name = found[1]
        elif name and (found := _ID.match(line)):
            return PowerMode(name, int(found[1]))
    return PowerMode(name)


def parse_modes(conf: str) -> ModeList:
    """``/etc/nvpmodel.conf``; what is commented out does not count."""
    names = {int(found[1]): found[2] for found in _MODEL.finditer(conf)}
    default = _DEFAULT.search(conf)
    return ModeList(names, int(default[1]) if default else None)


def modes(roots: Roots) -> ModeList:
    return parse_modes(text(roots.etc / "nvpmodel.conf"))


def status(roots: Roots) -> PowerMode:
    """The mode that was set last, as ``nvpmodel`` notes it for the next start: a file that everybody may read."""
    found = _STATUS.search(text(roots.var / "lib/nvpmodel/status"))
    if found is None:
        return PowerMode()
    return PowerMode(modes(roots).names.get(int(found[1]), ""), int(found[1]))


def query(command: str | None = None) -> PowerMode:
    """Ask the tool, which takes about 20 ms; nothing is known where there is none, or where it needs root."""
    tool = command or shutil.which("nvpmodel")
    if tool is None:
        return PowerMode()
    try:
        done = subprocess.run(
            [tool, "-q"], stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return PowerMode()
    return parse_query(done.stdout.decode(errors="replace"))


def current(roots: Roots, command: str | None = None) -> PowerMode:
    """The mode by the tool, else by its note."""
    asked, noted = query(command), status(roots)
    return asked if asked.name else noted


def pinned(clocks: Iterable[Clock | None]) -> str:
    """``pinned`` when none of the clocks that are known can move, ``not pinned`` when one can, else ``unknown``."""
    known = [clock.pinned for clock in clocks if clock is not None and clock.pinned is not None]
    if not known:
        return "unknown"
    return "pinned" if all(known) else "not pinned"
