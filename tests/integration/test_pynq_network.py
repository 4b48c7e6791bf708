"""A network on a board of PYNQ: device half, driver, helper, `pynq`, and the model of the hardware at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import Cli
from pynq_boards import BITSTREAM, CONFIG, DIALECTS, BoardAtHand

from targets.vta.counters import NAMES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, its CPU part for this machine."""
    home = tmp_path_factory.mktemp("pynq-network") / "home"
    path = home.parent / "net.fleet"
    built = Cli(home)("build", "shapes-classifier", "--target", "vta-sim", "-o", path)
    assert built.code == 0, built.err
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_network_computes_on_a_board_what_its_integers_say(tmp_path: Path, bundle: Path, dialect: str) -> None:
    board = BoardAtHand(tmp_path / "board", dialect)
    board.set(pool_size=64 << 20)
    bitstream = tmp_path / "bitstream.bit"
    bitstream.write_bytes(BITSTREAM)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_on_pynq.py"), bundle, tmp_path / "blobs", bitstream],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "FLEET_PYNQ_PYTHON": str(board.image_python())},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == [0.0] * len(found["errors"]) and len(found["errors"]) >= 2
    counters = found["counters"]
    assert set(NAMES) <= set(counters) and counters["gemm_counter"] > 0
    assert counters["accelerator_ms"] > 0
    assert counters["predicted_ms"] == pytest.approx(counters["cycles"] / 100e3) and counters["cycles"] > 0
    assert found["conditions"]["pynq_dialect"] == DIALECTS[dialect]
    assert CONFIG.identity in found["conditions"]["accelerator"]
    assert "simulated" not in found["conditions"]["accelerator"]
    assert board.record["open"] is False and len(board.done("program")) == 1
