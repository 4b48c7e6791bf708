"""The agent as its clients see it: sessions, dispatch of requests, events to those who watch, and the timers.

Everything runs in one event loop that never waits for a disk or a model: those are in threads and worker processes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from agent import events as e
from agent import memory
from agent import protocol as p
from agent.admission import Admission
from agent.board import Board
from agent.conductor import Conductor
from agent.config import VERSION, Config
from agent.journal import Journal
from agent.logs import LogBook
from agent.router import Router
from agent.service import Service
from agent.state import CANCELLED, Machine, failure
from agent.store import Store
from agent.workers import WorkerPool
from targets.base import FleetError
from targets.defaults import MAX_MESSAGE, TELEMETRY_INTERVAL
from targets.keys import Keys

log = logging.getLogger("agent")

MAX_SESSIONS = 64
#: Requests of one session that may be unanswered, and bytes of payload of all sessions that may be in work.
MAX_OUTSTANDING = 64
MAX_BYTES_IN_WORK = 128 << 20
#: Longest name of a client or lease holder that is taken.
_MAX_NAME = 200
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(slots=True)
class _Session:
    key: str
    client: str
    outstanding: int = 0
    subscription: p.Subscribe | None = None


class Server:
    def __init__(self, config: Config, keys: Keys, store: Store, journal: Journal, book: LogBook) -> None:
        """Must be made inside a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._store = store
        self._book = book
        self._board = Board(config.target, config.simulated)
        self._pool = WorkerPool(config)
        self._machine = Machine(store.slots(), new_token=lambda: secrets.token_urlsafe(18))
        self._service = Service(config, self._machine, store, journal, self._pool, self._board)
        self._conductor = Conductor(config, self._service, journal, self._pool, self._board)
        self.admission = Admission(config.home.authorized)
        self.router = Router(
            public=keys.curve_public,
            secret=keys.curve_secret,
            admission=self.admission,
            on_message=self._on_message,
            on_gone=lambda session: self._handle(e.Closed(session)),
        )
        #: Told in every `Welcome`; set when the listener is up.
        self.rpc_port = 0
        #: Set when a client asked the agent to end.
        self.shutdown = asyncio.Event()
        self._sessions: dict[bytes, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Requests that are being looked up or answered, and runs in progress by their number.
        self._requests: dict[e.Origin, asyncio.Task[None]] = {}
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._bytes_in_work = 0
        self._chunks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises :class:`FleetError` when it cannot listen."""
        await self.router.start(self._config.listen)
        self._book.follow(self._follow)
        # What an agent before this one left half done.
        self._spawn(self._collect(), "collect")

    async def stop(self) -> None:
        """Stop all runs, end all workers, close the socket."""
        self._book.unfollow(self._follow)
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._runs.values(), *self._tasks, *([self._telling] if self._telling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()
        await self.router.stop()
        self._service.close()

    # --- Messages in ------------------------------------------------------------------------------

    def _on_message(self, session: bytes, key: str, header: memoryview, payload: memoryview) -> None:
        number = 0
        try:
            if len(header) + len(payload) > MAX_MESSAGE:
                raise FleetError(f"a message may be {MAX_MESSAGE} bytes at most", code="too-large")
            try:
                request = p.decode_request(header)
            except p.ProtocolError:
                number = _number_of(header)
                raise
            number = request.id
            self._dispatch(session, key, request, payload)
        except FleetError as error:
            self._reply(e.Origin(session, number), failure(error))
        except Exception:
            self._reply(e.Origin(session, number), _internal("a request"))

    def _dispatch(self, session: bytes, key: str, request: p.Request, payload: memoryview) -> None:
        """Answer what can be answered at once, start what cannot; raises :class:`FleetError` for what is refused."""
        origin = e.Origin(session, request.id)
        if isinstance(request, p.Hello):
            return self._hello(origin, key, request)
        known = self._sessions.get(session)
        if known is None or known.key != key:
            raise FleetError("this session has not said hello, or was silent for too long", code="no-session")
        self._handle(e.Heard(session))
        if isinstance(request, p.Ping):
            self._reply(origin, p.Done())
        elif isinstance(request, p.AcquireLease):
            if not 0 < len(request.holder) <= _MAX_NAME:
                raise FleetError(f"a holder's name has 1 to {_MAX_NAME} characters", code="bad-request")
            self._handle(e.AcquireAsked(origin, request.holder, request.wait))
        elif isinstance(request, p.RenewLease):
            self._handle(e.RenewAsked(origin, request.token))
        elif isinstance(request, p.ReleaseLease):
            self._handle(e.ReleaseAsked(origin, request.token))
        elif isinstance(request, p.Rollback):
            self._handle(e.RollbackAsked(origin, request))
        elif isinstance(request, p.Cancel):
            asked = self._requests.get(e.Origin(session, request.request))
            if asked is not None:
                asked.cancel()
            self._handle(e.CancelAsked(origin, request.request))
        elif isinstance(request, p.Subscribe):
            self._subscribe(origin, known, request)
        elif isinstance(request, p.GetLogs):
            self._reply(origin, p.Logs(lines=self._book.tail(request.lines)))
        elif isinstance(request, p.Shutdown):
            self._shut_down(origin)
        else:
            self._start_task(origin, known, request, payload)

    def _hello(self, origin: e.Origin, key: str, request: p.Hello) -> None:
        p.check_version(request.major, request.minor, f"the client '{request.client[:_MAX_NAME]}'")
        if not self.admission.admits(key):
            raise FleetError("this key is no longer authorized", code="wrong-key")
        if origin.session not in self._sessions and len(self._sessions) >= MAX_SESSIONS:
            raise FleetError(f"{MAX_SESSIONS} sessions are open already", code="too-many-sessions")
        known = self._sessions.get(origin.session)
        if known is not None and known.key != key:
            # ZeroMQ gives an identity to another connection only after the one before has gone.
            self._handle(e.Closed(origin.session))
        self._sessions.setdefault(origin.session, _Session(key, request.client[:_MAX_NAME]))
        self._handle(e.Opened(origin.session))
        welcome = p.Welcome(
            agent_version=VERSION,
            device=self._config.name,
            target=self._config.target,
            simulated=self._config.no_board,
            max_message=MAX_MESSAGE,
            rpc_port=self.rpc_port,
        )
        self._reply(origin, welcome)

    def _subscribe(self, origin: e.Origin, session: _Session, request: p.Subscribe) -> None:
        session.subscription = request
        self._reply(origin, p.Done())
        if request.logs:
            for line in self._book.tail(request.tail):
                self.router.send(origin.session, p.encode(p.LogLine(line=line)))
        if request.telemetry and self._telling is None:
            self._telling = self._loop.create_task(self._tell_telemetry(), name="telemetry")

    def _shut_down(self, origin: e.Origin) -> None:
        if not self._config.simulated:
            raise FleetError("only a simulated board can be shut down from afar", code="refused")
        self._reply(origin, p.Done())
        self.shutdown.set()

    def _start_task(self, origin: e.Origin, session: _Session, request: p.Request, payload: memoryview) -> None:
        if session.outstanding >= MAX_OUTSTANDING:
            raise FleetError(f"{MAX_OUTSTANDING} requests of this session are not answered yet", code="overloaded")
        if self._bytes_in_work + len(payload) > MAX_BYTES_IN_WORK and self._bytes_in_work:
            raise FleetError("the agent has too much in work", code="overloaded", hint="send less at once")
        if isinstance(request, p.PutChunk) and self._cut_here():
            return
        session.outstanding += 1
        self._bytes_in_work += len(payload)

        task = self._spawn(self._answer(origin, request, payload), type(request).__name__)
        self._requests[origin] = task

        def done(task: asyncio.Task[None]) -> None:
            session.outstanding -= 1
            self._bytes_in_work -= len(payload)
            if self._requests.get(origin) is task:
                del self._requests[origin]

        task.add_done_callback(done)

    async def _answer(self, origin: e.Origin, request: p.Request, payload: memoryview) -> None:
        try:
            if isinstance(request, p.Activate):
                self._service.check_slot(request.slot)
                bundle = await self._service.bundle(request.bundle)
                self._handle(e.ActivationAsked(origin, request, bundle.manifest.model.name))
            elif isinstance(request, p.Bench):
                bundles = [await self._service.bundle(bundle) for bundle in request.bundles[:3]]
                self._handle(e.BenchAsked(origin, request, tuple(b.manifest.model.name for b in bundles)))
            elif isinstance(request, p.Profile):
                model = (await self._service.bundle(request.bundle)).manifest.model.name if request.bundle else ""
                self._handle(e.ProfileAsked(origin, request, model))
            else:
                message, answer = await self._service.answer(request, payload)
                if isinstance(message, p.Status):
                    message.telemetry["dropped_events"] = float(self.router.dropped)
                self._reply(origin, message, answer)
        except asyncio.CancelledError:
            self._reply(origin, p.Failure(code=CANCELLED, message="the request was cancelled"))
        except FleetError as error:
            self._reply(origin, failure(error))
        except Exception:
            self._reply(origin, _internal(type(request).__name__))

    def _cut_here(self) -> bool:
        """The fault ``drop``: whether the connection is cut at this chunk."""
        if "drop" not in self._config.faults:
            return False
        self._chunks += 1
        if self._chunks != int(self._config.faults.value("drop")):
            return False
        log.warning("fault: all connections are cut")
        self._spawn(self.router.cut(), "cut")
        return True

    # --- Events and effects -----------------------------------------------------------------------

    def _handle(self, event: e.Event) -> None:
        for effect in self._machine.handle(event, self._loop.time()):
            self._apply(effect)
        deadline = self._machine.next_deadline()
        # A timer that rings early finds nothing to do and is set anew: cheaper than moving it with each message.
        if deadline is not None and (self._timer is None or self._timer.when() > deadline):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._handle(e.Tick())

    def _apply(self, effect: e.Effect) -> None:
        if isinstance(effect, e.Reply):
            self._reply(effect.origin, effect.message, effect.payload)
        elif isinstance(effect, e.Announce):
            log.log(_LEVELS[effect.level], "%s", effect.text)
            self._note(p.Note(at=time.time(), text=effect.text, level=effect.level))
        elif isinstance(effect, e.StartRun):
            task = self._spawn(self._carry_out(effect.run), effect.run.kind)
            self._runs[effect.run.number] = task
            task.add_done_callback(lambda _: self._runs.pop(effect.run.number, None))
        elif isinstance(effect, e.StopRun):
            self._runs[effect.run.number].cancel()
        elif isinstance(effect, e.SaveSlots):
            self._spawn(self._save(effect), "save")
        elif isinstance(effect, e.ForgetSession):
            self._sessions.pop(effect.session, None)
            self.router.forget(effect.session)
            self._loop.call_later(1.0, memory.trim)

    async def _carry_out(self, run: e.Run) -> None:
        def tell(event: p.Event, may_be_lost: bool) -> None:
            event.id = run.origin.request
            if run.origin.session in self._sessions:
                send = self.router.offer if may_be_lost else self.router.send
                send(run.origin.session, p.encode(event))

        try:
            event = await self._conductor.carry_out(run, tell)
        except asyncio.CancelledError:
            event = e.RunBroken(run, p.Failure(code=CANCELLED, message="the agent ends"))
        except FleetError as error:
            event = e.RunBroken(run, failure(error))
        except Exception:
            event = e.RunBroken(run, _internal(f"a {run.kind}"))
        self._handle(event)
        # A moment later, when its results were sent and nothing holds them any more.
        self._loop.call_later(1.0, memory.trim)

    async def _save(self, effect: e.SaveSlots) -> None:
        run, slots = effect.run, dict(effect.slots)
        try:
            await self._service.with_room(lambda: self._store.save_slots(slots))
        except (FleetError, OSError) as error:
            return self._handle(e.CheckFailed(run, f"saving the release: {error}"))
        self._handle(e.SlotsSaved(run, slots))
        await self._collect()

    async def _collect(self) -> None:
        if freed := await self._service.collect():
            log.info("%d bytes that nobody needed were removed from the store", freed)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s failed", name, exc_info=error)

        task.add_done_callback(done)
        return task

    # --- Messages out -----------------------------------------------------------------------------

    def _reply(self, origin: e.Origin, message: p.Message, payload: bytes = b"") -> None:
        message.id = origin.request
        self.router.send(origin.session, p.encode(message), payload)

    def _note(self, note: p.Note) -> None:
        data = p.encode(note)
        for identity, session in self._sessions.items():
            if session.subscription is not None:
                self.router.offer(identity, data)

    def _follow(self, line: str) -> None:
        """Called in whichever thread logs."""
        self._loop.call_soon_threadsafe(self._send_line, line)

    def _send_line(self, line: str) -> None:
        data = b""
        for identity, session in self._sessions.items():
            if session.subscription is not None and session.subscription.logs:
                data = data or p.encode(p.LogLine(line=line))
                self.router.offer(identity, data)

    async def _tell_telemetry(self) -> None:
        """Send readings for as long as anybody wants them."""
        try:
            while watchers := [k for k, v in self._sessions.items() if v.subscription and v.subscription.telemetry]:
                values = await self._board.read()
                values["dropped_events"] = float(self.router.dropped)
                reading = p.encode(p.Telemetry(at=time.time(), values=values, state=self._machine.state))
                for session in watchers:
                    self.router.offer(session, reading)
                await asyncio.sleep(TELEMETRY_INTERVAL)
        finally:
            self._telling = None


class _Numbered(msgspec.Struct):
    id: int = 0


def _number_of(header: memoryview) -> int:
    """The id of a request that cannot be understood otherwise, such as one that a newer client has."""
    try:
        return msgspec.msgpack.decode(header, type=_Numbered).id
    except msgspec.MsgspecError:
        return 0


def _internal(what: str) -> p.Failure:
    """For an exception that nobody foresaw, while it is handled: all of it in the log, nothing of it on the wire."""
    log.exception("%s failed in a way that it must not", what)
    return p.Failure(code="internal", message=f"the agent failed at {what}", hint="`fleet logs` has what happened")
