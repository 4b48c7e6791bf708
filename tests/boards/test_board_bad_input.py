"""What is wrong with a board is said in one clear message, before anything is built or changed for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_client import wait_for
from board_fixtures import Boards, boards
from board_fleet import BoardFleet, only
from board_hosts import Board
from board_roots import OPERATOR

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]


@pytest.fixture(scope="module")
def board(boards: Boards) -> Board:
    return boards("arm64", "bare")


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `fleet provision` says of a board that it can do nothing about, of which it must not have changed a file."""

    def work(board: Board, target: str = "arm64", **device: Any) -> dict[str, Any]:
        fleet = BoardFleet(tmp_path / "fleet")
        if board.name not in fleet.inventory.read_text():
            fleet.add(board, target, **device)
        said = fleet.failed("provision", board.name)
        assert said["reason"] and "Traceback" not in said["reason"]
        assert said["changes"] == [] and said["hint"]
        return said

    return work


def untouched(board: Board) -> bool:
    return "opt/fleet" not in board.inside("sh", "-c", "ls -d /opt/fleet /etc/fleet /var/lib/fleet 2>/dev/null; true")


def test_a_board_of_another_architecture(board: Board, refused: Callable[..., dict[str, Any]]) -> None:
    said = refused(board, "armv7")
    assert said["code"] == "wrong-architecture"
    assert "aarch64" in said["reason"] and "armv7l" in said["reason"] and "arm64" in said["hint"]
    assert untouched(board)


def test_sudo_that_asks_for_a_password(board: Board, refused: Callable[..., dict[str, Any]]) -> None:
    said = refused(board, user=OPERATOR)
    assert said["code"] == "sudo-password" and "NOPASSWD" in said["hint"]
    assert untouched(board)


def test_no_route(board: Board, refused: Callable[..., dict[str, Any]]) -> None:
    board.link("down")
    try:
        said = refused(board)
    finally:
        board.link("up")
    assert (said["status"], said["code"]) == ("unreachable", "unreachable")


def test_no_space(boards: Boards, refused: Callable[..., dict[str, Any]]) -> None:
    said = refused(boards("arm64", "small", megabytes=64))
    assert said["code"] == "no-space" and "MiB" in said["reason"]


def test_no_python_and_one_that_is_too_old(boards: Boards, refused: Callable[..., dict[str, Any]]) -> None:
    board = boards("armhf", "old")
    board.inside("sh", "-c", "mv /usr/bin/python3.11 /usr/bin/real && rm -f /usr/bin/python3")
    said = refused(board, "armv7")
    assert said["code"] == "old-python" and "no Python" in said["reason"]
    # An interpreter that says that it is older than it is: Debian 11 has 3.9.
    program = "import sys; sys.version_info = (3, 9, 2, 'final', 0); exec(sys.argv.pop(1))"
    board.put("usr/bin/python3", f'#!/bin/sh\nshift 2\nexec /usr/bin/real -I -c "{program}" "$@"\n', mode=0o755)
    board.reboot()
    said = refused(board, "armv7")
    assert said["code"] == "old-python" and "3.9" in said["reason"] and "3.10" in said["reason"]


def test_a_plug_that_is_pulled_while_it_is_provisioned(boards: Boards, tmp_path: Path) -> None:
    """One message; the next run goes on, and the board is as if nothing had been."""
    board = boards("arm64", "cut")
    fleet = BoardFleet(tmp_path / "fleet")
    fleet.add(board, "arm64")
    process = fleet.popen("provision", board.name, "--runtime", "none")
    assert process.stderr is not None
    words: list[str] = []
    for line in process.stderr:
        words.append(line)
        if "Install it beside" in line:
            break
    else:
        raise AssertionError("".join(words))
    agents = board.folder / "disk/upper/opt/fleet/agents"
    wait_for(lambda: any(agents.glob("*/lib")), "half an agent", 120)
    board.stop()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "Traceback" not in err, out + err
    assert not any(agents.glob("*/.complete"))
    board.start()
    done = fleet.one("provision", board.name, "--runtime", "none")
    assert done["status"] == "provisioned" and done["changes"], done
    state = only(fleet.good("devices", "check", "--device", board.name)["devices"])
    assert state["state"] == "idle"
