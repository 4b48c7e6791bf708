"""Sending a bundle's blobs: only those that the device lacks, from where it has them, several chunks in flight."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass, field

import zstandard

from agent import protocol as p
from controller.connection import narrow
from controller.events import Listener, Progress
from controller.pace import Pace
from controller.prepare import Bundle
from controller.session import Session
from targets.base import FleetError
from targets.defaults import CHUNK_WINDOW, MAX_FILES
from targets.waiting import done_within

#: How much of a blob is compressed to see whether that is worth while, and the ratio from which on it is not.
_SAMPLE = 256 << 10
_WORTH = 0.92
_LEVEL = 3
#: An agent that says nothing about a chunk for so long has a disk that hangs.
_CHUNK_TIMEOUT = 120.0
_PROGRESS_INTERVAL = 0.1

_Answer = asyncio.Future[tuple[p.Message, bytes]]


@dataclass(slots=True)
class Traffic:
    """Bytes of one bundle for one device; over all tries, when there were cuts."""

    #: Of all blobs.
    total: int = 0
    #: That the device lacked when it was first asked.
    lacking: int = 0
    #: Blob bytes that travelled and arrived.
    sent: int = 0
    #: The same after compression.
    on_wire: int = 0
    #: What the device holds of each blob.
    held: dict[str, int] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        return self.total - self.lacking


async def query(session: Session, bundle: Bundle, traffic: Traffic) -> list[tuple[str, int]]:
    """Blobs that the device lacks, as (digest, offset to go on from), and note them in ``traffic``."""
    sizes = {file.sha256: file.size for file in bundle.manifest.files}
    asked = p.QueryBlobs(blobs=[p.BlobRef(sha256=sha256, size=size) for sha256, size in sizes.items()])
    answer = await session.connection.request(asked, p.MissingBlobs)
    missing: list[tuple[str, int]] = []
    for blob in answer.missing[:MAX_FILES]:
        if not 0 <= blob.offset <= sizes.get(blob.sha256, -1):
            raise p.ProtocolError(f"{session.device.name} asks for a piece of a blob that it was not offered")
        missing.append((blob.sha256, blob.offset))
    offsets = dict(missing)
    held = {sha256: offsets.get(sha256, size) for sha256, size in sizes.items()}
    if not traffic.held:
        traffic.total = sum(sizes.values())
        traffic.lacking = traffic.total - sum(held.values())
    else:
        # What arrived although its acknowledgement did not.
        traffic.sent += sum(max(0, held[sha256] - before) for sha256, before in traffic.held.items())
    traffic.held = held
    return missing


async def push(session: Session, bundle: Bundle, traffic: Traffic, listener: Listener) -> None:
    """Send what is missing. Raises FleetError; after one of `session.CUT` it can be called again and goes on."""
    missing = await query(session, bundle, traffic)
    sizes = {file.sha256: file.size for file in bundle.manifest.files}
    sender = _Sender(session, traffic, listener)
    try:
        for sha256, offset in missing:
            await sender.blob(sha256, offset, sizes[sha256], os.fspath(bundle.blobs.path(sha256)))
        await sender.drain()
    finally:
        sender.forget()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A chunk that is not acknowledged yet."""

    answer: _Answer
    sha256: str
    #: Where it ends in the blob, its bytes, and the same after compression.
    end: int
    length: int
    wire: int
    at: float


class _Sender:
    def __init__(self, session: Session, traffic: Traffic, listener: Listener) -> None:
        self._session, self._traffic, self._listener = session, traffic, listener
        self._window: deque[_Sent] = deque()
        self._in_flight = 0
        self._pace = Pace()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._told = 0.0

    async def blob(self, sha256: str, offset: int, size: int, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            codec: p.Codec = "raw"
            if self._session.connection.link.compress and size >= 1024:
                sample = os.pread(descriptor, _SAMPLE, 0)
                if len(await self._compressed(sample)) < _WORTH * len(sample):
                    codec = "zstd"
            while True:
                length = min(self._pace.size, size - offset)
                data = os.pread(descriptor, length, offset)
                if len(data) != length:
                    raise FleetError(f"blob {sha256[:12]} has changed on this machine", code="bad-bundle")
                await self._chunk(sha256, offset, size, data, codec)
                offset += len(data)
                # An empty blob is one empty chunk.
                if offset >= size:
                    return
        finally:
            os.close(descriptor)

    async def _chunk(self, sha256: str, offset: int, size: int, data: bytes, codec: p.Codec) -> None:
        payload = await self._compressed(data) if codec == "zstd" else data
        if len(payload) >= len(data):
            payload, codec = data, "raw"
        while self._window and not self._room(len(data)):
            await self._oldest()
        chunk = p.PutChunk(
            token=self._session.token, sha256=sha256, offset=offset, length=len(data), total=size, codec=codec
        )
        answer = await self._session.connection.start(chunk, payload)
        self._window.append(_Sent(answer, sha256, offset + len(data), len(data), len(payload), time.monotonic()))
        self._in_flight += len(data)

    def _room(self, length: int) -> bool:
        return len(self._window) < CHUNK_WINDOW and self._in_flight + length <= self._pace.in_flight

    async def drain(self) -> None:
        while self._window:
            await self._oldest()

    def forget(self) -> None:
        """Nobody waits for the answers to chunks that are still out when one has failed."""
        for sent in self._window:
            sent.answer.cancel()

    async def _oldest(self) -> None:
        oldest = self._window[0]
        if not await done_within(_CHUNK_TIMEOUT, oldest.answer):
            raise FleetError(
                f"{self._session.device.name} has not stored a chunk for {_CHUNK_TIMEOUT:.0f} s", code="timeout"
            )
        stored = narrow(oldest.answer.result()[0], p.ChunkStored)
        self._window.popleft()
        self._in_flight -= oldest.length
        self._pace.acknowledged(oldest.length, time.monotonic() - oldest.at)
        if stored.sha256 != oldest.sha256:
            raise p.ProtocolError(f"{self._session.device.name} acknowledged a chunk that it was not sent")
        traffic = self._traffic
        traffic.sent += oldest.end - traffic.held[oldest.sha256]
        traffic.held[oldest.sha256] = oldest.end
        traffic.on_wire += oldest.wire
        self._tell()

    def _tell(self) -> None:
        traffic, now = self._traffic, time.monotonic()
        done = sum(traffic.held.values()) - traffic.skipped
        if now - self._told >= _PROGRESS_INTERVAL or done == traffic.lacking:
            self._told = now
            share = done / traffic.lacking if traffic.lacking else 1.0
            name = self._session.device.name
            self._listener(Progress(name, "push", share, bytes_done=done, bytes_total=traffic.lacking))

    async def _compressed(self, data: bytes) -> bytes:
        # zstd works without the interpreter's lock, so this overlaps with everything else.
        return await asyncio.to_thread(self._compressor.compress, data)
