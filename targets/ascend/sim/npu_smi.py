"""The simulated ``npu-smi``: everything it says goes to standard output, and its codes are negative numbers modulo 256.

Source of the texts and codes: hicann/driver, npu_smi.c and npu_parameter_parse.c.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from targets.ascend.sim import smi_table, smi_values
from targets.ascend.sim.board import Board, Card, Fault, load

PARAMETER_MISSING = -9001
UNKNOWN = -9005
NO_DRIVER = -8005
IN_USE = -8020

_USAGE = """Usage: npu-smi <Command|-h|-v> [Options...]

npu-smi Command:
\t-h          Show this help text and exit
\t--help      Show this help text and exit
\t-v          Show npu-smi version and exit
\tinfo        Show information of the NPU
\tset         Set information of the NPU
\tclear       Clear information of the NPU
\tupgrade     Upgrade the MCU or the firmware"""
_INFO_USAGE = """Usage: npu-smi info [Options...]

Options:
\t-l          Show topology information of all devices
\t-m          Show the mapping from chip to logic id
\t-t type     Show information of one type, with -i and maybe -c
\t-i %d       Card ID
\t-c %d       Chip ID"""


class Refused(Exception):
    """Ends the tool: ``rc`` is the code that it hands to ``exit``."""

    def __init__(self, rc: int, *lines: str) -> None:
        super().__init__(*lines)
        self.rc = rc
        self.lines = lines


def main(prefix: Path, arguments: Sequence[str]) -> int:
    """Run the tool; the exit status as a shell sees it."""
    board = load(prefix)
    try:
        if board.faults.npu_smi:
            _fault(board.faults.npu_smi)
        _print(_answer(board, list(arguments)))
    except Refused as end:
        _print(end.lines)
        return end.rc & 0xFF
    return 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _fault(fault: Fault) -> None:
    if fault.kind == "absent":
        sys.stderr.write("bash: npu-smi: command not found\n")
        raise Refused(127)
    if fault.kind == "busy":
        raise Refused(IN_USE, f"dcmi model initialized failed, because the device is used. ret is {IN_USE}")
    if fault.kind == "hang":
        while True:
            signal.pause()
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "garbage":
        sys.stdout.buffer.write(bytes(range(256)) * 64)
        raise Refused(0)
    if fault.kind == "fail":
        raise Refused(UNKNOWN, 'Failed to query "board" info.')
    raise Refused(
        NO_DRIVER,
        "DrvMngGetConsoleLogLevel failed. (ret=4)",
        f"dcmi module initialize failed. ret is {NO_DRIVER}",
    )


def _answer(board: Board, arguments: list[str]) -> Iterable[str]:
    if not arguments:
        raise Refused(PARAMETER_MISSING, _USAGE)
    command, *options = arguments
    if command in ("-h", "--help"):
        return [_USAGE]
    if command == "-v":
        return [f"npu-smi version: {board.tool_version}"]
    if command != "info":
        raise Refused(UNKNOWN, "Command or option is not found.", _USAGE)
    if not options:
        return smi_table.table(board)
    if options in (["-h"], ["--help"]):
        return [_INFO_USAGE]
    if options == ["-l"]:
        return smi_values.cards(board)
    if options == ["-m"]:
        return smi_values.mapping(board)
    return _typed(board, options)


def _typed(board: Board, options: list[str]) -> Iterable[str]:
    given = dict(zip(options[::2], options[1::2], strict=False))
    if len(options) % 2 or set(given) - {"-t", "-i", "-c"} or "-t" not in given:
        raise Refused(UNKNOWN, "Command or option is not found.", _INFO_USAGE)
    if "-i" not in given:
        raise Refused(PARAMETER_MISSING, "", "This command must input card id.", "", _INFO_USAGE)
    card = _card(board, given["-i"])
    chip = None
    if "-c" in given:
        if not given["-c"].isdecimal() or int(given["-c"]) >= len(card.chips):
            raise Refused(PARAMETER_MISSING, "Invalid chip id.", _INFO_USAGE)
        chip = int(given["-c"])
    what = given["-t"]
    if what not in smi_values.QUERIES:
        # A type that exists but that this chip lacks is no error: the status is 0.
        return [f"This device does not support querying {what}."]
    return smi_values.query(board, card, what, chip)


def _card(board: Board, text: str) -> Card:
    found = [card for card in board.cards if text.isdecimal() and card.npu == int(text)]
    if not found:
        raise Refused(PARAMETER_MISSING, "Invalid card id.", _INFO_USAGE)
    return found[0]
