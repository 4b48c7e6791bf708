"""Our end of the pipe to a helper: a program in another Python of the board, which has what ours must not load.

One request, one answer, each within its time; whatever a helper does wrong ends it, never us. What may be asked and
answered is the ``wire`` of each helper.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol

from targets.base import FleetError

#: Lines of what the helper and its libraries print that an error can show.
_KEPT_LINES = 20
#: Seconds between two looks at a helper that is waited for.
_LOOK = 0.25

Tell = Callable[[dict[str, Any]], None]


class Wire(Protocol):
    """The words of a helper: forms of requests and replies, and how they become bytes (see `targets.pynq.helper`).

    A reply ``progress`` may come before the one that answers.
    """

    @property
    def REQUESTS(self) -> Any: ...

    @property
    def REPLIES(self) -> Any: ...

    @property
    def ProtocolError(self) -> type[Exception]: ...

    @property
    def encode(self) -> Callable[..., bytes]: ...

    @property
    def decode(self) -> Callable[..., tuple[str, dict[str, Any], bytes]]: ...


class HelperProcess:
    """A running helper, which gets ``environment`` and what ``passed_on`` names of ours.

    Raises what `failure` makes (``no-helper``) when it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, wire: Wire, passed_on: Sequence[str]
    ) -> None:
        self._wire = wire
        passed = {name: os.environ[name] for name in passed_on if name in os.environ}
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
            raise self.failure(f"{command[0]} cannot be started: {error.strerror}", "no-helper") from None
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

    def failure(self, message: str, code: str) -> FleetError:
        """An error of the kind that this helper's driver raises; ``code`` is ours or the helper's."""
        return FleetError(message, code=code)

    def look(self) -> str:
        """Why the helper has to be ended now, while it is waited for; empty as long as it may go on."""
        return ""

    def ask(
        self,
        name: str,
        fields: Mapping[str, Any],
        payload: bytes | memoryview = b"",
        *,
        timeout: float,
        on_progress: Tell | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """What the helper answers; ``on_progress`` is given what it tells before.

        Raises what `failure` makes: what the helper refuses, by its codes; ``bad-request`` for what no helper would
        take, which is not sent; ``helper-ended`` when it is gone, or was ended because it did not answer within
        ``timeout`` seconds, not in the helper's words, or for what `look` says.
        """
        if self._over:
            raise self._ended(self._over)
        view = memoryview(payload).cast("B")
        try:
            head = self._wire.encode(name, dict(fields), view, self._wire.REQUESTS)
        except self._wire.ProtocolError as error:
            raise self.failure(f"the board cannot be asked for this: {error}", "bad-request") from None
        deadline = time.monotonic() + timeout
        try:
            self._write(memoryview(head), deadline)
            self._write(view, deadline)
            answer, found, data = self._wire.decode(self._reader(deadline), self._wire.REPLIES)
            while answer == "progress":
                if on_progress is not None:
                    on_progress(found)
                answer, found, data = self._wire.decode(self._reader(deadline), self._wire.REPLIES)
            if answer not in (name, "error"):
                raise self._wire.ProtocolError(f"'{answer}' is no answer to '{name}'")
        except TimeoutError:
            raise self._end(f"it did not answer '{name}' within {timeout:g} s") from None
        except _Ended as ended:
            raise self._end(str(ended)) from None
        except (EOFError, BrokenPipeError):
            raise self._end(f"during '{name}'") from None
        except self._wire.ProtocolError as error:
            raise self._end(f"its answer to '{name}' cannot be understood: {error}") from None
        except BaseException:
            # Interrupted between the halves of a message: the next one would be misunderstood.
            self.kill()
            self._over = "it was ended by an interrupt"
            raise
        if answer == "error":
            raise self.failure(found["message"], found["code"])
        return found, data

    def close(self, timeout: float) -> None:
        """End it in good order; with force after ``timeout`` seconds."""
        if not self._over:
            with contextlib.suppress(FleetError):
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
            self._wait(self._sink, select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self._sink.fileno(), data[: 1 << 20]) :]

    def _reader(self, deadline: float) -> Callable[[int], bytes]:
        def read(size: int) -> bytes:
            parts = []
            while size:
                self._wait(self._source, select.POLLIN, deadline)
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

    def _end(self, why: str) -> FleetError:
        self.kill()
        self._over = why
        return self._ended(why)

    def _ended(self, why: str) -> FleetError:
        self._listener.join(1)
        status = self._process.poll()
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        printed = f"; its last words: {' | '.join(self._printed)}" if self._printed else ""
        return self.failure(f"the helper on the board has ended{how}: {why}{printed}", "helper-ended")

    def _wait(self, stream: IO[bytes], event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(stream, event)
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            if poll.poll(min(remaining, _LOOK) * 1000):
                return
            if why := self.look():
                raise _Ended(why)


class _Ended(Exception):
    """Why the helper has to be ended."""
