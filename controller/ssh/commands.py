"""Commands on a board, and their end: a deadline, a cancellation or a lost link reaches the whole process group.

sshd starts a command and forgets it: when the link goes, what runs goes on. So each command runs under a few lines of
POSIX shell that stay with it on the board. The command is a session, and so a process group, of its own. The shell ends
the group, at first with TERM and two seconds later with KILL,

- when its standard input ends: we gave up, were cancelled or killed, or sshd noticed that the link is gone;
- when the deadline has passed on the board's own clock, whatever became of the link;
- when the command has ended and left something behind in its group.

What takes itself out of the group (``setsid``, a daemon) is not reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh

from controller.printable import printable
from targets.base import FleetError
from targets.waiting import within

#: Output of one command that is taken in; what says more is ended.
MAX_OUTPUT = 16 << 20
#: Longest line that is handed on; a longer one comes in pieces.
_MAX_LINE = 64 << 10
#: Seconds after our own deadline at which the board's comes: ours tells more.
_BOARD_GRACE = 5
#: Longest that the end of a process group is waited for.
_END_PATIENCE = 8.0

# Arguments: seconds, bytes of input, the command. 3 is the line of life, 4 the command's input, which lies in a file
# that has no name any more: a pipe would have to be fed while the line of life is watched.
_KEEPER = """\
limit=$1 size=$2 group= ended=; shift 2
command -v setsid >/dev/null || { echo "setsid is not installed" >&2; exit 127; }
exec 3<&0 4</dev/null
if [ "$size" -gt 0 ]; then
  file=$(mktemp) || exit 126
  head -c "$size" <&3 >"$file"; exec 4<"$file"
  got=$(wc -c <"$file"); rm -f "$file"; [ "$got" -eq "$size" ] || exit 126
fi
end() {
  trap "" TERM; ended=1
  [ -n "$group" ] || exit 143
  kill -TERM "-$group" "$group"; sleep 0.1; n=0
  while [ $n -lt 2 ] && kill -0 "-$group"; do sleep 1; n=$((n+1)); done
  kill -KILL "-$group" "$group"; wait "$group"
  kill -0 "-$group" && sleep 0.1
} 2>/dev/null
trap end TERM HUP INT
setsid "$@" <&4 3<&- 4<&- &
group=$!
( cat <&3; kill -TERM $$ ) >/dev/null 2>&1 4<&- &
life=$!
( trap 'kill "$p"; exit' TERM; sleep "$limit" & p=$!; wait "$p"; kill -TERM $$ ) >/dev/null 2>&1 3<&- 4<&- &
clock=$!
wait "$group"; status=$?
kill "$life" "$clock" 2>/dev/null
[ -z "$ended" ] || exit 143
kill -0 "-$group" 2>/dev/null && end
exit "$status"
"""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended: its exit status (128 and the signal's number when one ended it), and what it said."""

    status: int
    stdout: str
    stderr: str


class _Output:
    """Collects one stream, and hands its lines on."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._parts: list[bytes] = []
        self._size = 0
        self._rest = b""

    async def take(self, stream: Any) -> None:
        while data := await stream.read(_MAX_LINE):
            self._size += len(data)
            if self._size > MAX_OUTPUT:
                raise FleetError(f"a command said more than {MAX_OUTPUT >> 20} MiB", code="too-large")
            self._parts.append(data)
            if self._on_line is not None:
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._hand_on(line)
                if len(self._rest) > _MAX_LINE:
                    self._hand_on(self._rest)
                    self._rest = b""
        if self._rest:
            self._hand_on(self._rest)

    def _hand_on(self, line: bytes) -> None:
        if self._on_line is not None:
            self._on_line(printable(line.decode(errors="replace")))

    @property
    def text(self) -> str:
        return b"".join(self._parts).decode(errors="replace")


async def run(
    connection: Any,
    argv: Sequence[str],
    *,
    deadline: float,
    on_line: Callable[[str], None] | None = None,
    input: bytes = b"",
) -> Completed:
    """Run a command on the other side of an `asyncssh.SSHClientConnection`. See `SshSession.run`."""
    command = shlex.join(
        ["exec", "sh", "-c", _KEEPER, "fleet", str(math.ceil(deadline) + _BOARD_GRACE), str(len(input)), *argv]
    )
    process = await _started(connection, command)
    try:
        return await within(deadline, _completed(process, on_line, input))
    except asyncio.TimeoutError:
        raise FleetError(
            f"'{printable(' '.join(argv))[:200]}' did not end within {deadline:g} s and was killed", code="timeout"
        ) from None
    except (OSError, asyncssh.Error) as error:
        raise _lost(error) from None
    finally:
        # A cancellation has to wait until the group is gone, too: who cancels believes that it is.
        await _end(process)


async def _started(connection: Any, command: str) -> Any:
    opening = asyncio.ensure_future(
        connection.create_process(command, encoding=None, request_pty=False, env={}, send_env=[])
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # It may have been started all the same.
        with contextlib.suppress(Exception):
            await _end(await within(_END_PATIENCE, opening))
        raise
    except asyncssh.ChannelOpenError as error:
        raise FleetError(
            f"the SSH server starts no command: {printable(error.reason)}",
            code="ssh-refused",
            hint="does its sshd_config allow sessions (MaxSessions), and the login a shell?",
        ) from None
    except (OSError, asyncssh.Error) as error:
        raise _lost(error) from None


async def _completed(process: Any, on_line: Callable[[str], None] | None, input: bytes) -> Completed:
    stdout, stderr = _Output(on_line), _Output(on_line)
    if input:
        process.stdin.write(input)
    reading = [asyncio.ensure_future(stdout.take(process.stdout)), asyncio.ensure_future(stderr.take(process.stderr))]
    try:
        await asyncio.gather(*reading)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    await process.wait_closed()
    if process.returncode is None:
        raise _lost(None)
    # asyncssh says a signal as a negative number, a shell as one above 128.
    status = process.returncode
    return Completed(status=status if status >= 0 else 128 - status, stdout=stdout.text, stderr=stderr.text)


async def _end(process: Any) -> None:
    """End the line of life, and wait until the board says that the command is gone, or nobody is there to say so."""
    if process.is_closing() and process.returncode is not None:
        return
    with contextlib.suppress(OSError, asyncssh.Error, asyncio.TimeoutError):
        process.stdin.write_eof()
        await asyncio.shield(within(_END_PATIENCE, process.wait_closed()))
    process.close()


def _lost(error: BaseException | None) -> FleetError:
    words = printable(str(error)) if error is not None and str(error) else "the server closed it"
    return FleetError(f"the SSH connection went while a command ran: {words}", code="connection-lost")
