"""A board whose Python is the oldest that is promised: everything that runs there runs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from board_fixtures import Boards, boards
from board_fleet import BoardFleet, only

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]

OLDEST = "3.10"
NET = "shapes-classifier"


def installed() -> Path | None:
    """Where this machine has that Python, in a folder of its own: beside the system's, or pyenv's."""
    programs = [Path(found)] if (found := shutil.which(f"python{OLDEST}")) else []
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    programs += sorted(pyenv.glob(f"versions/{OLDEST}.*/bin/python{OLDEST}"))
    for program in programs:
        done = subprocess.run([program, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True)
        prefix = Path(done.stdout.strip())
        if done.returncode == 0 and prefix != Path("/usr") and (prefix / f"bin/python{OLDEST}").exists():
            return prefix
    return None


def test_all_of_it_runs_on_the_oldest_python(boards: Boards, tmp_path: Path) -> None:
    prefix = installed()
    if prefix is None:
        pytest.skip(f"no Python {OLDEST} in a folder of its own (pyenv install {OLDEST})")
    board = boards("amd64", "oldest")
    # As `make install` leaves it in /usr/local, where it is found before the system's own.
    for part in ("bin", "lib"):
        board.copy_in(prefix / part, "/usr/local")
    board.inside("ldconfig")
    board.inside("ln", "-sf", f"python{OLDEST}", "/usr/local/bin/python3")
    fleet = BoardFleet(tmp_path / "fleet")
    fleet.add(board, "x86")
    done = fleet.one("provision", board.name, "--runtime", "pypi")
    assert done["status"] == "provisioned", done
    assert board.inside("/opt/fleet/agent/bin/python", "--version").startswith(f"Python {OLDEST}.")

    deployed = fleet.one("deploy", NET, "--device", board.name)
    assert deployed["status"] == "active", deployed
    short = ["--min-duration", "0.2", "--percentile", "50", "--max-other-load", "1"]
    result = only(fleet.good("bench", "--device", board.name, *short)["runs"])
    assert (result["model"], result["verdict"]) == (NET, "VALID")
    assert only(fleet.good("bench", NET, "--device", board.name, *short)["runs"])["engine"] == "time_evaluator"
