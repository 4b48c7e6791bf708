"""The live view on a real pseudo-terminal, read back through a terminal emulator."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte

from targets.defaults import REDRAW_PER_SECOND

ROOT = Path(__file__).resolve().parents[2]

#: Feeds a view as a bench of many fast boards would: far more events than redraws.
FEED = """
import sys, time
from controller.cli import terminal
from controller.cli.view import view
from controller.events import DeviceChanged, SampleBatch, Message
with view("fleet test", full_screen="--full" in sys.argv) as listener:
    for number in range(30):
        listener(DeviceChanged(f"sim-{number}", "idle", "ab" * 32, "net"))
    listener(DeviceChanged("sim-7", "benching", "ab" * 32, "net"))
    end = time.monotonic() + float(sys.argv[1])
    step = 0
    while time.monotonic() < end:
        step += 1
        listener(SampleBatch("sim-7", "net", "ab" * 32, [1.0 + step % 7 / 10] * 20, 0.5))
        time.sleep(0.005)
    listener(Message("sim-7", "the last line"))
print("answer", file=sys.stdout)
"""


class Terminal:
    """A program on a pseudo-terminal of a given size."""

    def __init__(self, arguments: list[str], columns: int, rows: int, **environ: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        keep = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**keep, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environ},
            start_new_session=True,
        )
        os.close(slave)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def read(self, seconds: float) -> bool:
        """Take in what comes within ``seconds``; whether the program still runs."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._master], [], [], left)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:
                    return False
                if not data:
                    return False
                self.raw += data
                self._stream.feed(data)
        return True

    def until(self, text: str, deadline: float = 30.0) -> None:
        end = time.monotonic() + deadline
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not appear:\n{self.text}"
            alive = self.read(0.05)
            assert alive or text in self.text, f"ended without {text!r}:\n{self.text}"

    def finish(self, deadline: float = 60.0) -> int:
        end = time.monotonic() + deadline
        while self.read(0.1):
            assert time.monotonic() < end, self.text
        os.close(self._master)
        return self.process.wait(timeout=10)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)


def feed(seconds: float, *options: str, columns: int = 100, rows: int = 24, **environ: str) -> Terminal:
    return Terminal([sys.executable, "-c", FEED, str(seconds), *options], columns, rows, **environ)


def test_it_redraws_at_most_ten_times_a_second_and_leaves_its_last_picture() -> None:
    terminal = feed(3, rows=50)
    terminal.until("p50 ms")
    assert terminal.finish() == 0
    lines = terminal.text.splitlines()
    assert sum("fleet test" in line for line in lines) == 1
    assert sum(line.startswith("sim-7") for line in lines) == 1
    assert "the last line" in terminal.text
    assert "answer" in terminal.text
    redraws = len(re.findall(rb"fleet test", terminal.raw))
    assert 5 <= redraws <= 3.5 * REDRAW_PER_SECOND + 3
    # The cursor is shown again.
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def test_it_survives_resizes() -> None:
    terminal = feed(6)
    terminal.until("p50 ms")
    for columns, rows in ((62, 12), (140, 40), (80, 46)):
        terminal.resize(columns, rows)
        end = time.monotonic() + 10
        while True:
            terminal.read(0.3)
            lines = terminal.text.splitlines()
            whole = sum("fleet test" in line for line in lines) == 1 and sum("p50 ms" in line for line in lines) == 1
            if whole and max(map(len, lines)) <= columns:
                break
            assert time.monotonic() < end, terminal.text
        assert ("q/s" in terminal.text) == (columns >= 100), terminal.text
        assert ("more" in terminal.text) == (rows < 40)
    assert terminal.finish() == 0
    assert sum("fleet test" in line for line in terminal.text.splitlines()) == 1


def test_the_whole_screen_is_given_back() -> None:
    terminal = feed(1, "--full")
    terminal.until("p50 ms")
    assert terminal.finish() == 0
    assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") == 1


def test_ci_and_dumb_terminals_get_plain_lines() -> None:
    for environ in ({"CI": "true"}, {"TERM": "dumb"}):
        terminal = feed(0.5, **environ)
        assert terminal.finish() == 0
        assert b"\x1b[" not in terminal.raw
        assert b"sim-7 benching" in terminal.raw


def test_no_colour_means_no_colour() -> None:
    terminal = feed(0.5, NO_COLOR="1")
    assert terminal.finish() == 0
    colours = set(re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw))
    assert not {c for c in colours if any(part[:1] in (b"3", b"4", b"9") and len(part) >= 2 for part in c.split(b";"))}
