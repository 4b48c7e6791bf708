"""What controller and agent say to each other: msgspec structs in MessagePack, one struct a message.

On the wire a message is one or two frames: the encoded struct, and the payload that it announces (a blob chunk,
tensors). Requests carry an ``id`` that their reply repeats; `Event` subclasses carry the id of the request they belong
to, or 0 for what was subscribed to. Within a major version fields are only added, each with a default, and unknown ones
are ignored; another major version is refused by name.

This module is the only one of the agent's that the controller may import.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from targets.base import FleetError, OperatorProfile, TensorSpec

MAJOR = 1
#: 1: `Profile`. 2: `ImportBlob`, and what `MissingBlobs` says for it.
MINOR = 2

DeviceState = Literal["idle", "leased", "activating", "benching"]
DeployStatus = Literal["active", "unchanged", "rolled-back", "failed"]
Verdict = Literal["VALID", "INVALID"]
Codec = Literal["raw", "zstd"]
BenchProtocol = Literal["fleet", "notebook"]


class Message(msgspec.Struct, tag_field="t", kw_only=True):
    """Anything on the wire. ``id`` ties a reply or an event to the request that caused it."""

    id: int = 0


# --- Session ------------------------------------------------------------------------------------


class Hello(Message, tag="hello", kw_only=True):
    """First message of a session; everything else before it is refused."""

    major: int = MAJOR
    minor: int = MINOR
    client: str = ""


class Welcome(Message, tag="welcome", kw_only=True):
    major: int = MAJOR
    minor: int = MINOR
    agent_version: str
    device: str
    target: str
    simulated: bool
    max_message: int
    #: Port of the device's TVM RPC listener, 0 when it has none.
    rpc_port: int = 0


class Failure(Message, tag="failure", kw_only=True):
    """The request failed. ``code`` is stable, ``message`` and ``hint`` are for a person."""

    code: str
    message: str
    hint: str = ""


class Done(Message, tag="done", kw_only=True):
    """The request succeeded and there is nothing to say."""


class Ping(Message, tag="ping", kw_only=True):
    pass


# --- Status and leases --------------------------------------------------------------------------


class GetStatus(Message, tag="get-status", kw_only=True):
    pass


class ReleaseInfo(msgspec.Struct, kw_only=True):
    """What a slot runs: the active bundle and the one it can go back to (empty when there is none)."""

    slot: str
    bundle: str
    model: str
    activated_at: float
    previous: str = ""
    previous_model: str = ""


class LeaseInfo(msgspec.Struct, kw_only=True):
    holder: str
    expires_in: float


class Status(Message, tag="status", kw_only=True):
    device: str
    target: str
    simulated: bool
    agent_version: str
    state: DeviceState
    releases: list[ReleaseInfo]
    lease: LeaseInfo | None = None
    uptime: float = 0.0
    telemetry: dict[str, float] = {}
    #: Results in the journal that no controller has acknowledged.
    unacknowledged: int = 0
    store_bytes: int = 0
    free_bytes: int = 0


class AcquireLease(Message, tag="acquire-lease", kw_only=True):
    """Exclusive use of the device. Given again to the same ``holder`` renews it; ``wait`` seconds to queue for it."""

    holder: str
    wait: float = 0.0


class RenewLease(Message, tag="renew-lease", kw_only=True):
    token: str


class ReleaseLease(Message, tag="release-lease", kw_only=True):
    token: str


class Lease(Message, tag="lease", kw_only=True):
    token: str
    ttl: float


# --- Pushing a bundle ---------------------------------------------------------------------------


class BlobRef(msgspec.Struct, kw_only=True):
    sha256: str
    size: int


class QueryBlobs(Message, tag="query-blobs", kw_only=True):
    blobs: list[BlobRef]


class MissingBlob(msgspec.Struct, kw_only=True):
    sha256: str
    #: Bytes already held of it from a push that was cut: go on from here.
    offset: int = 0
    #: Bytes of it that lie in ``store/incoming``, for whoever writes there. Since 1.2.
    incoming: int = 0


class MissingBlobs(Message, tag="missing-blobs", kw_only=True):
    missing: list[MissingBlob]
    #: Bytes that the store may still take; -1: not said. Since 1.2.
    free: int = -1


class PutChunk(Message, tag="put-chunk", kw_only=True):
    """A piece of a blob, with its bytes in the payload frame. ``offset`` and ``total`` count uncompressed bytes.

    Pieces of one blob are in order; ``length`` is the piece's uncompressed size, which bounds decompression.
    """

    token: str
    sha256: str
    offset: int
    length: int
    total: int
    codec: Codec = "raw"


class ImportBlob(Message, tag="import-blob", kw_only=True):
    """Make a blob of the file ``store/incoming/<sha256>`` in the agent's home; answered by `ChunkStored`. Since 1.2.

    It must have ``total`` bytes and that digest. For senders that reach the agent's files, as SFTP does.
    """

    token: str
    sha256: str
    total: int


class ChunkStored(Message, tag="chunk-stored", kw_only=True):
    sha256: str
    offset: int
    complete: bool


class StageBundle(Message, tag="stage-bundle", kw_only=True):
    """Make a bundle of blobs that are all there. The manifest's canonical bytes are the payload frame."""

    token: str
    key_id: str = ""
    signature: bytes = b""


class BundleStaged(Message, tag="bundle-staged", kw_only=True):
    bundle: str


# --- Releases -----------------------------------------------------------------------------------


class Activate(Message, tag="activate", kw_only=True):
    """Prove a staged bundle here and make it the slot's release. Sends `Stage` events, ends in `Activated`."""

    token: str
    bundle: str
    slot: str = "default"
    #: Median latency in milliseconds above which the release is refused; 0 asks for none.
    latency_budget_ms: float = 0.0
    threads: int = 0
    deadline: float = 0.0


class Activated(Message, tag="activated", kw_only=True):
    status: DeployStatus
    bundle: str
    #: Why it was rolled back, in words that name the check, the figure and the bound.
    reason: str = ""
    #: The release that is active now.
    active: str = ""
    golden_error: float = 0.0
    latency_ms: float = 0.0


class Rollback(Message, tag="rollback", kw_only=True):
    token: str
    slot: str = "default"


# --- Using a release ----------------------------------------------------------------------------


class Infer(Message, tag="infer", kw_only=True):
    """Run once. Payload: the input tensors' raw bytes, one after the other, as ``inputs`` describes them."""

    inputs: list[TensorSpec]
    slot: str = "default"
    #: A bundle in the store to run instead of the slot's release.
    bundle: str = ""
    threads: int = 0


class Inferred(Message, tag="inferred", kw_only=True):
    """Payload: the output tensors' raw bytes, one after the other."""

    bundle: str
    outputs: list[TensorSpec]
    seconds: float


class GetManifest(Message, tag="get-manifest", kw_only=True):
    """Payload of the reply (`Done`): the canonical manifest of a bundle in the store, or of a slot's release."""

    bundle: str = ""
    slot: str = "default"


# --- Bench --------------------------------------------------------------------------------------


class BenchSpec(msgspec.Struct, kw_only=True):
    """What is asked of one measurement; see targets/bench.py for how it is carried out."""

    min_duration: float = 2.0
    percentile: float = 90.0
    #: More queries than the percentile needs, if positive.
    min_queries: int = 0
    warmup_max: float = 20.0
    threads: int = 0
    max_other_load: float = 0.25
    #: ``notebook``: 50 queries to warm up, then 100 of which each is timed on the host's clock, whatever they show.
    #: Since 1.2.
    protocol: BenchProtocol = "fleet"
    #: Compare the golden outputs first; what was found is among the conditions, as ``golden_error`` and
    #: ``golden_mismatch``. Since 1.2.
    check: bool = False


class Bench(Message, tag="bench", kw_only=True):
    """Measure a release or bundles; two are interleaved block by block. Sends `Samples`, ends in `BenchDone`.

    ``bundles`` may be empty: then the slot's release is measured.
    """

    token: str
    spec: BenchSpec
    bundles: list[str] = []
    slot: str = "default"


class LatencyStats(msgspec.Struct, kw_only=True):
    """Milliseconds. ``ci50`` is the 95 % confidence interval of the median."""

    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    ci50: tuple[float, float]


class RunResult(msgspec.Struct, kw_only=True):
    """One bench run, whole: kept in the agent's journal until a controller acknowledges ``run``."""

    run: str
    device: str
    target: str
    simulated: bool
    model: str
    bundle: str
    engine: str
    batch: int
    started_at: float
    verdict: Verdict
    reason: str = ""
    latency_ms: LatencyStats
    #: Items (batch times queries) per second.
    throughput: float
    #: Milliseconds, in the order they were taken.
    samples: list[float]
    #: Lengths of the blocks of samples taken back to back; of an interleaved pair, block i goes with block i.
    blocks: list[int] = []
    spec: BenchSpec
    #: Readings named ``before.temperature_c``, ``during.other_load``, ``after.cpu_mhz``, …; runtime versions as text.
    conditions: dict[str, float | str] = {}
    counters: dict[str, int | float] = {}
    #: For an A/B measurement, the run it was interleaved with.
    interleaved_with: str = ""
    agent_version: str = ""


class BenchDone(Message, tag="bench-done", kw_only=True):
    """Payload: the results, a MessagePack list of RunResult (they can be larger than a header should be)."""

    runs: list[str]


class Profile(Message, tag="profile", kw_only=True):
    """Time the operators of a release or a bundle, one by one. Sends `Stage`, ends in `Profiled`. Since 1.1."""

    token: str
    #: A bundle in the store; empty for the slot's release.
    bundle: str = ""
    slot: str = "default"
    threads: int = 0
    #: About how many seconds of queries are to be timed.
    seconds: float = 2.0


class Profiled(Message, tag="profiled", kw_only=True):
    bundle: str
    model: str
    engine: str
    profile: OperatorProfile
    #: Share of the device's CPU that other processes took meanwhile.
    other_load: float = 0.0


class Cancel(Message, tag="cancel", kw_only=True):
    """Stop the activation, bench or profile that request ``request`` of this session started."""

    request: int


class GetJournal(Message, tag="get-journal", kw_only=True):
    """Results nobody has acknowledged. Payload of the reply (`Done`): a MessagePack list of RunResult."""

    limit: int = 16


class AckResults(Message, tag="ack-results", kw_only=True):
    runs: list[str]


# --- Watching -----------------------------------------------------------------------------------


class Subscribe(Message, tag="subscribe", kw_only=True):
    """Send `Telemetry`, `LogLine` and `Note` events with id 0 until the session ends."""

    telemetry: bool = True
    logs: bool = False
    #: With ``logs``, start with this many earlier lines.
    tail: int = 0


class GetLogs(Message, tag="get-logs", kw_only=True):
    lines: int = 100


class Logs(Message, tag="logs", kw_only=True):
    lines: list[str]


class Event(Message):
    """Sent without being asked each time."""


class Stage(Event, tag="stage", kw_only=True):
    """A run has come to a stage: ``load``, ``golden``, ``latency``, ``warmup``, ``measure``, ``profile``."""

    stage: str
    detail: str = ""


class Samples(Event, tag="samples", kw_only=True):
    """Latencies in milliseconds just taken."""

    bundle: str
    model: str
    values: list[float]
    #: Share of the run that is done, 0..1.
    share: float = 0.0


class Telemetry(Event, tag="telemetry", kw_only=True):
    """Readings such as ``cpu_percent``, ``memory_bytes``, ``temperature_c``, ``power_w``; absent if unknown."""

    at: float
    values: dict[str, float]
    state: DeviceState = "idle"


class LogLine(Event, tag="log-line", kw_only=True):
    line: str


class Note(Event, tag="note", kw_only=True):
    """Something a watcher wants to know: a release changed, a worker died, a lease went."""

    at: float
    text: str
    level: Literal["info", "warning", "error"] = "info"


class Shutdown(Message, tag="shutdown", kw_only=True):
    """End the agent in good order. Only simulated boards accept it."""


Request = (
    Hello
    | Ping
    | GetStatus
    | AcquireLease
    | RenewLease
    | ReleaseLease
    | QueryBlobs
    | PutChunk
    | ImportBlob
    | StageBundle
    | Activate
    | Rollback
    | Infer
    | GetManifest
    | Bench
    | Profile
    | Cancel
    | GetJournal
    | AckResults
    | Subscribe
    | GetLogs
    | Shutdown
)
Reply = (
    Welcome
    | Failure
    | Done
    | Status
    | Lease
    | MissingBlobs
    | ChunkStored
    | BundleStaged
    | Activated
    | Inferred
    | BenchDone
    | Profiled
    | Logs
    | Stage
    | Samples
    | Telemetry
    | LogLine
    | Note
)

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
results_decoder: msgspec.msgpack.Decoder[list[RunResult]] = msgspec.msgpack.Decoder(list[RunResult])


class ProtocolError(FleetError):
    """A message that cannot be understood, or of another major version."""

    code = "protocol"


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_request(data: bytes | memoryview) -> Request:
    """Raises :class:`ProtocolError` that says what is wrong with the message."""
    try:
        return _requests.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"cannot understand a request: {error}") from None


def decode_reply(data: bytes | memoryview) -> Reply:
    """Raises :class:`ProtocolError` that says what is wrong with the message."""
    try:
        return _replies.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"cannot understand a reply: {error}") from None


def check_version(major: int, minor: int, who: str) -> None:
    """Raises :class:`ProtocolError` for another major version. Any minor version of the same major is fine."""
    if major != MAJOR:
        raise ProtocolError(
            f"{who} speaks protocol {major}.{minor}, this side speaks {MAJOR}.{MINOR}",
            code="protocol-version",
            hint="update the older side: `fleet doctor` shows both versions",
        )
