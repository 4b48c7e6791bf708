"""What goes into the agent's state machine, and what comes out of it. Nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent import protocol as p
from agent.store import SlotRecord

RunKind = Literal["activation", "rollback", "bench", "profile"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked: the session, and the id of the request in it."""

    session: bytes
    request: int


@dataclass(slots=True, eq=False)
class Run:
    """An activation, rollback, bench or profile in progress."""

    number: int
    kind: RunKind
    origin: Origin
    slot: str
    bundles: tuple[str, ...]
    models: tuple[str, ...]
    #: The request as it came, for the one who carries the run out.
    request: p.Message
    #: Why it is being stopped; empty while it is not.
    stopping: str = ""
    #: The figures that its proof gave; set once the slots are being saved, from when on it cannot be stopped.
    proof: Proof | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the checks of an activation measured: worst golden error, and median latency (0 when not measured)."""

    golden_error: float = 0.0
    latency_ms: float = 0.0


# --- Events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A session said hello."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came from a session."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """A session was thrown out, or its key was taken back."""

    session: bytes


@dataclass(frozen=True, slots=True)
class AcquireAsked:
    origin: Origin
    holder: str
    wait: float


@dataclass(frozen=True, slots=True)
class RenewAsked:
    origin: Origin
    token: str


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    origin: Origin
    token: str


@dataclass(frozen=True, slots=True)
class ActivationAsked:
    """``model`` is the name that the bundle's manifest gives; the bundle is in the store."""

    origin: Origin
    request: p.Activate
    model: str


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    origin: Origin
    request: p.Rollback


@dataclass(frozen=True, slots=True)
class BenchAsked:
    """``bundles`` and ``models`` as the request names them; both empty for the slot's release."""

    origin: Origin
    request: p.Bench
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileAsked:
    """``model`` is the name that the bundle's manifest gives; empty, as the bundle, for the slot's release."""

    origin: Origin
    request: p.Profile
    model: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    origin: Origin
    request: int


@dataclass(frozen=True, slots=True)
class Proven:
    """All checks of an activation or rollback were passed."""

    run: Run
    proof: Proof
    at: float


@dataclass(frozen=True, slots=True)
class SlotsSaved:
    """The slots that `SaveSlots` asked to save are on the disk."""

    run: Run
    slots: Mapping[str, SlotRecord]


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """A bundle did not pass a check; ``tried`` is false when it was refused before anything ran."""

    run: Run
    reason: str
    proof: Proof = field(default_factory=Proof)
    tried: bool = True


@dataclass(frozen=True, slots=True)
class BenchFinished:
    """The results are in the journal. ``payload``: the encoded results."""

    run: Run
    runs: tuple[str, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class ProfileFinished:
    run: Run
    answer: p.Profiled


@dataclass(frozen=True, slots=True)
class RunBroken:
    """A run ended without a result: it was stopped, or something failed that is no verdict on the bundle."""

    run: Run
    failure: p.Failure


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Opened
    | Heard
    | Closed
    | AcquireAsked
    | RenewAsked
    | ReleaseAsked
    | ActivationAsked
    | RollbackAsked
    | BenchAsked
    | ProfileAsked
    | CancelAsked
    | Proven
    | SlotsSaved
    | CheckFailed
    | BenchFinished
    | ProfileFinished
    | RunBroken
    | Tick
)


# --- Effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the request; nothing is sent when its session has gone."""

    origin: Origin
    message: p.Message
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class StartRun:
    run: Run


@dataclass(frozen=True, slots=True)
class StopRun:
    """Stop the run, whatever it is in the middle of; ends in `RunBroken`."""

    run: Run


@dataclass(frozen=True, slots=True)
class SaveSlots:
    """Save the slots atomically; ends in `SlotsSaved` or `CheckFailed`."""

    run: Run
    slots: Mapping[str, SlotRecord]


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell watchers and the log."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class ForgetSession:
    session: bytes


Effect = Reply | StartRun | StopRun | SaveSlots | Announce | ForgetSession
