"""What runs in the board's own shell, run in every shell that is here: boards have dash, bash or busybox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from controller.ssh.commands import _KEEPER
from controller.ssh.look import _LOOK, _MARK

SHELLS = {"dash": ["dash"], "bash": ["bash"], "bash as sh": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
#: Takes no notice of TERM, neither does its child.
STUBBORN = 'trap "" TERM; sleep 300 & echo $! $$; wait; wait'


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    command = SHELLS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} on this machine")
    return command


class Kept:
    """A command under the keeper, with its line of life in our hands."""

    def __init__(self, shell: list[str], *argv: str, limit: int = 60, input: bytes = b"") -> None:
        self.process = subprocess.Popen(
            [*shell, "-c", _KEEPER, "fleet", str(limit), str(len(input)), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # as sshd does
        )
        assert self.process.stdin is not None
        self.process.stdin.write(input)
        self.process.stdin.flush()

    def numbers(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]

    def cut(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def status(self, seconds: float = 20) -> int:
        return self.process.wait(seconds)

    def said(self) -> bytes:
        """All output; the line of life holds until the command has ended."""
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        self.status()
        self.cut()
        return text


def until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_statuses_and_output_pass_through(shell: list[str]) -> None:
    kept = Kept(shell, "sh", "-c", "echo out; exit 7")
    assert kept.said() == b"out\n" and kept.status() == 7
    kept = Kept(shell, "sh", "-c", "kill -KILL $$")
    assert kept.said() == b"" and kept.status() == 128 + signal.SIGKILL
    kept = Kept(shell, "/no/such/program")
    assert kept.said() == b"" and kept.status() == 127


def test_input_is_the_commands_and_the_rest_is_the_line_of_life(shell: list[str]) -> None:
    given = os.urandom(200_000)
    kept = Kept(shell, "cat", input=given)
    assert kept.said() == given and kept.status() == 0


def test_input_that_is_cut_starts_nothing(shell: list[str], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    process = subprocess.run(
        [*shell, "-c", _KEEPER, "fleet", "60", "1000", "touch", str(mark)], input=b"short", timeout=20
    )
    assert process.returncode == 126 and not mark.exists()


def test_the_end_of_the_line_ends_the_group(shell: list[str]) -> None:
    kept = Kept(shell, "sh", "-c", STUBBORN)
    pids = kept.numbers()
    assert len(pids) == 2 and not any(map(ended, pids))
    kept.cut()
    assert kept.status() == 143
    assert all(map(ended, pids))


def test_the_boards_own_clock_ends_the_group(shell: list[str]) -> None:
    kept = Kept(shell, "sh", "-c", STUBBORN, limit=1)
    pids = kept.numbers()
    assert kept.status() == 143 and all(map(ended, pids))
    kept.cut()


def test_nothing_of_the_keeper_stays_behind(shell: list[str]) -> None:
    kept = Kept(shell, "sh", "-c", "sleep 300 >/dev/null 2>&1 & sleep 0.3; exit 3")
    mine = psutil.Process(kept.process.pid)
    until(lambda: len(mine.children(recursive=True)) >= 4, "the keeper's own processes")
    family = mine.children(recursive=True)
    assert kept.said() == b"" and kept.status() == 3
    until(lambda: all(ended(one.pid) for one in family), f"left behind: {family}")


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that others may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becoming somebody else needs root")
def test_a_home_of_somebody_else_is_told_apart_from_none(shell: list[str], everybodys: Path) -> None:
    home = everybodys / "home"
    home.mkdir(mode=0o700)

    def look() -> list[str]:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *shell, "-c", _LOOK, "look"]
        done = subprocess.run([*command, str(home), _MARK], capture_output=True, text=True, timeout=20, cwd="/")
        return done.stdout.splitlines()[:2]

    assert look() == [str(home), "denied"]
    home.chmod(0o755)
    assert look() == [str(home), "none"]
    (home / "agent.json").write_text("{}")
    (home / "agent.json").chmod(0o600)
    assert look() == [str(home), "denied"]
