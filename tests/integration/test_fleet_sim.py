"""Simulated boards: started, found, started again, ended; never a process that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil
import pytest
from fleet_fixtures import Yard, run, yard

from controller import sim
from targets.base import FleetError

__all__ = ["yard"]


def test_up_adds_what_is_missing_and_down_leaves_nothing(yard: Yard) -> None:
    (one,) = yard.up(1)
    assert (one.name, one.target, one.state, one.simulated) == ("sim-1", "numpy", "running", True)
    assert one.port and psutil.pid_exists(one.pid)
    again = yard.up(3)
    assert [board.name for board in again] == ["sim-1", "sim-2", "sim-3"]
    assert again[0].pid == one.pid
    assert sim.status(yard.home) == again
    reports = run(yard.fleet().devices(yard.everything))
    assert [(r.name, r.state, r.target, r.simulated) for r in reports] == [
        (f"sim-{n}", "idle", "numpy", True) for n in (1, 2, 3)
    ]
    assert sim.down(yard.home, ["sim-2"]) == ["sim-2"]
    assert [board.name for board in sim.status(yard.home)] == ["sim-1", "sim-3"]
    # The free name is taken again.
    assert [board.name for board in yard.up(3)] == ["sim-1", "sim-3", "sim-2"]
    pids = [board.pid for board in sim.status(yard.home)]
    assert sim.down(yard.home) == ["sim-1", "sim-2", "sim-3"]
    assert sim.status(yard.home) == [] and not any(map(psutil.pid_exists, pids))
    assert [path for path in yard.home.sim.iterdir() if path.is_dir()] == []


def test_other_kinds_of_boards_are_counted_apart(yard: Yard) -> None:
    yard.up(1)
    slow = yard.up(2, faults=["slow:2"])
    assert [(board.name, board.faults) for board in slow] == [("sim-2", ["slow:2"]), ("sim-3", ["slow:2"])]
    assert len(yard.up(1)) == 1
    assert len(sim.status(yard.home)) == 3


def test_a_dead_board_is_started_again_with_its_store(yard: Yard) -> None:
    (before,) = yard.up(1)
    archive, bundle = yard.made()
    (device,) = yard.everything
    assert run(yard.fleet().deploy(archive, [device]))[0].status == "active"
    yard.kill("sim-1")
    (report,) = run(yard.fleet().devices(yard.everything))
    assert report.state == "unreachable" and report.reason
    (after,) = yard.up(1)
    assert after.pid != before.pid and after.state == "running"
    assert yard.active(yard.everything[0]) == bundle.id


def test_a_board_that_does_not_start_says_why(yard: Yard) -> None:
    with pytest.raises(FleetError, match="sim-1") as caught:
        yard.up(1, faults=["refuse-start"])
    assert caught.value.code == "sim-failed"
    assert len(caught.value.message.splitlines()[0]) > len("the simulated board 'sim-1' did not start: ")
    assert sim.status(yard.home) == []


def test_unknown_names_targets_and_faults(yard: Yard) -> None:
    yard.up(1)
    with pytest.raises(FleetError) as caught:
        sim.down(yard.home, ["sim-7"])
    assert caught.value.code == "unknown-device" and "sim-1" in caught.value.hint
    with pytest.raises(FleetError) as caught:
        yard.up(1, target="abacus")
    assert caught.value.code == "unknown-target"
    with pytest.raises(FleetError, match="meteor") as caught:
        yard.up(1, faults=["meteor"])
    assert caught.value.code == "usage" and len(sim.status(yard.home)) == 1


def test_a_foreign_process_with_the_same_pid_is_left_alone(yard: Yard) -> None:
    """The registry's pid may have been given to another process: here it is this very test's."""
    folder = yard.home.sim / "sim-1"
    folder.mkdir(parents=True)
    entry = {"name": "sim-1", "target": "numpy", "pid": os.getpid(), "created": psutil.Process().create_time() - 100}
    (folder / "board.json").write_bytes(msgspec.json.encode(entry))
    (board,) = sim.status(yard.home)
    assert board.state == "dead"
    assert sim.down(yard.home) == ["sim-1"]
    assert psutil.pid_exists(os.getpid())


def test_a_board_that_does_not_listen_any_more_is_ended_all_the_same(yard: Yard) -> None:
    (board,) = yard.up(1)
    psutil.Process(board.pid).suspend()
    assert sim.down(yard.home) == ["sim-1"]
    assert not psutil.pid_exists(board.pid)


def test_what_is_not_readable_is_no_board(yard: Yard) -> None:
    folder: Path = yard.home.sim / "sim-1"
    folder.mkdir(parents=True)
    (folder / "board.json").write_text("{")
    assert sim.status(yard.home) == [] and sim.devices(yard.home) == []
