"""The live view of a real bench on simulated boards, in a terminal emulator and in tmux."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fixtures import FLEET, Cli, Terminal, boards, environment

NET = "shapes-classifier"
BENCH = ("bench", "--all", "--min-duration", "4")


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Two boards with a release."""
    for cli in boards(tmp_path_factory.mktemp("live") / "home", 2):
        cli.good("deploy", NET, "--all")
        yield cli


def rows(text: str) -> dict[str, list[str]]:
    """The last line of each board in the live view, in words."""
    return {words[0]: words for line in text.splitlines() if (words := line.split()) and words[0].startswith("sim-")}


def test_a_bench_in_a_terminal(cli: Cli) -> None:
    terminal = Terminal([FLEET, *BENCH], 130, 40, home=cli.home, cwd=cli.cwd)
    terminal.until("2 boards (simulated)")
    terminal.until("measure")
    terminal.until("▁")
    terminal.read(1.5)
    busy = [words for words in rows(terminal.text).values() if "benching" in words]
    assert len(busy) == 1, terminal.text
    assert any(NET.startswith(word) and len(word) > 8 for word in busy[0]), terminal.text
    assert any(word.endswith("%") for word in busy[0]), terminal.text
    terminal.resize(70, 20)
    deadline = time.monotonic() + 20
    while True:
        terminal.read(0.3)
        head = [line for line in terminal.text.splitlines() if line.startswith("device")]
        if len(head) == 1 and "latency" not in head[0] and "p50 ms" in head[0]:
            break
        assert time.monotonic() < deadline, terminal.text
    terminal.resize(130, 40)
    assert terminal.finish(120) == 0
    # The answer is below the last picture.
    assert terminal.text.count("fleet bench") == 1, terminal.text
    assert "VALID" in terminal.text
    assert "items/s" in terminal.text


def test_top_on_the_whole_screen(cli: Cli) -> None:
    terminal = Terminal([FLEET, "top"], 110, 24, home=cli.home, cwd=cli.cwd)
    terminal.until("fleet top")
    deadline = time.monotonic() + 30
    while not all(NET in " ".join(words) and "%" in " ".join(words) for words in rows(terminal.text).values()):
        terminal.read(0.2)
        assert time.monotonic() < deadline, terminal.text
    terminal.write(b"q")
    assert terminal.finish() == 0
    assert terminal.raw.count(b"\x1b[?1049l") == 1


def test_a_terminal_that_is_closed_gives_the_lease_back(cli: Cli) -> None:
    terminal = Terminal([FLEET, *BENCH], 100, 24, home=cli.home, cwd=cli.cwd)
    terminal.until("measure")
    terminal.close()
    terminal.process.wait(timeout=60)
    cli.until(lambda found: all(d["state"] == "idle" and not d["lease"] for d in found["devices"]), "devices")
    assert not (cli.home / "debug.log").exists()


class Tmux:
    """A tmux server of the test's own, with one window."""

    def __init__(self, folder: Path, columns: int, rows: int) -> None:
        self._environ = {**os.environ, "TMUX_TMPDIR": str(folder), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        # What the tests themselves run in, and the size that parallel workers are told they have, are not its own.
        for name in ("TMUX", "COLUMNS", "LINES"):
            self._environ.pop(name, None)
        self("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "sh")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-L", "fleet", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env=self._environ,
        )
        return done.stdout

    @property
    def screen(self) -> str:
        return self("capture-pane", "-p")

    def until(self, *words: str, deadline: float = 90) -> str:
        """The screen as soon as it shows all of ``words``."""
        end = time.monotonic() + deadline
        while not all(word in (screen := self.screen) for word in words):
            assert time.monotonic() < end, screen
            time.sleep(0.1)
        return screen


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: the same bench ran in an emulated terminal")
    # Paths of sockets must be short, and pytest's are not.
    with tempfile.TemporaryDirectory(prefix="fleet-tmux-") as folder:
        server = Tmux(Path(folder), 120, 30)
        try:
            yield server
        finally:
            server("kill-server")


def test_a_bench_in_tmux(cli: Cli, tmux: Tmux) -> None:
    home = environment(cli.home)["FLEET_HOME"]
    tmux(
        "send-keys",
        f"cd {cli.cwd}; clear; env -u CI FLEET_HOME={home} {FLEET} {' '.join(BENCH)}; echo ended $?",
        "Enter",
    )
    screen = tmux.until("2 boards (simulated)", "measure", "benching", "▁", "%")
    lines = screen.splitlines()
    assert sum("fleet bench" in line and "boards" in line for line in lines) == 1, screen
    assert sum(line.startswith("device ") for line in lines) == 1, screen
    assert {"sim-1", "sim-2"} <= rows(screen).keys()
    tmux("resize-window", "-x", "64", "-y", "16")
    screen = tmux.until("measure", "p99 ms")
    deadline = time.monotonic() + 20
    while sum("p50 ms" in line for line in screen.splitlines()) != 1 or "latency" in screen or "more" in screen:
        assert time.monotonic() < deadline, screen
        time.sleep(0.1)
        screen = tmux.screen
    assert max(map(len, screen.splitlines())) <= 64
    tmux("resize-window", "-x", "160", "-y", "40")
    screen = tmux.until("ended 0")
    assert "VALID" in screen
    assert sum("boards (simulated)" in line for line in screen.splitlines()) == 1, screen
