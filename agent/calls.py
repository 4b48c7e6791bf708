"""What an agent asks of its worker processes: MessagePack structs, each after its length in four bytes.

Both ends are always of the same version, and neither is a stranger: the pipe is inherited, never listened on.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from targets.base import OperatorProfile, TensorSpec

LENGTH = struct.Struct("<I")


class Call(msgspec.Struct, tag_field="t", kw_only=True):
    """One call; answered by one of `Answer`."""


class Load(Call, tag="load", kw_only=True):
    """Load a bundle from the folder where it lies in the store."""

    target: str
    bundle: str
    threads: int
    faults: list[str]
    simulated: bool = False


class Loaded(Call, tag="loaded", kw_only=True):
    """``unmet`` says why this device cannot run the bundle; then nothing was loaded."""

    engine: str
    unmet: str = ""


class Loading(Call, tag="loading", kw_only=True):
    """Loading goes on; comes before `Loaded`, of a device half that builds something first."""

    stage: str


class CheckGolden(Call, tag="check-golden", kw_only=True):
    """Run one golden set and compare."""

    index: int


class GoldenChecked(Call, tag="golden-checked", kw_only=True):
    """``mismatch`` says what is wrong, with figure and bound; empty when all is right.

    ``error``: largest absolute difference from the reference.
    """

    error: float
    mismatch: str = ""


class RunOnce(Call, tag="run-once", kw_only=True):
    """Inputs in the manifest's order as raw bytes."""

    inputs: list[bytes]


class RanOnce(Call, tag="ran-once", kw_only=True):
    outputs: list[bytes]
    specs: list[TensorSpec]
    seconds: float


class Measure(Call, tag="measure", kw_only=True):
    """Run ``queries`` times on the first golden input.

    ``clock``: ``host`` asks for that of `targets.base.HostTimed`, from a runner that has it. With ``together``, queries
    on the host's clock are waited for once: each is said to have taken the same. ``awake``: the next call follows at
    once, and until then the processor is kept busy (`targets.awake`).
    """

    queries: int
    clock: Literal["engine", "host"] = "engine"
    together: bool = False
    awake: bool = False


class Measured(Call, tag="measured", kw_only=True):
    """Latencies in seconds as float64 bytes, the clock that took them, and what `targets.base.Blocked` wants next."""

    seconds: bytes
    clock: Literal["engine", "host"] = "engine"
    least: int = 1


class Profile(Call, tag="profile", kw_only=True):
    """Time the operators of so many queries on the first golden input."""

    queries: int


class Profiled(Call, tag="profiled", kw_only=True):
    profile: OperatorProfile


class AskConditions(Call, tag="conditions", kw_only=True):
    pass


class Conditions(Call, tag="are-conditions", kw_only=True):
    """``counters``: what one inference cost, of an accelerator that counts."""

    values: dict[str, str]
    counters: dict[str, int | float] = {}


class Failed(Call, tag="failed", kw_only=True):
    """The call raised. ``code`` is a `FleetError`'s, or ``worker-error``."""

    code: str
    message: str
    hint: str = ""


AnyCall = Load | CheckGolden | RunOnce | Measure | Profile | AskConditions
Answer = Loaded | Loading | GoldenChecked | RanOnce | Measured | Profiled | Conditions | Failed

_encoder = msgspec.msgpack.Encoder()
calls: msgspec.msgpack.Decoder[AnyCall] = msgspec.msgpack.Decoder(AnyCall)
answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(call: Call) -> bytes:
    data = _encoder.encode(call)
    return LENGTH.pack(len(data)) + data
