"""A PYNQ board: armv7 in the layout of its image, the real driver and helper, and the model of the accelerator below.

What there is of hardware is the model: `pynq` is a stand-in of its image's, as in the driver's own tests; what the
fabric computes is computed by this machine (`board_fpga`).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_client import REPOSITORY
from board_fixtures import Boards, boards, own_runtime
from board_fleet import BoardFleet, only
from board_fpga import fabric
from board_hosts import Board
from pynq_boards import BITSTREAM, CONFIG, BoardAtHand

from targets.vta.counters import NAMES

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]

NET = "shapes-classifier"
MACHINE = "/srv/machine"
#: The Python of PYNQ's images from 2.7 on, which here has the model under `pynq`.
IMAGE_PYTHON = "/usr/local/share/pynq-venv/bin/python3"
_PYTHON = f"""\
#!/bin/sh
BOARD_ROOT={MACHINE} PYTHONPATH={MACHINE}/site:/opt/fleet/agent/lib/python3.11/site-packages \
exec /usr/bin/python3 "$@" --root {MACHINE}
"""


@dataclass
class PynqPlace:
    board: Board
    fleet: BoardFleet
    options: list[str]

    def done(self, what: str) -> list[str]:
        """What was done to the hardware so far, of one kind."""
        return [line for line in self.board.inside("cat", f"{MACHINE}/done.log").splitlines() if line.startswith(what)]


@pytest.fixture(scope="module")
def pynq(boards: Boards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PynqPlace]:
    """A provisioned board of PYNQ 3.0."""
    root = tmp_path_factory.mktemp("pynq")
    machine = BoardAtHand(root / "machine", "pynq_3_0")
    board = boards("armhf", "pynq-1")
    with fabric(board.gateway, CONFIG) as fpga:
        machine.set(pool_size=64 << 20, fpga=fpga)
        board.copy_in(machine.root, "/srv")
        python = root / "python3"
        python.write_text(_PYTHON)
        python.chmod(0o755)
        board.copy_in(python, str(Path(IMAGE_PYTHON).parent))
        fleet = BoardFleet(root / "fleet")
        fleet.add(board, "pynq")
        own_runtime(fleet, board.architecture.uname)
        done = fleet.one("provision", board.name)
        assert done["status"] == "provisioned", done
        bitstream = root / "vta.bit"
        bitstream.write_bytes(BITSTREAM)
        digest = hashlib.sha256(BITSTREAM).hexdigest()
        options = ["--option", f"bitstream={bitstream}", "--option", f"bitstream_sha256={digest}"]
        yield PynqPlace(board, fleet, options)
        board.stop()


def test_the_helper_is_where_only_root_writes_it_and_may_be_started_as_root(pynq: PynqPlace) -> None:
    said = pynq.board.inside("stat", "-c", "%U %a", "/opt/fleet/helper.py")
    assert said.split() == ["root", "644"]
    allowed = pynq.board.inside("runuser", "-u", "fleet", "--", "sudo", "-n", "-l")
    assert f"{IMAGE_PYTHON} /opt/fleet/helper.py" in allowed and "NOPASSWD: ALL" not in allowed


def test_a_network_on_the_accelerator(pynq: PynqPlace) -> None:
    """To the bit what the integers say, or the release would not be active."""
    done = pynq.fleet.one("deploy", NET, "--device", "pynq-1", *pynq.options)
    # Its processor is emulated.
    assert (done["status"], done["simulated"]) == ("active", True), done
    assert len(pynq.done("program")) == 1 and pynq.done("control")

    path = pynq.fleet.root / "star.png"
    command = [sys.executable, "-m", "controller.zoo.draw", "picture", "--shape", "star", "--seed", "7", "-o", path]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=60)
    found = pynq.fleet.one("run", NET, path, "--device", "pynq-1")
    assert found["top"][0]["label"] == "star"


def test_a_bench_counts_what_the_accelerator_did(pynq: PynqPlace) -> None:
    short = ["--min-duration", "0.2", "--percentile", "50", "--max-other-load", "1"]
    result = only(pynq.fleet.good("bench", NET, "--device", "pynq-1", *pynq.options, *short)["runs"])
    assert result["verdict"] == "VALID", result
    assert set(NAMES) <= set(result["counters"]) and result["counters"]["gemm_counter"] > 0
    assert CONFIG.identity in result["conditions"]["accelerator"]
    assert result["conditions"]["pynq_dialect"] == "xrt"
