"""The agent's side of its worker processes: start, call with a deadline, watch the memory, kill, keep for a while."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from agent import calls as c
from agent.config import Config
from agent.store import StoredBundle
from targets import base
from targets.base import FleetError
from targets.board_files import CACHE_VARIABLE
from targets.waiting import within

log = logging.getLogger("agent.workers")

#: Largest answer of a worker, in bytes.
_MAX_ANSWER = 1 << 30
_MEMORY_INTERVAL = 0.25
#: Lines a second of one worker's output that are logged.
_LINES_PER_SECOND = 50
#: Loaded models that are kept while nobody uses them.
_MOST_IDLE = 2

#: Bundle, threads, and the number that tells apart two workers with the same bundle.
Key = tuple[str, int, int]
#: Is told of each stage of loading.
OnStage = Callable[[str], None]
AnswerT = TypeVar("AnswerT", bound=c.Call)


class WorkerError(FleetError):
    """A worker died, hung, took too much memory, or its model raised. ``code`` says which."""

    code = "worker-error"


class Worker:
    """One worker process. Calls are made one at a time; any failure of the process itself ends it."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, connection: socket.socket, config: Config
    ) -> None:
        self.name = name
        self.pid = process.pid
        self.engine = ""
        self._process = process
        self._connection = connection
        self._config = config
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._killed = ""
        loop = asyncio.get_running_loop()
        self._output = loop.create_task(self._log_output(), name=f"output of {name}")
        self._ended = loop.create_task(self._reap(), name=f"end of {name}")

    @classmethod
    async def start(cls, name: str, config: Config) -> Worker:
        """Start a process that has nothing loaded yet."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "agent.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    # A group of its own: what the model starts is killed with it, and no terminal's ^C reaches it.
                    start_new_session=True,
                    cwd=config.home.work,
                    env={**os.environ, CACHE_VARIABLE: str(config.home.cache)},
                    limit=64 << 10,
                )
        except BaseException:
            ours.close()
            raise
        return cls(name, process, ours, config)

    @property
    def alive(self) -> bool:
        if self._killed or self._ended.done():
            return False
        try:
            # The loop learns of a death a moment after the kernel does; this only looks, and leaves the status there.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            # A killed process is not to be waited for before its last thread has gone, but it will answer nobody.
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except (ChildProcessError, psutil.NoSuchProcess):
            return False

    async def load(self, bundle: StoredBundle, threads: int, on_stage: OnStage | None = None) -> str:
        """Load a bundle. Returns why this device cannot run it, empty when it was loaded."""
        call = c.Load(
            target=self._config.target,
            bundle=str(bundle.root),
            threads=threads,
            faults=self._config.faults.texts(),
            simulated=self._config.simulated,
        )
        half = base.device_half(self._config.target, self._config.simulated)
        seconds = self._config.start_deadline
        if isinstance(half, base.CompilingDevice):
            seconds = max(seconds, half.load_deadline)
        loaded = await self.call(call, c.Loaded, seconds, on_stage)
        self.engine = loaded.engine
        return loaded.unmet

    async def call(
        self, call: c.Call, answer: type[AnswerT], deadline: float | None = None, on_stage: OnStage | None = None
    ) -> AnswerT:
        """Raises :class:`WorkerError`; after ``worker-error`` alone the process is still usable.

        When this is cancelled, the worker is killed: there is no other way to stop what it is doing.
        """
        seconds = deadline or self._config.call_deadline
        watching = asyncio.ensure_future(self._watch_memory())
        calling = asyncio.ensure_future(self._exchange(call, on_stage))
        try:
            await asyncio.wait({watching, calling}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                result = calling.result()
            elif watching.done():
                raise await self._kill_for("worker-memory", watching.result())
            else:
                what = type(call).__struct_config__.tag
                raise await self._kill_for("worker-timeout", f"it did not answer '{what}' within {seconds:g} s")
        except (asyncio.CancelledError, OSError, EOFError, msgspec.MsgspecError) as error:
            if isinstance(error, asyncio.CancelledError):
                self.kill("it was stopped")
                raise
            raise await self._death() from None
        finally:
            watching.cancel()
            calling.cancel()
        if isinstance(result, c.Failed):
            raise WorkerError(result.message, hint=result.hint, code=result.code)
        if not isinstance(result, answer):
            raise await self._kill_for("worker-error", f"it answered with {type(result).__name__}")
        return result

    async def _exchange(self, call: c.Call, on_stage: OnStage | None) -> c.Answer:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._connection, limit=1 << 20)
        reader, writer = self._streams
        writer.write(c.frame(call))
        await writer.drain()
        while True:
            (length,) = c.LENGTH.unpack(await reader.readexactly(c.LENGTH.size))
            if length > _MAX_ANSWER:
                raise EOFError
            answer = c.answers.decode(await reader.readexactly(length))
            if not isinstance(answer, c.Loading):
                return answer
            if on_stage is not None:
                on_stage(answer.stage)

    async def _watch_memory(self) -> str:
        """Returns when the worker's resident memory is over the limit, with words that say so."""
        page = os.sysconf("SC_PAGE_SIZE")
        limit = self._config.worker_memory
        while True:
            try:
                resident = _resident_pages(self.pid) * page
            except (OSError, IndexError):
                # The process has gone; the call will notice.
                await asyncio.Event().wait()
                resident = 0
            if resident > limit:
                return f"it took {resident / 2**20:.0f} MiB of memory, the limit is {limit / 2**20:.0f} MiB"
            await asyncio.sleep(_MEMORY_INTERVAL)

    async def _kill_for(self, code: str, why: str) -> WorkerError:
        self.kill(why)
        await self.wait()
        return WorkerError(f"the worker was killed: {why}", code=code)

    async def _death(self) -> WorkerError:
        """What to say of a worker whose end of the pipe closed."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), 5)
        self.kill("it closed its pipe")
        await self.wait()
        code = self._process.returncode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return WorkerError(f"the worker {how}", code="worker-crashed", hint="its last words are in `fleet logs`")

    def kill(self, why: str) -> None:
        """Kill the process and all it started. May be called again."""
        if not self._killed:
            self._killed = why
            log.info("worker %s (%d) ends: %s", self.name, self.pid, why)
        if not self._ended.done():
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _reap(self) -> None:
        """When the process has ended, by itself or not, end what it started; later its number may be another's."""
        await self._process.wait()
        self._kill_group()
        if not self._killed:
            log.warning("worker %s (%d) ended with status %s", self.name, self.pid, self._process.returncode)

    async def wait(self) -> None:
        """Until the process has ended and its output was logged."""
        await asyncio.shield(self._ended)
        await asyncio.wait({self._output}, timeout=1)
        self._output.cancel()
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._connection.close()

    async def _log_output(self) -> None:
        """Log what the process writes, line by line, but no more than a bounded number a second."""
        stream = self._process.stdout
        assert stream is not None
        clock = asyncio.get_running_loop().time
        second, lines, left_out = clock(), 0, 0
        while True:
            try:
                line = await within(1 if left_out else None, stream.readline())
            except asyncio.TimeoutError:
                line = b"\n"
            except ValueError:
                # Longer than the buffer: what was read of it is dropped.
                line = b"(a line that is too long)\n"
            if clock() - second >= 1 or not line:
                if left_out:
                    log.warning("worker %s: %d more lines were left out", self.name, left_out)
                second, lines, left_out = clock(), 0, 0
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            lines += bool(text)
            if lines > _LINES_PER_SECOND:
                left_out += bool(text)
            elif text:
                log.info("worker %s: %s", self.name, text)


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


class Unmet(FleetError):
    """This device cannot run the bundle; nothing was loaded."""

    code = "unmet"


class WorkerPool:
    """Workers with a loaded model, by bundle and threads. One that is not used for a while is ended."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._workers: dict[Key, Worker] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._in_use = 0
        self._exclusive: bool | None = None

    @contextlib.asynccontextmanager
    async def use(
        self,
        bundle_id: str,
        bundle: StoredBundle,
        threads: int,
        number: int = 0,
        on_stage: OnStage | None = None,
    ) -> AsyncIterator[Worker]:
        """A worker that has ``bundle`` loaded, for one user at a time; ``number`` tells apart two of the same bundle.

        Raises :class:`Unmet`, and :class:`WorkerError` when it cannot be loaded. A worker whose user raises is ended,
        for nobody knows what state it is in.
        """
        key = (bundle_id, threads, number)
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        worker = self._workers.pop(key, None)
        if worker is not None and not worker.alive:
            self._end(worker, "it had died")
            worker = None
        try:
            if worker is None:
                await self._make_room()
                worker = await Worker.start(f"{bundle.manifest.model.name}-{bundle_id[:8]}", self._config)
                if unmet := await worker.load(bundle, threads, on_stage):
                    raise Unmet(unmet)
            self._in_use += 1
            try:
                yield worker
            finally:
                self._in_use -= 1
        except BaseException:
            if worker is not None:
                self._end(worker, "its use ended early")
            raise
        self._workers[key] = worker
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(self._config.worker_idle, self._retire, key)

    def pids(self) -> list[int]:
        """Process ids of the idle workers."""
        return [worker.pid for worker in self._workers.values()]

    async def close(self) -> None:
        """End all workers and wait for them."""
        for key in list(self._workers):
            self._retire(key, "the agent ends")
        if self._ending:
            await asyncio.wait(set(self._ending))

    async def _make_room(self) -> None:
        """End idle workers; on an exclusive accelerator all of them, before another process may have it."""
        if self._exclusive is None:
            half = base.device_half(self._config.target, self._config.simulated)
            self._exclusive = isinstance(half, base.ExclusiveDevice) and half.exclusive
        if self._exclusive and self._in_use:
            raise WorkerError(
                "the accelerator of this board holds one model at a time", hint="measure them one after the other"
            )
        most = 0 if self._exclusive else _MOST_IDLE - 1
        for key in list(self._workers)[: max(0, len(self._workers) - most)]:
            self._retire(key, "another model is loaded")
        if self._exclusive and self._ending:
            await asyncio.wait(set(self._ending))

    def _retire(self, key: Key, why: str = "nobody used it for a while") -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if (worker := self._workers.pop(key, None)) is not None:
            self._end(worker, why)

    def _end(self, worker: Worker, why: str) -> None:
        worker.kill(why)
        task = asyncio.get_running_loop().create_task(worker.wait(), name=f"end of {worker.name}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
