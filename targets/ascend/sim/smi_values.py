"""The key and value lists of ``npu-smi info -t …``, ``-l`` and ``-m``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from targets.ascend.sim import chips
from targets.ascend.sim.board import Board, Card, Chip
from targets.ascend.sim.smi_table import bus_id

Reading = Callable[[Card, Chip], str]


def line(key: str, value: object) -> str:
    return f"\t{key:<30} : {value}"


def _usual(card: Card) -> chips.Defaults:
    return chips.defaults(card.name, card.family)


def _memory(card: Card, chip: Chip) -> tuple[int, int]:
    # The chips whose memory is all HBM say 0 for the rest.
    return (0, 0) if card.family in ("910B", "A3") else chip.memory or _usual(card).memory


def _hbm(card: Card, chip: Chip) -> tuple[int, int]:
    return chip.hbm or _usual(card).hbm


def _pages(card: Card, chip: Chip) -> tuple[int, int]:
    return chip.hugepages or _usual(card).hugepages


def _rate(part: tuple[int, int]) -> str:
    used, total = part
    return str(100 * used // total if total else 0)


def _constant(value: str) -> Reading:
    return lambda card, chip: value


def _watts(card: Card, chip: Chip) -> str:
    watts = chip.power if chip.power is not None else _usual(card).power
    return f"{watts or 0.0:.1f}"


def _degrees(card: Card, chip: Chip) -> str:
    return str(_usual(card).temperature if chip.temperature is None else chip.temperature)


_READINGS: dict[str, Reading] = {
    "Memory Capacity(MB)": lambda card, chip: str(_memory(card, chip)[1]),
    "DDR Capacity(MB)": lambda card, chip: str(_memory(card, chip)[1]),
    "HBM Capacity(MB)": lambda card, chip: str(_hbm(card, chip)[1]),
    "Memory Usage Rate(%)": lambda card, chip: _rate(_memory(card, chip)),
    "DDR Usage Rate(%)": lambda card, chip: _rate(_memory(card, chip)),
    "HBM Usage Rate(%)": lambda card, chip: _rate(_hbm(card, chip)),
    "Hugepages Total(page)": lambda card, chip: str(_pages(card, chip)[1]),
    "DDR Hugepages Total(page)": lambda card, chip: str(_pages(card, chip)[1]),
    "Hugepages Usage Rate(%)": lambda card, chip: _rate(_pages(card, chip)),
    "DDR Hugepages Usage Rate(%)": lambda card, chip: _rate(_pages(card, chip)),
    "Aicore Usage Rate(%)": lambda card, chip: str(chip.aicore),
    "Aicore Freq(MHZ)": _constant("1080"),
    "Aicore curFreq(MHZ)": _constant("1080"),
    "Aicore Count": _constant("20"),
    "Temperature(C)": _degrees,
    "Temperature (C)": _degrees,
    "NPU Temperature (C)": _degrees,
    "Rated Power Dissipation(W)": _watts,
    "NPU Real-time Power(W)": _watts,
    "Health": lambda card, chip: chip.health,
    "Memory Clock Speed(MHz)": _constant("1600"),
    "DDR Clock Speed(MHz)": _constant("1600"),
    "HBM Clock Speed(MHz)": _constant("1600"),
    "HBM Temperature(C)": _degrees,
}
_DVPP = tuple(f"DVPP {unit} Usage Rate(%)" for unit in ("VDEC", "VPC", "VENC", "JPEGE", "JPEGD"))
_SMALL_USAGES = (
    "Memory Capacity(MB)",
    "Memory Usage Rate(%)",
    "Hugepages Total(page)",
    "Hugepages Usage Rate(%)",
    "Aicore Usage Rate(%)",
    "Aicpu Usage Rate(%)",
    "Ctrlcpu Usage Rate(%)",
    "Memory Bandwidth Usage Rate(%)",
)
_DDR = ("DDR Capacity(MB)", "DDR Usage Rate(%)", "DDR Hugepages Total(page)", "DDR Hugepages Usage Rate(%)")
_310P_USAGES = (
    *_DDR,
    "Aicore Usage Rate(%)",
    "Aicpu Usage Rate(%)",
    "Ctrlcpu Usage Rate(%)",
    "Vectorcore Usage Rate(%)",
    "DDR Bandwidth Usage Rate(%)",
    *_DVPP,
)
_HBM = ("HBM Capacity(MB)", "HBM Usage Rate(%)")
_BANDWIDTH = ("DDR Bandwidth Usage Rate(%)", "HBM Bandwidth Usage Rate(%)")
_910_USAGES = (
    *_DDR,
    *_HBM,
    "Aicore Usage Rate(%)",
    "Aicpu Usage Rate(%)",
    "Ctrlcpu Usage Rate(%)",
    *_BANDWIDTH,
)
_910B_USAGES = (
    *_DDR,
    *_HBM,
    "Aicore Usage Rate(%)",
    "Aivector Usage Rate(%)",
    "Aicpu Usage Rate(%)",
    "Ctrlcpu Usage Rate(%)",
    *_BANDWIDTH,
    "NPU Utilization(%)",
    "Aicube Usage Rate(%)",
)
_SMALL_COMMON = ("Memory Usage Rate(%)", "Aicore Usage Rate(%)", "Temperature(C)", "Rated Power Dissipation(W)")
_FREQUENCIES = ("Aicore Freq(MHZ)", "Aicore curFreq(MHZ)")
_310P_COMMON = ("Memory Usage Rate(%)", "Aicore Usage Rate(%)", *_FREQUENCIES, "Temperature(C)")
_HBM_COMMON = (
    "Memory Usage Rate(%)",
    "HBM Usage Rate(%)",
    "Aicore Usage Rate(%)",
    *_FREQUENCIES,
    "Aicore Count",
    "Temperature(C)",
    "NPU Real-time Power(W)",
)
_HBM_MEMORY = ("DDR Capacity(MB)", "HBM Capacity(MB)", "HBM Clock Speed(MHz)", "HBM Temperature(C)")
_TEMPERATURE = ("Temperature (C)",)
_REAL_POWER = ("NPU Real-time Power(W)",)


def _for_all(
    small: tuple[str, ...],
    b310: tuple[str, ...],
    p310: tuple[str, ...],
    old910: tuple[str, ...],
    new910: tuple[str, ...],
) -> dict[chips.Family, tuple[str, ...]]:
    return {"310": small, "310B": b310, "310P": p310, "910": old910, "910B": new910, "A3": new910}


#: What each family prints for a query, in its order. An empty list: the chip has none, its card may.
_KEYS: dict[str, dict[chips.Family, tuple[str, ...]]] = {
    "common": _for_all(_SMALL_COMMON, _SMALL_COMMON, _310P_COMMON, _HBM_COMMON, _HBM_COMMON),
    "usages": _for_all(_SMALL_USAGES, _SMALL_USAGES, _310P_USAGES, _910_USAGES, _910B_USAGES),
    "memory": _for_all(
        ("Memory Capacity(MB)", "Memory Clock Speed(MHz)"),
        ("Memory Capacity(MB)", "Memory Clock Speed(MHz)"),
        ("DDR Capacity(MB)", "DDR Clock Speed(MHz)"),
        _HBM_MEMORY,
        _HBM_MEMORY,
    ),
    "temp": _for_all(_TEMPERATURE, _TEMPERATURE, _TEMPERATURE, ("NPU Temperature (C)",), ("NPU Temperature (C)",)),
    "power": _for_all(("Rated Power Dissipation(W)",), _REAL_POWER, (), _REAL_POWER, _REAL_POWER),
    "health": _for_all(*(("Health",),) * 5),
}
QUERIES = (*_KEYS, "board", "product")


def query(board: Board, card: Card, what: str, chip: int | None) -> Iterator[str]:
    """The lines of ``info -t <what> -i <card> [-c <chip>]``."""
    if what == "board":
        yield from _board(board, card, chip)
    elif what == "product":
        yield line("Product Type", card.product)
    elif what == "health" and chip is not None:
        yield line("Health Status", card.chips[chip].health)
        yield line("Error Code", "NA")
        yield line("Error Information", "NA")
    elif what == "common":
        yield from _common(card, chip)
    else:
        yield from _values(card, what, chip)


def _value(card: Card, chip: Chip, key: str) -> str:
    return chip.readings.get(key) or _READINGS.get(key, _constant("0"))(card, chip)


def _chosen(card: Card, chip: int | None) -> list[tuple[int, Chip]]:
    return [(index, one) for index, one in enumerate(card.chips) if chip in (None, index)]


def _common(card: Card, chip: int | None) -> Iterator[str]:
    yield line("NPU ID", card.npu)
    yield line("Chip Count", len(card.chips))
    for index, one in _chosen(card, chip):
        yield ""
        yield line("Chip ID", index)
        for key in _KEYS["common"][card.family]:
            yield line(key, _value(card, one, key))
    if card.mcu:
        yield ""
        small = card.family in ("310", "310B")
        yield line("Chip Name", "MCU" if small else "mcu")
        yield line("Temperature(C)", card.mcu.temperature)
        if card.family != "310P":
            yield line("Power Dissipation(W)" if small else "NPU Real-time Power(W)", f"{card.mcu.power:.1f}")


def _values(card: Card, what: str, chip: int | None) -> Iterator[str]:
    yield line("NPU ID", card.npu)
    yield line("Chip Count", len(card.chips))
    yield ""
    # The older tool chain names the chip first, the newer one last.
    first = card.family in ("310", "310B")
    keys = _KEYS[what][card.family]
    for index, one in _chosen(card, chip) if keys else ():
        if first:
            yield line("Chip ID", index)
        for key in keys:
            yield line(key, _value(card, one, key))
        if not first:
            yield line("Chip ID", index)
        yield ""
    if card.mcu and what in ("temp", "power", "health"):
        yield {
            "temp": line("Temperature (C)", card.mcu.temperature),
            "power": line("Power Dissipation(W)", f"{card.mcu.power:.1f}"),
            "health": line("Health", "OK"),
        }[what]
        yield line("Chip Name", "MCU")
        yield ""


def _board(board: Board, card: Card, chip: int | None) -> Iterator[str]:
    yield line("NPU ID", card.npu)
    if chip is not None:
        yield line("Chip ID", chip)
        yield line("Chip Type", "Ascend")
        yield line("Chip Name", card.name)
        yield line("Chip Version", "V1")
        if card.npu_name:
            yield line("NPU Name", card.npu_name)
        yield line("Board ID", "0x00")
        yield line("PCB ID", "NA")
        yield line("BOM ID", "0")
        return
    usual = chips.defaults(card.name, card.family)
    yield line("Product Name", card.product)
    yield line("Model", "NA")
    yield line("Manufacturer", "Huawei")
    yield line("Serial Number", card.serial)
    yield line("Software Version", board.driver)
    yield line("Firmware Version", "NA")
    yield line("Board ID", "0x00")
    yield line("PCB ID", "NA")
    yield line("BOM ID", "0")
    yield line("PCIe Bus Info", bus_id(card.chips[0], usual, 0))
    yield line("Chip Count", len(card.chips))
    yield line("Faulty Chip Count", 0)


def cards(board: Board) -> Iterator[str]:
    """The lines of ``info -l``."""
    if not board.cards:
        yield "There is no NPU card on this server."
        return
    small = board.cards[0].family in ("310", "310B")
    yield line("Card Count" if small else "Total Count", len(board.cards))
    yield ""
    for card in board.cards:
        yield line("NPU ID", card.npu)
        if not chips.has_hbm(card.family):
            yield line("Product Name", card.product)
            yield line("Serial Number", card.serial)
        yield line("Chip Count", len(card.chips))
        yield ""


def mapping(board: Board) -> Iterator[str]:
    """The lines of ``info -m``: which logic id, the one that programs use, belongs to which chip."""
    if not board.cards:
        yield "There is no NPU card on this server."
        return
    phy = board.cards[0].family == "A3"
    columns = ["NPU ID", "Chip ID", "Chip Logic ID", *(["Chip Phy-ID"] if phy else []), "Chip Name"]
    yield _row(columns)
    logic_id = 0
    for card in board.cards:
        for index in range(len(card.chips)):
            name = "MiniD" if card.family == "310" else f"Ascend {card.name.removeprefix('Ascend')}"
            ids = [card.npu, index, logic_id, *([logic_id] if phy else [])]
            yield _row([*map(str, ids), name])
            logic_id += 1
        if card.mcu:
            yield _row([str(card.npu), str(len(card.chips)), "-", *(["-"] if phy else []), "Mcu"])


def _row(cells: list[str]) -> str:
    return "\t" + " ".join([*(f"{cell:<30}" for cell in cells[:-1]), cells[-1]])
