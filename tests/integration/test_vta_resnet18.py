"""ResNet-18 on a simulated board with VTA: the figures that were aimed at, and every bit of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fixtures import Cli, boards

SEEDS = 10
#: What the network's residual sums and convolutions take at least, and TVM's published figures for the rest.
MOST = {"gemm_counter": 6_670_272, "alu_counter": 470_000, "bytes_moved": 18_500_000}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    yield from boards(tmp_path_factory.mktemp("resnet") / "home", 1, "--target", "pynq")


def test_deployed_measured_and_equal_to_the_bit(cli: Cli) -> None:
    weights = ("--weights", "random:0")
    (deployed,) = cli.good("deploy", "resnet18_v1", *weights, "--target", "pynq")["results"]
    assert deployed["status"] == "active", deployed["reason"]
    (run,) = cli.good("bench", "--all", "--min-duration", "0.1", "--percentile", "50")["runs"]
    assert (run["model"], run["simulated"]) == ("resnet18_v1", True)
    counters = run["counters"]
    assert all(counters[name] <= most for name, most in MOST.items()), counters
    # 64 bits a cycle.
    assert counters["cycles"] <= 1.25 * max(counters["gemm_counter"], counters["bytes_moved"] / 8)

    out = cli.cwd / "resnet.fleet"
    assert cli("build", "resnet18_v1", *weights, "--device", "sim-1", "-o", out).code == 0
    found = _in_every_order(out, cli.cwd / "blobs")
    assert found["errors"] == dict.fromkeys(found["errors"], 0.0)
    assert len(found["errors"]) == 2 + SEEDS
    assert found["same"] and not found["findings"]
    assert all(found["counters"][name] == counters[name] for name in MOST)


def _in_every_order(bundle: Path, folder: Path) -> dict[str, dict[str, float]]:
    command = [sys.executable, Path(__file__).with_name("run_orders.py"), bundle, folder, str(SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found
