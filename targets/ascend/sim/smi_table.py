"""The tables of ``npu-smi info``: one layout per driver version and kind of chip.

Widths and formats are those of the tool's source (hicann/driver, npu_info_print_ch.c) and of published captures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from targets.ascend.sim import chips
from targets.ascend.sim.board import Board, Card, Chip, version_key
from targets.base import FleetError

INCOMPLETE = (
    "[WARNING]The driver package may not be completely installed, which may cause function abnormal. "
    "Please reinstall it."
)


@dataclass(frozen=True)
class Layout:
    """Widths between the ``+`` of the table, and what the third column holds."""

    columns: tuple[int, int, int]
    version: tuple[int, int]
    hugepages: tuple[int, int] = (6, 13)
    third: tuple[int, int] = (12, 17)
    power: bool = True

    @property
    def inner(self) -> int:
        return sum(self.columns) + 2


# Without high-bandwidth memory.
_NARROW = Layout((19, 17, 40), (28, 30), hugepages=(0, 0), third=(17, 21))
_HUGEPAGES = Layout((19, 17, 54), (28, 44), hugepages=(5, 14))
_WIDE_NAMES = Layout((23, 17, 54), (32, 44), hugepages=(5, 14), power=False)
_EARLY = Layout((31, 17, 54), (40, 44), hugepages=(5, 14), power=False)
_PRESENT = Layout((31, 17, 54), (40, 44), power=False)
# With it.
_HBM_NARROW = Layout((22, 15, 52), (28, 43), third=(11, 17), hugepages=(5, 13))
_HBM = Layout((27, 15, 52), (24, 52), third=(11, 17), hugepages=(5, 13))


def layout(board: Board, kind: chips.Family) -> Layout:
    """The layout that this version of npu-smi has for a kind of chip.

    Raises:
        FleetError: no capture of such an old tool is known.
    """
    version = version_key(board.tool_version)
    if chips.has_hbm(kind):
        steps: tuple[tuple[tuple[int, ...], Layout], ...] = (((21, 0, 4), _HBM_NARROW), ((23,), _HBM))
    else:
        steps = (
            ((20,), _NARROW),
            ((22,), _HUGEPAGES),
            ((22, 0, 2), _WIDE_NAMES),
            ((22, 0, 3), _EARLY),
            ((23,), _PRESENT),
        )
    fitting = [found for since, found in steps if version >= since]
    if not fitting:
        raise FleetError(
            f"how npu-smi {board.tool_version} prints chips of the {kind} family is not known",
            code="bad-board",
            hint="choose a newer driver",
        )
    return fitting[-1]


def table(board: Board) -> Iterator[str]:
    """The lines of ``npu-smi info``."""
    if not board.cards:
        yield "There is no NPU card on this server."
        return
    kind = board.cards[0].family
    form = layout(board, kind)
    dash = _rule("-", form)
    double = _rule("=", form)
    before, after = form.version
    yield f"+{'-' * form.inner}+"
    yield f"| npu-smi {board.tool_version:<{before}} Version: {board.driver:<{after}} |"
    yield dash
    yield from _heading(form, kind)
    yield double
    logic_id = 0
    for card in board.cards:
        for index, chip in enumerate(card.chips):
            if index:
                yield f"+{'-' * form.inner}+" if kind == "A3" else dash
            yield from _chip(board, form, card, chip, index, logic_id)
            logic_id += 1
        yield double
    if (kind in ("310", "310P") and form is not _NARROW) or chips.has_hbm(kind):
        yield from _processes(board, form)
    if not board.driver_complete:
        yield INCOMPLETE


def _rule(mark: str, form: Layout) -> str:
    return "+" + "+".join(mark * width for width in form.columns) + "+"


def _cells(form: Layout, first: str, second: str, third: str) -> str:
    return (
        "|"
        + "|".join(text.ljust(width) for text, width in zip((first, second, third), form.columns, strict=True))
        + "|"
    )


def _heading(form: Layout, kind: chips.Family) -> Iterator[str]:
    if chips.has_hbm(kind):
        yield _cells(form, " NPU   Name", " Health", " Power(W)    Temp(C)           Hugepages-Usage(page)")
        second = " Chip  Phy-ID" if kind == "A3" else " Chip"
        yield _cells(form, second, " Bus-Id", " AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)")
        return
    wide, _ = form.third
    pages = "           Hugepages-Usage(page)" if form.hugepages[0] else ""
    yield _cells(form, " NPU     Name", " Health", f" {'Power(W)':<{wide}} Temp(C){pages}")
    yield _cells(form, " Chip    Device", " Bus-Id", f" {'AICore(%)':<{wide}} Memory-Usage(MB)")


def _chip(board: Board, form: Layout, card: Card, chip: Chip, index: int, logic_id: int) -> Iterator[str]:
    kind = card.family
    usual = chips.defaults(card.name, kind)
    temperature = usual.temperature if chip.temperature is None else chip.temperature
    used_pages, pages = chip.hugepages or usual.hugepages
    power_width, temperature_width = form.third
    total_width = form.columns[0] - (7 if chips.has_hbm(kind) else 9)
    # `%-5d` and `%-7d` before the name, a blank on either side.
    id_width = 5 if chips.has_hbm(kind) else 7
    watts = f"{power(board, card, chip, index):<{power_width}}"
    if form.hugepages[0]:
        shown, of = form.hugepages
        heat = f"{temperature:<{temperature_width}} {used_pages:<{shown}}/ {pages:<{of}}"
    else:
        heat = f"{temperature:<{temperature_width}}"
    yield _cells(form, f" {card.npu:<{id_width}} {card.name:<{total_width}}", f" {chip.health}", f" {watts} {heat}")
    used, total = chip.memory or usual.memory
    bus = bus_id(chip, usual, logic_id)
    if chips.has_hbm(kind):
        if kind != "910":
            used, total = 0, 0
        hbm_used, hbm = chip.hbm or usual.hbm
        first = f" {index:<5} {logic_id}" if kind == "A3" else f" {index}"
        memory = f"{used:<5}/ {total:<10} {hbm_used:<5}/ {hbm:<13}"
        yield _cells(form, first, f" {bus}", f" {chip.aicore:<11} {memory}")
    else:
        memory = f"{used:<5}/ {total}"
        yield _cells(form, f" {index:<7} {logic_id}", f" {bus}", f" {chip.aicore:<{power_width}} {memory}")


def bus_id(chip: Chip, usual: chips.Defaults, logic_id: int) -> str:
    """The PCI address; a chip that is not said to be elsewhere gets one of its own."""
    return chip.bus or (f"0000:{logic_id + 1:02X}:00.0" if usual.pcie else "NA")


def power(board: Board, card: Card, chip: Chip, index: int) -> str:
    """Watts as the table shows them: a 310P says ``NA`` since 22.0.2, the second die of an A3 ``-``."""
    if card.family == "310P" and not layout(board, "310P").power:
        return "NA"
    if card.family == "A3" and index:
        return "-"
    watts = chip.power if chip.power is not None else chips.defaults(card.name, card.family).power
    return "NA" if watts is None else f"{watts:.1f}"


def _processes(board: Board, form: Layout) -> Iterator[str]:
    first, second, third = form.columns
    rest = third - 28
    yield _rule("-", form)
    heading = f" {'Process name':<24} | {'Process memory(MB)':<{rest}}"
    yield _cells(form, " NPU     Chip", " Process id", heading)
    yield _rule("=", form)
    for card in board.cards:
        rows = [(index, process) for index, chip in enumerate(card.chips) for process in chip.processes]
        for index, process in rows:
            cells = f" {process.name[:24]:<24} | {process.megabytes:<{rest}}"
            yield _cells(form, f" {card.npu:<7} {index:<{first - 9}}", f" {process.pid:<{second - 2}}", cells)
        if not rows:
            yield f"|{f' No running processes found in NPU {card.npu}':<{form.inner}}|"
        yield _rule("=", form)
