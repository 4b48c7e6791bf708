"""Requests that are answered once and need I/O: the store, the journal, an inference. Knows nothing of sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from agent import calls as c
from agent import protocol as p
from agent.board import Board
from agent.config import VERSION, Config
from agent.journal import Journal
from agent.state import Machine
from agent.store import Store, StoredBundle
from agent.workers import WorkerPool
from targets.base import FleetError, TensorSpec
from targets.bundle import nbytes, parse_manifest
from targets.defaults import MAX_FILES, MAX_MESSAGE
from targets.keys import Signature

T = TypeVar("T")
Answer = tuple[p.Message, bytes]

_SLOT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_SLOTS = 64


class Service:
    def __init__(
        self,
        config: Config,
        machine: Machine,
        store: Store,
        journal: Journal,
        pool: WorkerPool,
        board: Board,
    ) -> None:
        self._config = config
        self._machine = machine
        self._store = store
        self._journal = journal
        self._pool = pool
        self._board = board
        self._started = asyncio.get_running_loop().time()
        # The disk is slow and the loop must not wait for it.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="disk")
        self._blobs: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    async def in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def with_room(self, call: Callable[[], T]) -> T:
        """Like `in_thread`; when the disk is full, what nobody needs is collected first, and it is tried once more."""
        try:
            return await self.in_thread(call)
        except FleetError as error:
            if error.code != "disk-full" or not await self.collect():
                raise
        return await self.in_thread(call)

    async def collect(self) -> int:
        """Remove what nobody needs from the store; the number of bytes freed."""
        keep = self._machine.in_use()
        return await self.in_thread(lambda: self._store.collect(keep))

    async def answer(self, request: p.Request, payload: memoryview) -> Answer:
        """The reply and its payload. Raises :class:`FleetError` for what is refused."""
        if isinstance(request, p.GetStatus):
            return await self._status(), b""
        if isinstance(request, p.QueryBlobs):
            return await self._query_blobs(request), b""
        if isinstance(request, p.PutChunk):
            return await self._put_chunk(request, payload), b""
        if isinstance(request, p.ImportBlob):
            return await self._import_blob(request), b""
        if isinstance(request, p.StageBundle):
            return await self._stage(request, payload), b""
        if isinstance(request, p.Infer):
            return await self._infer(request, payload)
        if isinstance(request, p.GetManifest):
            stored = await self.bundle(request.bundle or self.release(request.slot))
            return p.Done(), stored.manifest_bytes
        if isinstance(request, p.GetJournal):
            return p.Done(), await self._read_journal(request.limit)
        if isinstance(request, p.AckResults):
            await self.in_thread(lambda: self._journal.ack(request.runs))
            return p.Done(), b""
        raise FleetError(f"'{type(request).__name__}' cannot be asked for here", code="protocol")

    async def bundle(self, bundle_id: str) -> StoredBundle:
        """A bundle in the store. Raises :class:`FleetError` when it is not there, or is for another target."""
        stored = await self.in_thread(lambda: self._store.bundle(bundle_id))
        self._check_target(stored.manifest.target)
        return stored

    def release(self, slot: str) -> str:
        """Bundle id of the slot's release. Raises :class:`FleetError` (``no-release``)."""
        record = self._machine.slots.get(slot)
        if record is None:
            raise FleetError(
                f"slot '{slot}' has no release", code="no-release", hint="deploy a model to it first: `fleet deploy`"
            )
        return record.bundle

    def check_slot(self, slot: str) -> None:
        """Raises :class:`FleetError` (``bad-slot``) for a name that a new slot cannot have."""
        if slot in self._machine.slots:
            return
        if not _SLOT.fullmatch(slot):
            raise FleetError(
                f"'{slot[:64]}' cannot be a slot's name", code="bad-slot", hint="use a-z, 0-9, '.', '_', '-'"
            )
        if len(self._machine.slots) >= _MAX_SLOTS:
            raise FleetError(f"there are {_MAX_SLOTS} slots already", code="bad-slot")

    def _check_target(self, target: str) -> None:
        if target != self._config.target:
            raise FleetError(
                f"the bundle is for target '{target}', {self._config.name} is '{self._config.target}'",
                code="wrong-target",
                hint=f"build it for '{self._config.target}'",
            )

    def _check_token(self, token: str) -> None:
        self._machine.check_token(token, asyncio.get_running_loop().time())

    async def _status(self) -> p.Status:
        loop = asyncio.get_running_loop()
        readings = await self._board.read()
        used, free = await self.in_thread(self._store.usage)
        unacknowledged = await self.in_thread(self._journal.count)
        return p.Status(
            device=self._config.name,
            target=self._config.target,
            simulated=self._config.no_board,
            agent_version=VERSION,
            state=self._machine.state,
            releases=self._machine.releases(),
            lease=self._machine.lease_info(loop.time()),
            uptime=loop.time() - self._started,
            telemetry=readings,
            unacknowledged=unacknowledged,
            store_bytes=used,
            free_bytes=free,
        )

    async def _query_blobs(self, request: p.QueryBlobs) -> p.MissingBlobs:
        if len(request.blobs) > MAX_FILES:
            raise FleetError(
                f"{len(request.blobs)} blobs are asked about, at most {MAX_FILES} may be", code="too-large"
            )
        missing = await self.in_thread(lambda: self._store.missing(request.blobs))
        sizes = {blob.sha256: blob.size for blob in request.blobs}
        lacking = sum(sizes[blob.sha256] - max(blob.offset, blob.incoming) for blob in missing)
        # Whoever writes to the disk without us shall know what there can be.
        _, free = await self.in_thread(self._store.usage)
        if lacking > free and await self.collect():
            _, free = await self.in_thread(self._store.usage)
        return p.MissingBlobs(missing=missing, free=free)

    async def _put_chunk(self, request: p.PutChunk, payload: memoryview) -> p.ChunkStored:
        self._check_token(request.token)
        async with self._in_turn(request.sha256):
            return await self.with_room(lambda: self._store.put_chunk(request, payload))

    async def _import_blob(self, request: p.ImportBlob) -> p.ChunkStored:
        self._check_token(request.token)
        async with self._in_turn(request.sha256):
            try:
                return await self.with_room(lambda: self._store.import_blob(request))
            except FleetError as error:
                if error.code == "disk-full":
                    # It has taken the room already.
                    await self.in_thread(lambda: self._store.incoming.discard(request.sha256))
                raise

    def _in_turn(self, sha256: str) -> asyncio.Lock:
        """Pieces of one blob are stored in the order in which they came: handed on first come, first served."""
        return self._blobs.setdefault(sha256[:64], asyncio.Lock())

    async def _stage(self, request: p.StageBundle, payload: memoryview) -> p.BundleStaged:
        self._check_token(request.token)
        data = bytes(payload)
        signature = Signature(request.key_id, request.signature) if request.signature else None

        def stage() -> str:
            self._check_target(parse_manifest(data).target)
            return self._store.stage(data, signature)

        return p.BundleStaged(bundle=await self.with_room(stage))

    async def _infer(self, request: p.Infer, payload: memoryview) -> Answer:
        self._machine.check_free()
        bundle_id = request.bundle or self.release(request.slot)
        stored = await self.bundle(bundle_id)
        inputs = _split(request.inputs, stored.manifest.inputs, payload)
        async with self._board.exclusive, self._pool.use(bundle_id, stored, request.threads) as worker:
            ran = await worker.call(c.RunOnce(inputs=inputs), c.RanOnce)
        if sum(map(len, ran.outputs)) > MAX_MESSAGE:
            raise FleetError("the outputs are larger than one message may be", code="too-large")
        return p.Inferred(bundle=bundle_id, outputs=ran.specs, seconds=ran.seconds), b"".join(ran.outputs)

    async def _read_journal(self, limit: int) -> bytes:
        pending = await self.in_thread(lambda: self._journal.pending(max(1, min(limit, 1000))))
        return msgspec.msgpack.encode(pending)


def _split(given: list[TensorSpec], wanted: tuple[TensorSpec, ...], payload: memoryview) -> list[bytes]:
    """The payload's tensors, after checking that they are what the model takes. Raises :class:`FleetError`."""

    def shapes(specs: list[TensorSpec] | tuple[TensorSpec, ...]) -> list[tuple[tuple[int, ...], str]]:
        return [(tuple(spec.shape), spec.dtype) for spec in specs]

    if shapes(given) != shapes(wanted):
        said = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in given[:8])
        takes = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in wanted)
        raise FleetError(f"the model takes {takes}; what came is {said or 'nothing'}", code="bad-input")
    sizes = [nbytes(spec) for spec in wanted]
    if sum(sizes) != len(payload):
        raise FleetError(f"the inputs take {sum(sizes)} bytes, {len(payload)} came", code="bad-input")
    parts, at = [], 0
    for size in sizes:
        parts.append(bytes(payload[at : at + size]))
        at += size
    return parts
