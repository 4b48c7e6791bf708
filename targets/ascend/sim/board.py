"""The simulated board: what it holds and what goes wrong on it, one JSON file that every tool reads at its start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from targets.ascend.sim.chips import Family, family_of, soc_version
from targets.base import FleetError

FILE_NAME = "board.json"
MAX_FILE = 1 << 20
MAX_CHIPS = 64

Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[ -~]+$")]


class Process(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A process on a chip, as ``npu-smi info`` lists it."""

    pid: Amount
    name: Word
    megabytes: Amount


class Chip(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One chip of a card. What is left out is that of an idle chip of its kind.

    ``bus`` is the PCI address (``0000:01:00.0``, or ``NA``); ``memory`` and ``hbm`` are megabytes used and in all,
    ``hugepages`` pages used and in all; ``readings`` overrides a value of ``npu-smi info -t …`` by its printed name.
    """

    bus: Annotated[str, msgspec.Meta(pattern=r"^(NA|[0-9A-F]{4}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-9A-F])$")] | None = None
    health: Word = "OK"
    power: float | None = None
    temperature: Annotated[int, msgspec.Meta(ge=-99, le=999)] | None = None
    aicore: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    memory: tuple[Amount, Amount] | None = None
    hbm: tuple[Amount, Amount] | None = None
    hugepages: tuple[Amount, Amount] | None = None
    processes: tuple[Process, ...] = ()
    readings: dict[Word, Word] = {}


class Mcu(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The controller that some boards have beside their chips."""

    temperature: int = 36
    power: float = 13.3


class Card(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A card: ``npu`` is its id (from the bus, no index), ``name`` its chips' as ``npu-smi info`` says it."""

    name: Word
    npu: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    chips: Annotated[tuple[Chip, ...], msgspec.Meta(min_length=1, max_length=MAX_CHIPS)] = (Chip(),)
    product: Word = "NA"
    serial: Word = "NA"
    npu_name: str = ""
    mcu: Mcu | None = None

    @property
    def family(self) -> Family:
        found = family_of(self.name)
        assert found is not None, "a board is checked when it is read"
        return found


class Fault(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a tool does instead of its work: see docs/simulated-cann.md for what each kind means for each tool."""

    kind: Literal["absent", "no-driver", "busy", "fail", "hang", "garbage", "kill", "no-space", "cut-summary"]
    #: For ``fail``: the code that is printed, such as ``EZ3003``, and what stands behind it.
    code: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{1,2}[A-Z0-9]{4,5}$")] = "E19999"
    text: Annotated[str, msgspec.Meta(max_length=4096)] = "Inner Error!"
    #: For ``hang`` and ``kill`` of ais_bench: after how many runs of the network.
    after: Annotated[int, msgspec.Meta(ge=0)] = 0


#: What each tool can be made to do; a fault that a tool would pass over is refused.
_EVERY_TOOL = {"absent", "no-driver", "fail", "hang", "garbage", "kill"}
_KINDS = {
    "npu-smi": _EVERY_TOOL | {"busy"},
    "atc": _EVERY_TOOL | {"no-space"},
    "ais_bench": _EVERY_TOOL | {"no-space", "cut-summary"},
}


class Faults(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"npu_smi": "npu-smi"}):
    npu_smi: Fault | None = None
    atc: Fault | None = None
    ais_bench: Fault | None = None


class Board(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A simulated board.

    ``driver`` and ``tool`` are the versions of the driver and of npu-smi, ``cann`` that of the toolkit (its messages
    changed over time). ``unsupported`` are ONNX operators for which this chip has no kernel. ``noise`` makes atc print
    what it prints when operators compile slowly and badly. ``fp16`` rounds weights and inputs to half precision where
    the precision mode says so. ``threads`` of onnxruntime, 0 for as many as it likes.
    """

    cards: Annotated[tuple[Card, ...], msgspec.Meta(max_length=MAX_CHIPS)] = (Card("310P3"),)
    driver: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9a-z]+){1,4}$", max_length=24)] = "23.0.0"
    tool: Annotated[str, msgspec.Meta(pattern=r"^([0-9]+(\.[0-9a-z]+){1,4})?$", max_length=24)] = ""
    cann: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]+(\.[0-9A-Za-z]+){0,3}$", max_length=24)] = "8.0.RC1"
    driver_complete: bool = True
    unsupported: tuple[Word, ...] = ()
    noise: bool = False
    fp16: bool = True
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    faults: Faults = Faults()

    @property
    def tool_version(self) -> str:
        return self.tool or self.driver

    @property
    def chip_count(self) -> int:
        return sum(len(card.chips) for card in self.cards)

    def socs(self) -> list[str]:
        """The ``soc_version`` of every chip, by its logic id."""
        return [soc_version(card.name, card.npu_name) for card in self.cards for _ in card.chips]


def version_key(version: str) -> tuple[int, ...]:
    """Versions in their order: ``23.0.rc3`` comes before ``23.0.0``."""
    return tuple(
        int(part) if part.isdigit() else int(re.sub(r"[^0-9]", "", part) or 0) - 1000 for part in version.split(".")
    )


def parse(data: bytes) -> Board:
    """A board from its JSON text.

    Raises:
        FleetError: too large, not JSON, an unknown field, a value out of its range, or a chip that does not exist.
    """
    if len(data) > MAX_FILE:
        raise _bad(f"it has {len(data)} bytes")
    try:
        board = msgspec.json.decode(data, type=Board)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _bad(str(error)) from None
    for card in board.cards:
        if family_of(card.name) is None:
            raise _bad(
                f"there is no chip '{card.name}'", hint="take 310, 310P3, 310B1, 310B4, 910A, 910B4, Ascend910 …"
            )
    faults = {"npu-smi": board.faults.npu_smi, "atc": board.faults.atc, "ais_bench": board.faults.ais_bench}
    for tool, fault in faults.items():
        if fault and fault.kind not in _KINDS[tool]:
            raise _bad(f"{tool} has no fault '{fault.kind}'", hint=f"it has {', '.join(sorted(_KINDS[tool]))}")
    if len({card.npu for card in board.cards}) != len(board.cards):
        raise _bad("two cards have the same NPU id")
    return board


def load(prefix: Path) -> Board:
    """The board whose tools lie below ``prefix``.

    Raises:
        FleetError: no such file, or as :func:`parse`.
    """
    path = prefix / FILE_NAME
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_FILE + 1))
    except OSError as error:
        raise _bad(f"{path}: {error.strerror}") from None


def save(board: Board, prefix: Path) -> None:
    """Replace the description, in one step: tools may start meanwhile."""
    fresh = prefix / f".{FILE_NAME}"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(board)) + b"\n")
    fresh.replace(prefix / FILE_NAME)


def _bad(why: str, hint: str = "docs/simulated-cann.md describes the file") -> FleetError:
    return FleetError(f"the description of the simulated Ascend board is not valid: {why}", code="bad-board", hint=hint)
