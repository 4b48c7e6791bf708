"""The live view on a real pseudo-terminal, read back through a terminal emulator."""

import re
import sys
import time
from pathlib import Path

from cli_fixtures import Terminal

from targets.defaults import REDRAW_PER_SECOND

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


def feed(seconds: float, *options: str, columns: int = 100, rows: int = 24, **environ: str) -> Terminal:
    return Terminal([sys.executable, "-c", FEED, str(seconds), *options], columns, rows, home=Path("unused"), **environ)


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
            # All of it at one look: a frame that is half drawn has its head and not yet its end.
            whole = sum("fleet test" in line for line in lines) == 1 and sum("p50 ms" in line for line in lines) == 1
            whole = whole and ("q/s" in terminal.text) == (columns >= 100) and ("more" in terminal.text) == (rows < 40)
            if whole and max(map(len, lines)) <= columns:
                break
            assert time.monotonic() < end, terminal.text
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
