"""The contract between `fleet tune` and a kind of board whose kernels can be chosen by measuring them.

A host half that can be tuned says what there is to choose for a network (:class:`Tuner`), measures one choice against
the default on a device, keeps what was found in a file of its own form, and builds with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from targets.base import Option, SourceModel


class Candidate(msgspec.Struct, frozen=True):
    """A way to compute a layer: the target's own text, by which it is known again, and words for people."""

    choice: str
    words: str


class TunableLayer(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of a network that are the same work."""

    #: All that their time depends on, as text.
    signature: str
    #: For people: what it is, with its shapes.
    words: str
    #: How many layers of the network it stands for.
    count: int
    #: An estimate of the time of all of them, in a unit that all layers of the network share.
    cost: float
    #: What is worth measuring; the first is the default.
    candidates: tuple[Candidate, ...]


class Endpoint(msgspec.Struct, frozen=True):
    """A device's TVM RPC listener: its own address, or that of a tracker where it is registered under ``key``."""

    host: str
    port: int
    key: str
    tracker: bool = False


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate measured in turn with the default: round i of both was one right after the other.

    With ``error`` the candidate failed (it crashed, or computed something else) and there are no times.
    """

    default_ms: tuple[float, ...] = ()
    ms: tuple[float, ...] = ()
    error: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be kept for a layer: a choice with both medians of one race, or that the default stays (``""``)."""

    signature: str
    choice: str = ""
    default_choice: str = ""
    ms: float = 0.0
    default_ms: float = 0.0
    device: str = ""
    #: As YYYY-MM-DD.
    date: str = ""


class Tuner(Protocol):
    """A network that is being tuned, in a process of its own."""

    #: Digest of the code that makes the kernels: what it measured says nothing of another's.
    compiler: str

    def layers(self) -> Sequence[TunableLayer]:
        """What there is to choose, in the network's order."""
        ...

    def race(self, layer: int, candidate: int, rounds: int, at: Endpoint) -> Race:
        """Measure a candidate of ``layers()[layer]`` on a device. Raises FleetError for what is not its fault alone."""
        ...


@runtime_checkable
class TuningHalf(Protocol):
    """A host half whose builds take measured choices. The option ``tuned`` is a file of them, or ``off``."""

    def tuning_file(self, options: Mapping[str, Option]) -> str:
        """Name of the file that holds what was found for the processor that these options name."""
        ...

    def with_tuned(self, options: Mapping[str, Option], folder: Path) -> dict[str, Option]:
        """``options``, with the file of ``folder`` that is for their processor unless they name one themselves."""
        ...

    def tuner(self, model: SourceModel, options: Mapping[str, Option], workdir: Path) -> Tuner:
        """Raises ModelError for what cannot be compiled, FleetError for options that leave nothing to choose."""
        ...

    def keep(self, options: Mapping[str, Option], path: Path, found: Sequence[Finding]) -> None:
        """Bring a file up to date, or make it. Raises FleetError ``bad-tuning`` for one that holds something else."""
        ...
