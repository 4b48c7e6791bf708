"""The service's unit of each kind of board, started by a real systemd: it must not forbid what the agent needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from board_fixtures import Boards, boards
from board_fleet import BoardFleet, only
from board_hosts import COMMAND_DEADLINE, Board
from cli_fixtures import environment

from controller.provision.board import PLAYBOOKS

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]

DROP_IN = "/etc/systemd/system/fleet-agent.service.d"


@pytest.fixture(scope="module")
def board(boards: Boards) -> Board:
    return boards("amd64", "units")


@pytest.fixture(scope="module")
def fleet(board: Board, tmp_path_factory: pytest.TempPathFactory) -> BoardFleet:
    fleet = BoardFleet(tmp_path_factory.mktemp("fleet"))
    fleet.add(board, "x86")
    return fleet


def play(fleet: BoardFleet, **variables: str) -> None:
    """Plain ansible-playbook: what else than `fleet provision` can be told what a board has."""
    programs = Path(sys.executable).parent
    command = [programs / "ansible-playbook", "provision.yml", "-e", f"fleet_command={programs / 'fleet'}"]
    for name, value in {"fleet_runtime": "none", "fleet_agent_deadline": "20", **variables}.items():
        command += ["-e", f"{name}={value}"]
    more = {"FLEET": str(programs / "fleet"), "FLEET_INVENTORY": str(fleet.inventory), "LC_ALL": "C.UTF-8"}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=PLAYBOOKS,
        env=environment(fleet.home, PATH=path, **more),
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("hardware", ["devices", "root"])
def test_a_unit_lets_the_agent_do_what_it_has_to(board: Board, fleet: BoardFleet, hardware: str) -> None:
    if hardware == "root":
        # As the helper is started that programs an FPGA; systemd starts nothing if it cannot be.
        touch = "/usr/bin/touch /lib/firmware/mark"
        board.inside("sh", "-c", f"echo 'fleet ALL=(root) NOPASSWD: {touch}' >/etc/sudoers.d/mark; mkdir -p {DROP_IN}")
        start = f"[Service]\\nExecStartPre=/usr/bin/sudo -n {touch}\\n"
        board.inside("sh", "-c", f"printf '{start}' >{DROP_IN}/mark.conf")
    play(fleet, common_hardware=hardware)
    state = only(fleet.good("devices", "check", "--device", board.name)["devices"])
    assert state["state"] == "idle"
    loaded = board.inside("systemctl", "show", "fleet-agent", "-p", "NoNewPrivileges", "-p", "ActiveState")
    forbids = "no" if hardware == "root" else "yes"
    assert sorted(loaded.split()) == ["ActiveState=active", f"NoNewPrivileges={forbids}"]
    if hardware == "root":
        assert board.inside("stat", "-c", "%U", "/lib/firmware/mark").strip() == "root"
