"""A scratchpad as a few slots of one size, and which slot each chunk goes to.

The whole sequence of chunks is known when the program is made, so the best policy can be had: what is needed again
latest makes room (Belady, 1966) - but never the chunk that was asked for just before, so that a load overlaps with the
work on that one. Keeping everything, keeping some, and streaming through a ring all follow from it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies, and whether it has to be loaded for this request."""

    slot: int
    load: bool


def assign(requests: Sequence[Hashable], slots: int) -> list[Place]:
    """A place for each request, in order. ``slots`` is at least 1; with 2 or more, loads overlap with work."""
    following = [_NEVER] * len(requests)
    latest: dict[Hashable, int] = {}
    for at in range(len(requests) - 1, -1, -1):
        following[at] = latest.get(requests[at], _NEVER)
        latest[requests[at]] = at
    if len(latest) <= slots:
        order: dict[Hashable, int] = {}
        return [
            Place(order.setdefault(key, len(order)), following_is_first)
            for key, following_is_first in _firsts(requests)
        ]
    holds: list[Hashable | None] = [None] * slots
    #: When the chunk in each slot is needed next, and when it was put there.
    needed = [_NEVER] * slots
    since = [-1] * slots
    where: dict[Hashable, int] = {}
    places = []
    previous = -1
    for at, key in enumerate(requests):
        slot = where.get(key, -1)
        if slot >= 0:
            places.append(Place(slot, False))
        else:
            # Of those needed equally late the one put there first, which makes a ring of what is needed once.
            slot = max(
                (each for each in range(slots) if each != previous or slots == 1),
                key=lambda each: (needed[each], -since[each]),
            )
            if holds[slot] is not None:
                del where[holds[slot]]
            holds[slot] = key
            where[key] = slot
            since[slot] = at
            places.append(Place(slot, True))
        needed[slot] = following[at]
        previous = slot
    return places


def _firsts(requests: Sequence[Hashable]) -> list[tuple[Hashable, bool]]:
    seen: set[Hashable] = set()
    found = []
    for key in requests:
        found.append((key, key not in seen))
        seen.add(key)
    return found
