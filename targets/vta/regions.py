"""Units of a network merged into regions: as large as they can be with nothing from outside between two of their units.

Pure graph work: units are numbers, in an order in which they can be computed.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence


def regions(needs: Sequence[Sequence[int]], allowed: Sequence[bool]) -> list[list[int]]:
    """Every unit in one group, groups in an order in which they can be computed, as near to the units' as can be.

    ``needs`` are the units that each unit needs. Units that are not ``allowed`` are groups of their own; the others are
    merged with what they need and what needs them as long as no two groups then need each other.
    """
    groups = _Groups(needs)
    merging = True
    while merging:
        merging = False
        for unit, needed in enumerate(needs):
            for each in needed:
                if allowed[unit] and allowed[each] and groups.merge(each, unit):
                    merging = True
    return groups.ordered()


class _Groups:
    def __init__(self, needs: Sequence[Sequence[int]]) -> None:
        self._needs = needs
        self._group = list(range(len(needs)))  # by unit: the first unit of its group
        self._members = {unit: [unit] for unit in self._group}

    def merge(self, a: int, b: int) -> bool:
        """Make one group of those of two units; False if they are one, or something lies between them."""
        first, second = sorted((self._group[a], self._group[b]))
        if first == second or self._reaches(second, first) or self._reaches(first, second):
            return False
        for unit in self._members[second]:
            self._group[unit] = first
        self._members[first] += self._members.pop(second)
        return True

    def ordered(self) -> list[list[int]]:
        waiting = {first: self._before(first) for first in self._members}
        after = defaultdict(list)
        for first, before in waiting.items():
            for each in before:
                after[each].append(first)
        ready = [first for first, before in waiting.items() if not before]
        heapq.heapify(ready)
        result = []
        while ready:
            done = heapq.heappop(ready)
            result.append(sorted(self._members[done]))
            for each in after[done]:
                waiting[each].remove(done)
                if not waiting[each]:
                    heapq.heappush(ready, each)
        return result

    def _before(self, first: int) -> set[int]:
        """Groups that a group needs."""
        return {self._group[need] for unit in self._members[first] for need in self._needs[unit]} - {first}

    def _reaches(self, start: int, wanted: int) -> bool:
        """Whether ``start`` needs ``wanted`` through another group."""
        waiting = list(self._before(start) - {wanted})
        seen = set(waiting)
        while waiting:
            before = self._before(waiting.pop())
            if wanted in before:
                return True
            waiting += before - seen
            seen |= before
        return False
