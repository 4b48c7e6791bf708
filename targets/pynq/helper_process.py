"""The driver's end of the pipe to the helper: one request, one answer, each within its time."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from targets.pynq import helper
from targets.vta.driver import DriverError

HELPER = Path(helper.__file__)
#: Where the images of PYNQ have the Python that has `pynq`: the environment of 2.7 and later, and the system's of 2.5
#: and 2.6.
INTERPRETERS = ("/usr/local/share/pynq-venv/bin/python3", "/usr/bin/python3.6", "/usr/bin/python3")
#: Lines of what the helper and its libraries print that an error can show.
_KEPT_LINES = 20
#: What of this process's environment is also right for the image's Python, which has packages of its own.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "HOME", "BOARD", "XILINX_XRT")

_HINTS = {
    "busy": "end the other process, or wait for it",
    "not-root": "run the agent as root, or let it start the helper with sudo (docs/targets/pynq.md)",
    "no-pynq": "name the Python of the board's image that has pynq in FLEET_PYNQ_PYTHON",
    "no-memory": "enlarge the pool with the boot argument cma=, or end what else holds memory of it",
    "program-failed": "see the kernel's messages (dmesg); the board may need to be switched off and on",
    "wrong-clock": "another design or program has changed the processor's PLLs; boot the board anew",
    "vta-timeout": "the FPGA was programmed again; check the program with `vta sim`, or allow it more time",
    "wrong-protocol": "copy the helper of this version to where it is started from",
}


class HelperProcess:
    """A running helper. Raises :class:`DriverError` when it cannot be started (``no-helper``)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [*command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**passed, **environment},
                cwd="/",
            )
        except OSError as error:
            raise DriverError(f"{command[0]} cannot be started: {error.strerror}", code="no-helper") from None
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._sink, self._source = self._process.stdin, self._process.stdout
        os.set_blocking(self._sink.fileno(), False)
        os.set_blocking(self._source.fileno(), False)
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        self._over = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self, name: str, fields: Mapping[str, Any], payload: bytes | memoryview = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """What the helper answers.

        Raises :class:`DriverError`: what the helper refuses, by its codes; ``bad-request`` for what no helper would
        take, which is not sent; ``helper-ended`` when it is gone, or was
        ended because it did not answer within ``timeout`` seconds or not in the helper's words.
        """
        if self._over:
            raise self._ended(self._over)
        view = memoryview(payload).cast("B")
        try:
            head = helper.encode(name, dict(fields), view, helper.REQUESTS)
        except helper.ProtocolError as error:
            raise DriverError(f"the board cannot be asked for this: {error}", code="bad-request") from None
        deadline = time.monotonic() + timeout
        try:
            self._write(memoryview(head), deadline)
            self._write(view, deadline)
            answer, found, data = helper.decode(self._reader(deadline), helper.REPLIES)
            if answer not in (name, "error"):
                raise helper.ProtocolError(f"'{answer}' is no answer to '{name}'")
        except TimeoutError:
            raise self._end(f"it did not answer '{name}' within {timeout:g} s") from None
        except (EOFError, BrokenPipeError):
            raise self._end(f"during '{name}'") from None
        except helper.ProtocolError as error:
            raise self._end(f"its answer to '{name}' cannot be understood: {error}") from None
        except BaseException:
            # Interrupted between the halves of a message: the next one would be misunderstood.
            self.kill()
            self._over = "it was ended by an interrupt"
            raise
        if answer == "error":
            raise DriverError(found["message"], code=found["code"], hint=_HINTS.get(found["code"], ""))
        return found, data

    def close(self, timeout: float) -> None:
        """End it in good order; with force after ``timeout`` seconds."""
        if not self._over:
            with contextlib.suppress(DriverError):
                self.ask("close", {}, timeout=timeout)
            self._over = "it was closed"
        self._sink.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._source.close()
        self._listener.join(timeout)

    def kill(self) -> None:
        # A helper under sudo is not ours to kill: it ends with its input, or by its own limit of time.
        self._sink.close()
        with contextlib.suppress(PermissionError):
            self._process.kill()
            self._process.wait()

    def _write(self, data: memoryview, deadline: float) -> None:
        while data:
            _wait(self._sink, select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self._sink.fileno(), data[: 1 << 20]) :]

    def _reader(self, deadline: float) -> Callable[[int], bytes]:
        def read(size: int) -> bytes:
            parts = []
            while size:
                _wait(self._source, select.POLLIN, deadline)
                try:
                    part = os.read(self._source.fileno(), min(size, 1 << 20))
                except BlockingIOError:
                    continue
                if not part:
                    break
                parts.append(part)
                size -= len(part)
            return b"".join(parts)

        return read

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._printed.append(line.decode("utf-8", "replace").rstrip()[:500])

    def _end(self, why: str) -> DriverError:
        self.kill()
        self._over = why
        return self._ended(why)

    def _ended(self, why: str) -> DriverError:
        self._listener.join(1)
        status = self._process.poll()
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        printed = f"; its last words: {' | '.join(self._printed)}" if self._printed else ""
        return DriverError(
            f"the helper on the board has ended{how}: {why}{printed}",
            code="helper-ended",
            hint="the next start programs the FPGA anew; if it ends again, see the board's log",
        )


def command(python: str = "", sudo: bool | None = None) -> list[str]:
    """How the helper is started on this board: by ``python``, by ``FLEET_PYNQ_PYTHON`` or by the first Python of a
    PYNQ image there is; through ``sudo -n`` unless this process is root. Raises :class:`DriverError` (``no-pynq``).
    """
    chosen = python or os.environ.get("FLEET_PYNQ_PYTHON", "")
    candidates = [chosen] if chosen else list(INTERPRETERS)
    found = next((path for path in candidates if os.access(path, os.X_OK)), "")
    if not found:
        raise DriverError(
            f"there is no Python at {', '.join(candidates)}",
            code="no-pynq",
            hint="name the Python of the board's image that has pynq in FLEET_PYNQ_PYTHON",
        )
    if sudo is None:
        sudo = os.geteuid() != 0
    return [*(("sudo", "-n") if sudo else ()), found, os.environ.get("FLEET_PYNQ_HELPER", str(HELPER))]


def _wait(stream: IO[bytes], event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError
