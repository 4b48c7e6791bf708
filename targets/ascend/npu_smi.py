"""What chips a board has and how they are: the table of ``npu-smi info``, in the layouts of all drivers that are known.

Columns moved, grew and came to be between drivers 20 and 25, so cells are found by the bars around them and by what is
in them, never by their width.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.ascend.process import run
from targets.base import FleetError

#: Where drivers install it; the first is not on the path of a command that is run over SSH.
PLACES = ("/usr/local/sbin/npu-smi", "/usr/local/bin/npu-smi")
#: Seconds. Some boards take long for the first query after they were started.
DEADLINE = 30.0
_BUS = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]|NA|-")
_VERSION = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_FAILED = re.compile(r"dcmi mod(?:ule|el) initiali[sz]ed? failed|get board type failed|There is no NPU card", re.I)
_KEY = re.compile(r"\s*([^:]+?)\s*:\s?(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip. What a driver or a kind of chip does not tell is None.

    ``npu`` is the card's id, which `npu-smi -i` takes and which is no index; ``index`` the chip's in its card;
    ``device`` the logic id that ``ais_bench --device`` takes. ``name`` is as printed: ``310P3``. Memory, in MB, is the
    HBM of chips that have some.
    """

    npu: int
    index: int
    device: int
    name: str
    health: str
    power_w: float | None = None
    temperature_c: float | None = None
    aicore_percent: float | None = None
    memory_used_mb: float | None = None
    memory_total_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """``driver`` is the version that the driver says it has; empty when the table does not tell."""

    driver: str
    chips: tuple[Chip, ...]


def parse(text: str) -> Board:
    """Read what ``npu-smi info`` printed. A line that is no row of a chip is passed over."""
    version = _VERSION.search(text)
    chips: list[Chip] = []
    has_logic_id = False
    first: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3 or "|" not in line:
            continue
        words = cells[0].split()
        if words[:1] == ["Chip"]:
            has_logic_id = words[1:2] == ["Device"]
        elif not words or not words[0].isdecimal():
            first = None
        elif _BUS.fullmatch(cells[1]) is None:
            first = cells
        elif first is not None:
            logic = int(words[1]) if has_logic_id and len(words) > 1 and words[1].isdecimal() else len(chips)
            chips.append(_chip(first, cells, int(words[0]), logic))
            first = None
    return Board(version[2] if version else "", tuple(chips))


def _chip(first: Sequence[str], second: Sequence[str], index: int, device: int) -> Chip:
    npu, _, name = first[0].partition(" ")
    power, temperature = _numbers(first[2], 2)
    # The load, then used and total of one memory or of two, of which HBM is the second.
    load, *memory = _numbers(second[2], 5)
    pair = memory[2:4] if memory[3] is not None else memory[:2]
    return Chip(
        npu=int(npu),
        index=index,
        device=device,
        name=name.strip(),
        health=first[1],
        power_w=power,
        temperature_c=temperature,
        aicore_percent=load,
        memory_used_mb=pair[0],
        memory_total_mb=pair[1],
    )


def _numbers(cell: str, count: int) -> list[float | None]:
    """The first words of a cell as numbers; None for what is none (``NA``, ``-``), and for what is not there."""
    found: list[float | None] = []
    for word in cell.replace("/", " ").split()[:count]:
        try:
            found.append(float(word))
        except ValueError:
            found.append(None)
    return found + [None] * (count - len(found))


def fields(text: str) -> dict[str, str]:
    """Lines ``key : value`` of the other queries; the last of a key counts."""
    return {match[1]: match[2] for line in text.splitlines() if (match := _KEY.fullmatch(line))}


def soc_version(chip: Chip, board: str = "") -> str:
    """What ``atc --soc_version`` calls a chip; ``board`` is what ``npu-smi info -t board -i NPU -c CHIP`` printed.

    Names of the A3 generation begin with ``Ascend`` and tell a family; the rest of theirs is the board's.
    Raises :class:`FleetError` (``no-chip``) when that is not known.
    """
    if not chip.name.startswith("Ascend"):
        return f"Ascend{chip.name}"
    found = fields(board)
    if not found.get("Chip Name") or not found.get("NPU Name"):
        raise FleetError(
            f"npu-smi does not say which {chip.name} this is",
            code="no-chip",
            hint="name it when you build: --option soc_version=…",
        )
    return f"{found['Chip Name']}_{found['NPU Name']}"


def find() -> str:
    """The path of ``npu-smi``. Raises :class:`FleetError` (``no-chip``)."""
    found = shutil.which("npu-smi") or next((path for path in PLACES if os.access(path, os.X_OK)), "")
    if not found:
        raise FleetError(
            f"there is no npu-smi, neither on the path nor at {' or '.join(PLACES)}",
            code="no-chip",
            hint="install the driver of the board's NPU and restart the board",
        )
    return found


def query(*arguments: str) -> str:
    """What ``npu-smi`` prints to these arguments.

    Raises :class:`FleetError`: ``no-chip`` without a driver that works or without a chip, ``timeout``.
    """
    with _turn():
        done = run([find(), *arguments], deadline=DEADLINE)
    said = _FAILED.search(done.output)
    if said or done.status != 0:
        lines = [line.strip() for line in done.output.splitlines() if line.strip()]
        words = next((line for line in lines if _FAILED.search(line)), lines[-1] if lines else "nothing")
        raise FleetError(
            f"npu-smi found no NPU that it can ask (exit status {done.status}): {words[:200]}",
            code="no-chip",
            hint="is the driver loaded, is the agent's user in the group HwHiAiUser, was the board restarted after "
            "the driver was installed?",
        )
    return done.output


def discover() -> Board:
    """The board as it is now. Raises :class:`FleetError` like `query`, and ``no-chip`` for a table without a chip."""
    text = query("info")
    board = parse(text)
    if not board.chips:
        raise FleetError(
            "npu-smi lists no chip",
            code="no-chip",
            hint="see what `npu-smi info` prints on the board; this may be a layout that is not known here",
        )
    return board


def choose(board: Board, wanted: str = "") -> Chip:
    """The chip with the logic id ``wanted``, or the first. Raises :class:`FleetError` (``no-chip``)."""
    chips = {str(chip.device): chip for chip in board.chips}
    chosen = chips.get(wanted) if wanted else min(board.chips, key=lambda chip: chip.device)
    if chosen is None:
        raise FleetError(
            f"this board has no device {wanted}", code="no-chip", hint=f"it has: {', '.join(sorted(chips))}"
        )
    return chosen


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Two at once are not to be: the vendor says so."""
    lock = Path(tempfile.gettempdir()) / f"fleet-npu-smi-{os.getuid()}.lock"
    handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
