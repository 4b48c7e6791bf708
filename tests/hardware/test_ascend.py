"""Run on an Ascend board, with its toolkit: the published network compiles, computes what torch does, is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_fixtures import run

from agent import protocol as p
from controller import sim
from controller.events import ignore
from controller.fleet import Fleet
from controller.home import Home
from controller.options import BenchOptions, DeployOptions
from targets.ascend import npu_smi, toolkit
from targets.base import FleetError

pytestmark = pytest.mark.hardware


def _lacking() -> str:
    """Why this is no Ascend board, in words."""
    try:
        npu_smi.discover()
        toolkit.find().command("atc")
    except FleetError as error:
        return f"no Ascend board with a toolkit: {error.message}"
    return ""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An agent on this board, with the board's own tools."""
    if lacking := _lacking():
        pytest.skip(lacking)
    home = Home.find(tmp_path_factory.mktemp("fleet") / "home")
    with pytest.MonkeyPatch.context() as patch:
        # The agent of a simulated board without the simulation of its tools.
        patch.setattr("targets.ascend.Ascend.prepare", lambda _self, _folder: {})
        sim.up(home, 1, target="ascend")
    try:
        yield Fleet(home=home, listener=ignore)
    finally:
        sim.down(home)


@pytest.mark.parametrize("batch", [1, 16])
def test_the_published_network(fleet: Fleet, batch: int) -> None:
    selection = fleet.select(everything=True)
    options = DeployOptions(weights="random:0", options={"batch": batch})
    [report] = run(fleet.deploy("ssd300_resnet34", selection, options))
    assert report.status in ("active", "unchanged"), report.reason
    [result] = run(fleet.bench(None, selection, BenchOptions(spec=p.BenchSpec(min_duration=1.0))))
    assert isinstance(result, p.RunResult)
    assert result.engine == "ais_bench" and result.throughput > 10


def test_its_chips_are_read(fleet: Fleet) -> None:
    board = npu_smi.discover()
    assert board.chips and all(chip.name and chip.health for chip in board.chips)
    assert len({chip.device for chip in board.chips}) == len(board.chips)
    assert Path(toolkit.find().command("atc")).is_file()
