"""Where the installed tools begin."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from targets.base import FleetError

#: No real tool ends so: the simulator itself is not set up well.
BAD_BOARD = 125


def launch(prefix: Path, tool: str, arguments: Sequence[str]) -> NoReturn:
    """Run a tool of the board below ``prefix`` and end the process with its status."""
    try:
        status = _main(tool)(prefix, arguments)
    except FleetError as error:
        sys.stderr.write(f"simulated {tool}: {error.message}\n")
        status = BAD_BOARD
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain when it flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    raise SystemExit(status)


def _main(tool: str) -> Callable[[Path, Sequence[str]], int]:
    if tool == "npu-smi":
        from targets.ascend.sim import npu_smi

        return npu_smi.main
    if tool == "atc":
        from targets.ascend.sim import atc

        return atc.main
    from targets.ascend.sim import ais_bench

    return ais_bench.main
