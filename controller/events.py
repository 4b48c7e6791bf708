"""What operations tell while they run. The live view, plain lines and tests are all listeners of the same events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class DeviceChanged:
    """A device's liveness or what it is doing: ``online``/``suspect``/``offline`` or ``idle``/``benching``/…"""

    device: str
    state: str
    release: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Work on one device (or a build, with ``device`` empty): ``stage`` such as ``build``, ``push``, ``golden``."""

    device: str
    stage: str
    share: float = 0.0
    detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Latencies in milliseconds just measured on a device."""

    device: str
    model: str
    bundle: str
    values: list[float]
    share: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Telemetry: keys as in agent.protocol.Telemetry; what the board cannot tell is absent."""

    device: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One line for the event log."""

    device: str
    text: str
    level: Literal["info", "warning", "error"] = "info"


Event = DeviceChanged | Progress | SampleBatch | Reading | Message
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not want to listen."""
