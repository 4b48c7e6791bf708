"""The driver's end of the pipe to the helper: how it is started on an image, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from targets import helper_process
from targets.pynq import helper
from targets.vta.driver import DriverError

HELPER = Path(helper.__file__)
#: Where the images of PYNQ have the Python that has `pynq`: the environment of 2.7 and later, and the system's of 2.5
#: and 2.6.
INTERPRETERS = ("/usr/local/share/pynq-venv/bin/python3", "/usr/bin/python3.6", "/usr/bin/python3")
#: What of this process's environment is also right for the image's Python, which has packages of its own.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "HOME", "BOARD", "XILINX_XRT")

_HINTS = {
    "busy": "end the other process, or wait for it",
    "not-root": "run the agent as root, or let it start the helper with sudo (docs/targets/pynq.md)",
    "no-pynq": "name the Python of the board's image that has pynq in FLEET_PYNQ_PYTHON",
    "no-memory": "enlarge the pool with the boot argument cma=, or end what else holds memory of it",
    "program-failed": "see the kernel's messages (dmesg); the board may need to be switched off and on",
    "wrong-clock": "another design or program has changed the processor's PLLs; boot the board anew",
    "vta-timeout": "the FPGA was programmed again; check the program with `vta sim`, or allow it more time",
    "wrong-protocol": "copy the helper of this version to where it is started from",
    "helper-ended": "the next start programs the FPGA anew; if it ends again, see the board's log",
}


class HelperProcess(helper_process.HelperProcess):
    """The running helper of a PYNQ image. Raises :class:`DriverError`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(command, environment, wire=helper, passed_on=_PASSED_ON)

    def failure(self, message: str, code: str) -> DriverError:
        return DriverError(message, code=code, hint=_HINTS.get(code, ""))


def command(python: str = "", sudo: bool | None = None) -> list[str]:
    """How the helper is started on this board: by ``python``, by ``FLEET_PYNQ_PYTHON`` or by the first Python of a
    PYNQ image there is; through ``sudo -n`` unless this process is root. Raises :class:`DriverError` (``no-pynq``).
    """
    chosen = python or os.environ.get("FLEET_PYNQ_PYTHON", "")
    candidates = [chosen] if chosen else list(INTERPRETERS)
    found = next((path for path in candidates if os.access(path, os.X_OK)), "")
    if not found:
        raise DriverError(
            f"there is no Python at {', '.join(candidates)}",
            code="no-pynq",
            hint="name the Python of the board's image that has pynq in FLEET_PYNQ_PYTHON",
        )
    if sudo is None:
        sudo = os.geteuid() != 0
    return [*(("sudo", "-n") if sudo else ()), found, os.environ.get("FLEET_PYNQ_HELPER", str(HELPER))]
