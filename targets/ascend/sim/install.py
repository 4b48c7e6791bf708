"""Put the simulated toolchain where an agent finds it, laid out as the real one is."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path

from targets.ascend.sim import board as boards
from targets.ascend.sim.board import Board
from targets.ascend.sim.om import SIMULATED_VERSION

#: A JSON file that describes the boards to install; without it they are boards with one 310P3.
BOARD_VARIABLE = "FLEET_SIM_ASCEND_BOARD"
PREFIX = "ascend-sim"
_ROOT = Path(__file__).resolve().parents[3]
_LAUNCHER = '''"""Starts a tool of the simulated CANN below this folder's parent."""
import sys
from pathlib import Path

sys.path[0] = {root!r}
from targets.ascend.sim.launch import launch

launch(Path(__file__).resolve().parents[1], sys.argv[1], sys.argv[2:])
'''
_MAIN = '''"""The simulated ais_bench."""
import sys
from pathlib import Path

sys.path.append({root!r})
from targets.ascend.sim.launch import launch

launch(Path({prefix!r}), "ais_bench", sys.argv[1:])
'''
_SET_ENV = """# Environment of the simulated CANN toolkit: source this file.
export ASCEND_TOOLKIT_HOME={toolkit}
export ASCEND_HOME_PATH={toolkit}
export ASCEND_AICPU_PATH={toolkit}
export ASCEND_OPP_PATH={toolkit}/opp
export TOOLCHAIN_HOME={toolkit}/toolkit
export LD_LIBRARY_PATH={toolkit}/lib64${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
export PYTHONPATH={toolkit}/python/site-packages${{PYTHONPATH:+:$PYTHONPATH}}
export PATH={toolkit}/bin:$PATH
"""


def install(folder: Path, board: Board | None = None) -> dict[str, str]:
    """Install below ``folder`` and return the environment in which an agent finds it.

    ``board`` describes the hardware; without it, the file that ``FLEET_SIM_ASCEND_BOARD`` names, else one 310P3.
    A board that is there already keeps its description unless a new one is given.

    Raises:
        FleetError: code ``bad-board``.
        OSError: the folder cannot be written.
    """
    prefix = folder.resolve() / PREFIX
    toolkit = prefix / "usr/local/Ascend/ascend-toolkit"
    prefix.mkdir(parents=True, exist_ok=True)
    if board is None and BOARD_VARIABLE in os.environ:
        board = boards.parse(Path(os.environ[BOARD_VARIABLE]).read_bytes())
    if board is not None or not (prefix / boards.FILE_NAME).exists():
        boards.save(board or Board(), prefix)
    found = boards.load(prefix)
    _tools(prefix, toolkit / "latest")
    _facts(prefix, toolkit, found)
    return environment(folder)


def environment(folder: Path) -> dict[str, str]:
    """What an agent needs to find the tools below ``folder``; PATH replaces its own."""
    prefix = folder.resolve() / PREFIX
    local = prefix / "usr/local"
    return {
        "PATH": f"{local / 'sbin'}:{local / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "FLEET_ASCEND_ENV": str(local / "Ascend/ascend-toolkit/set_env.sh"),
        # The real tools log below the home directory, which belongs to the person who simulates.
        "ASCEND_PROCESS_LOG_PATH": str(prefix / "log"),
    }


def _tools(prefix: Path, toolkit: Path) -> None:
    launcher = prefix / "lib/launch.py"
    python = shlex.quote(sys.executable)
    _write(launcher, _LAUNCHER.format(root=str(_ROOT)))
    start = f"exec {python} {shlex.quote(str(launcher))}"
    _write(prefix / "usr/local/sbin/npu-smi", f'#!/bin/sh\n{start} npu-smi "$@"\n', mode=0o755)
    # A board's own Python has the packages that the tools need; here it is the one that installs.
    _write(prefix / "usr/local/bin/python3", f'#!/bin/sh\nexec {python} "$@"\n', mode=0o755)
    _write(toolkit / "bin/atc", f'#!/bin/sh\n{start} atc "$@"\n', mode=0o755)
    package = toolkit / "python/site-packages/ais_bench"
    _write(package / "__init__.py", '"""The simulated ais_bench: see docs/simulated-cann.md."""\n')
    _write(package / "__main__.py", _MAIN.format(root=str(_ROOT), prefix=str(prefix)))


def _facts(prefix: Path, toolkit: Path, board: Board) -> None:
    latest = toolkit / "latest"
    # What reads the version to name a result or to key a cache must not take this for the real release.
    version = f"{board.cann}{SIMULATED_VERSION}"
    _write(toolkit / "set_env.sh", _SET_ENV.format(toolkit=shlex.quote(str(latest))))
    _write(latest / "version.cfg", f"version={version}\n")
    architecture = f"{platform.machine()}-linux"
    install_info = f"package_name=Ascend-cann-toolkit\nversion={version}\narch={platform.machine()}\nos=linux\n"
    _write(latest / architecture / "ascend_toolkit_install.info", install_info)
    _write(prefix / "usr/local/Ascend/driver/version.info", f"Version={board.driver}+simulated\n")
    complete = "complete" if board.driver_complete else "running"
    _write(prefix / "etc/ascend_install.info", f"Driver_Install_Status={complete}\n")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
