"""Emulated boards are what the other tests take them for: another machine, behind SSH, that nothing is left of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from agent_client import is_dead, wait_for
from board_fixtures import Boards, board_root, boards
from board_hosts import Board, said
from board_roots import EMULATED, OPERATOR
from fleet_fixtures import run

from targets.base import FleetError

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]
every_architecture = pytest.mark.parametrize("architecture", EMULATED)


@pytest.fixture(scope="module")
def pair(boards: Boards) -> dict[str, Board]:
    return {name: boards(name) for name in EMULATED}


@every_architecture
def test_a_board_is_another_machine_with_an_address_and_sshd(pair: dict[str, Board], architecture: str) -> None:
    board = pair[architecture]
    words = "import platform, sys; print(platform.machine(), sys.maxsize > 2**32, *sys.version_info[:2])"
    machine, wide, major, minor = said(run(board.run("python3", "-c", words)))[0].split()
    assert machine == board.architecture.uname
    assert wide == str(board.architecture.bits == 2)
    assert (int(major), int(minor)) >= (3, 10)
    assert said(run(board.run("hostname"))) == [board.name]
    assert said(run(board.run("uname", "-m"))) == [board.architecture.uname]
    addresses = " ".join(said(run(board.run("ip", "-o", "-4", "address"))))
    assert board.address in addresses
    part = said(run(board.run("grep", "-m1", "CPU part", "/proc/cpuinfo")))[0].split()[-1]
    assert part == {"arm64": "0xd08", "armhf": "0xc09"}[architecture]


def test_one_user_becomes_root_and_the_other_is_asked_for_a_password(pair: dict[str, Board]) -> None:
    board = pair["arm64"]
    assert said(run(board.run("sudo", "-n", "id", "-u"))) == ["0"]
    refused = run(board.run("sudo", "-n", "id", "-u", user=OPERATOR))
    assert refused.status != 0 and "password is required" in refused.stderr
    with pytest.raises(FleetError) as caught:
        run(board.run("true", user="root"))
    assert caught.value.code == "ssh-refused"


def test_a_reboot_ends_everything_and_keeps_what_is_on_the_disk(pair: dict[str, Board]) -> None:
    board = pair["arm64"]
    run(board.run("sh", "-c", "echo kept > kept; echo gone > /tmp/gone; setsid sleep 600 >/dev/null 2>&1 & sync"))
    address, before = board.address, board.processes()
    assert any("sleep" in one.cmdline() for one in before)
    board.reboot()
    wait_for(lambda: all(is_dead(one.pid) for one in before), "the end of all that ran")
    assert board.address == address
    assert said(run(board.run("sh", "-c", "cat kept; ls /tmp"))) == ["kept"]


def test_a_small_disk_is_full_soon(boards: Boards) -> None:
    board = boards("armhf", megabytes=16)
    failed = run(board.run("dd", "if=/dev/zero", "of=large", "bs=1M", "count=32"))
    assert failed.status != 0 and "No space left" in failed.stderr


def test_nothing_is_left_of_a_board_when_its_tests_are_killed(tmp_path: Path) -> None:
    program = f"""
        import sys, time
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from board_hosts import Board
        from board_roots import ARM64
        board = Board(ARM64, Path({str(board_root("arm64"))!r}), Path({str(tmp_path / "board")!r}), "short").start()
        print(board._interface, *[one.pid for one in board.processes()], flush=True)
        time.sleep(600)
    """
    maker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    interface, *pids = maker.stdout.readline().split()
    assert len(pids) >= 2 and Path(f"/sys/class/net/{interface}").exists()
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    wait_for(lambda: all(is_dead(int(pid)) for pid in pids), "the end of the board's processes")
    wait_for(lambda: not Path(f"/sys/class/net/{interface}").exists(), "the end of its network")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
