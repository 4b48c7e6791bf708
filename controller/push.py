"""Sending a bundle's blobs: only those that the device lacks, from where it has them, several pieces in flight.

They travel as messages; over SSH, large ones as files.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass, field

import zstandard

from agent import protocol as p
from controller import push_files
from controller.connection import narrow
from controller.events import Listener, Message, Progress
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


@dataclass(frozen=True, slots=True)
class Lacking:
    """A blob that the device lacks, from where to go on, and whether that is in a file of its own there."""

    sha256: str
    offset: int
    as_file: bool = False


async def query(session: Session, bundle: Bundle, traffic: Traffic, *, files: bool = False) -> list[Lacking]:
    """Blobs that the device lacks, and note them in ``traffic``. With ``files``, large ones are to be sent as such.

    Raises FleetError ``disk-full`` when those do not fit there.
    """
    sizes = {file.sha256: file.size for file in bundle.manifest.files}
    asked = p.QueryBlobs(blobs=[p.BlobRef(sha256=sha256, size=size) for sha256, size in sizes.items()])
    answer = await session.connection.request(asked, p.MissingBlobs)
    missing: list[Lacking] = []
    for blob in answer.missing[:MAX_FILES]:
        size = sizes.get(blob.sha256, -1)
        if not (0 <= blob.offset <= size and 0 <= blob.incoming <= size):
            raise p.ProtocolError(f"{session.device.name} asks for a piece of a blob that it was not offered")
        # What began to come as messages goes on so.
        if files and not blob.offset and (blob.incoming or size >= push_files.SMALLEST):
            missing.append(Lacking(blob.sha256, blob.incoming, as_file=True))
        else:
            missing.append(Lacking(blob.sha256, blob.offset))
    needed = sum(sizes[blob.sha256] - blob.offset for blob in missing if blob.as_file)
    if answer.free >= 0 and needed > answer.free:
        raise push_files.no_room(session, needed, answer.free)
    offsets = {blob.sha256: blob.offset for blob in missing}
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
    link = push_files.link_of(session)
    sizes = {file.sha256: file.size for file in bundle.manifest.files}
    progress = _Progress(session.device.name, traffic, listener)
    missing = await query(session, bundle, traffic, files=link is not None)
    files = [
        push_files.File(blob.sha256, blob.offset, sizes[blob.sha256], os.fspath(bundle.blobs.path(blob.sha256)))
        for blob in missing
        if blob.as_file
    ]
    if link is not None and files:
        try:
            await push_files.send(session, link, files, progress.arrived)
        except push_files.NoFilesError as error:
            # As it is where the agent has a user of its own: slower, and nothing that anybody has to mend.
            listener(Message(session.device.name, f"{error.message}; files are sent as messages instead"))
            missing = await query(session, bundle, traffic)
    sender = _Sender(session, traffic, progress)
    try:
        for blob in missing:
            if not blob.as_file:
                path = os.fspath(bundle.blobs.path(blob.sha256))
                await sender.blob(blob.sha256, blob.offset, sizes[blob.sha256], path)
        await sender.drain()
    finally:
        sender.forget()


class _Progress:
    """Keeps count of what has arrived, and tells of it now and then."""

    def __init__(self, device: str, traffic: Traffic, listener: Listener) -> None:
        self._device, self._traffic, self._listener = device, traffic, listener
        self._told = 0.0

    def arrived(self, sha256: str, length: int, wire: int | None = None) -> None:
        """So many bytes more of a blob, for which ``wire`` travelled; less than 0 when what was there is of no use."""
        traffic = self._traffic
        traffic.held[sha256] += length
        traffic.sent += max(length, 0)
        traffic.on_wire += max(length, 0) if wire is None else wire
        now = time.monotonic()
        done = max(sum(traffic.held.values()) - traffic.skipped, 0)
        if now - self._told >= _PROGRESS_INTERVAL or done == traffic.lacking:
            self._told = now
            share = done / traffic.lacking if traffic.lacking else 1.0
            self._listener(Progress(self._device, "push", share, bytes_done=done, bytes_total=traffic.lacking))


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
    def __init__(self, session: Session, traffic: Traffic, progress: _Progress) -> None:
        self._session, self._traffic, self._progress = session, traffic, progress
        self._window: deque[_Sent] = deque()
        self._in_flight = 0
        self._pace = Pace()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

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
        self._progress.arrived(oldest.sha256, oldest.end - self._traffic.held[oldest.sha256], oldest.wire)

    async def _compressed(self, data: bytes) -> bytes:
        # zstd works without the interpreter's lock, so this overlaps with everything else.
        return await asyncio.to_thread(self._compressor.compress, data)
