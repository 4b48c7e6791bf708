"""When a device counts as gone, and when to try it again. No I/O: times come in as seconds of a monotonic clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from targets.defaults import OFFLINE_AFTER, RECONNECT_CAP, RECONNECT_FIRST, SUSPECT_AFTER

LivenessState = Literal["online", "suspect", "offline"]

#: What the state of a device is called that could not be asked: the codes of `controller.carriers.connect`.
OUT_OF_REACH = frozenset(
    {
        *("unreachable", "offline", "timeout", "connection-lost", "wrong-key"),
        *("ssh-refused", "ssh-config", "ssh-forwarding", "host-key"),
        *("agent-missing", "agent-not-running", "agent-failed", "agent-home"),
    }
)


@dataclass(slots=True)
class Liveness:
    """How sure we are that a device is there, by when it was last heard."""

    heard: float
    suspect_after: float = SUSPECT_AFTER
    offline_after: float = OFFLINE_AFTER

    def state(self, now: float) -> LivenessState:
        silent = now - self.heard
        if silent >= self.offline_after:
            return "offline"
        return "suspect" if silent >= self.suspect_after else "online"


class Backoff:
    """How long to wait before the next try: exponential, with jitter so that a fleet does not come back at once."""

    def __init__(
        self,
        first: float = RECONNECT_FIRST,
        cap: float = RECONNECT_CAP,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first, self._cap, self._uniform = first, cap, uniform
        self._bound = first

    def next(self) -> float:
        """Seconds to wait; never more than the cap."""
        bound, self._bound = self._bound, min(self._bound * 2, self._cap)
        # Half of it is certain: jitter from zero would now and then hammer a board that is just starting.
        return self._uniform(bound / 2, bound)

    def reset(self) -> None:
        self._bound = self._first
