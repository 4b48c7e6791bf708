"""What tests of the command line share: the program `fleet` in a home of its own, and a terminal to run it in."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte

ROOT = Path(__file__).resolve().parents[2]
FLEET = Path(sys.executable).with_name("fleet")


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with ``home`` as the fleet's, and nothing that changes how output looks."""
    dropped = ("CI", "NO_COLOR", "COLUMNS", "LINES", "FLEET_RESULTS", "FLEET_HOME")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "FLEET_HOME": str(home), "LC_ALL": "C.UTF-8", **more}


@dataclass
class Called:
    """What one call of `fleet` gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output, which must be one JSON document and nothing else."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        assert document["schema"] == 1
        return document

    @property
    def error(self) -> dict[str, str]:
        error = self.document["error"]
        assert set(error) == {"code", "message", "hint"}
        return dict(error)


class Cli:
    """The program `fleet` with a home and a working directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cwd = home.parent

    def __call__(self, *arguments: str | Path, deadline: float = 240) -> Called:
        done = subprocess.run(
            [FLEET, *arguments],
            capture_output=True,
            text=True,
            timeout=deadline,
            cwd=self.cwd,
            env=environment(self.home),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Called(done.returncode, done.stdout, done.stderr)

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        """The JSON document of a call that must succeed."""
        called = self(*arguments, "--json")
        assert called.code == 0, called.out + called.err
        return called.document

    def interrupted(
        self,
        *arguments: str | Path,
        at: str,
        number: signal.Signals = signal.SIGINT,
        first: Callable[[], None] = lambda: None,
    ) -> Called:
        """Start a command; when a line of its standard error holds ``at``, do ``first`` and send it a signal."""
        process = subprocess.Popen(
            [FLEET, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env=environment(self.home),
        )
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if at in line:
                first()
                process.send_signal(number)
                break
        else:
            raise AssertionError(f"{at!r} was never said: {seen}{process.communicate()}")
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in seen + err
        return Called(process.returncode, out, seen + err)

    def until(self, condition: Callable[[dict[str, Any]], bool], *arguments: str, deadline: float = 60) -> None:
        """Wait until a command's document meets a condition."""
        end = time.monotonic() + deadline
        while not condition(document := self.good(*arguments)):
            assert time.monotonic() < end, document
            time.sleep(0.2)


def boards(home: Path, count: int, *options: str) -> Iterator[Cli]:
    """`fleet` with simulated boards, which are gone afterwards."""
    cli = Cli(home)
    try:
        cli.good("sim", "up", "--count", str(count), *options)
        yield cli
    finally:
        assert cli("sim", "down").code == 0


class Terminal:
    """A program on a pseudo-terminal of a given size."""

    def __init__(
        self, arguments: Sequence[str | Path], columns: int, rows: int, *, home: Path, cwd: Path = ROOT, **environ: str
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=environment(home, **{"TERM": "xterm-256color", **environ}),
            start_new_session=True,
            # The terminal's end must reach the program as it does from a real one.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
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

    def write(self, data: bytes) -> None:
        """Press keys."""
        os.write(self._master, data)

    def until(self, text: str, deadline: float = 60.0) -> None:
        end = time.monotonic() + deadline
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not appear:\n{self.text}"
            alive = self.read(0.05)
            assert alive or text in self.text, f"ended without {text!r}:\n{self.text}"

    def close(self) -> None:
        """Close the terminal, as when its window is closed."""
        os.close(self._master)

    def finish(self, deadline: float = 60.0) -> int:
        end = time.monotonic() + deadline
        while self.read(0.1):
            assert time.monotonic() < end, self.text
        self.close()
        return self.process.wait(timeout=10)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)
