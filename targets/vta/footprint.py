"""Which on-chip elements a GEMM or ALU instruction touches, and how far apart it touches one twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    #: Distinct element indices: a slice where they are without gaps, else ascending.
    Places: TypeAlias = slice | Indices


def compact(places: Indices) -> Places:
    """Ascending distinct indices, as a slice where they have no gaps."""
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def highest(bases: Indices, outer: int, factor_out: int, inner: int, factor_in: int) -> int:
    """The largest index of a loop nest; -1 when it touches nothing."""
    if not len(bases) or not outer or not inner:
        return -1
    return int(bases.max()) + (outer - 1) * factor_out + (inner - 1) * factor_in


def touched(bases: Indices, outer: int, factor_out: int, inner: int, factor_in: int) -> Places:
    """What ``base + o * factor_out + i * factor_in`` hits, for bases (n,) and all o below ``outer``, i below ``inner``.

    The caller has seen to it that :func:`highest` is below the memory's depth, which bounds the work here: a factor
    that is not 0 has few iterations.
    """
    places = np.unique(bases)
    for count, factor in ((outer, factor_out), (inner, factor_in)):
        if factor and count > 1:
            marks = np.zeros(int(places[-1]) + (count - 1) * factor + 1, np.bool_)
            marks[(np.arange(count)[:, None] * factor + places).ravel()] = True
            places = np.flatnonzero(marks)
    return compact(places)


def nearest(
    writes: Indices, reads: Indices, outer: int, inner: int, factors: tuple[int, int], read_factors: tuple[int, int]
) -> int:
    """The fewest micro-ops between a write of an element and a later read of it, looking at distances below 4.

    ``writes`` and ``reads`` are the micro-ops' indices, shape (n,), with the (outer, inner) factors of each. 4 when no
    such pair is closer. Distances wrap around the ends of the inner and of the outer loop.
    """
    count = len(writes)
    drift = factors[0] - read_factors[0], factors[1] - read_factors[1]
    for distance in (1, 2, 3):
        for ahead in range(distance // count, (distance + count - 1) // count + 1):
            # From micro-op u of one iteration to micro-op u + shift of the one that comes ``ahead`` later.
            shift = distance - ahead * count
            written = writes[max(0, -shift) : count - max(0, shift)]
            read = reads[max(0, shift) : count + min(0, shift)]
            if not len(written):
                continue
            gap = read - written
            for first, last, wraps in _crossings(inner, ahead):
                # written + o * f0 + i * f1 == read + (o + wraps) * g0 + (i + ahead - wraps * inner) * g1
                moved = wraps * read_factors[0] + (ahead - wraps * inner) * read_factors[1]
                reached = _sums(outer - wraps, drift[0], first, last, drift[1])
                hit = gap + moved == reached if len(reached) == 1 else np.isin(gap + moved, reached)
                if hit.any():
                    return distance
    return 4


def _crossings(inner: int, ahead: int) -> list[tuple[int, int, int]]:
    """``(first, last, wraps)``: from inner iterations first..last the one ``ahead`` is ``wraps`` outer ones further."""
    found = [] if inner <= ahead else [(0, inner - 1 - ahead, 0)]
    return found + [(at, at, (at + ahead) // inner) for at in range(max(0, inner - ahead), inner)]


def _sums(outer: int, outer_step: int, first: int, last: int, inner_step: int) -> Indices:
    """All ``o * outer_step + i * inner_step`` for o below ``outer`` and i in first..last; a step of 0 counts once."""
    if not outer_step and not inner_step:
        return np.zeros(min(max(outer, 0), 1), np.int64)
    outwards = np.arange(max(outer, 0) if outer_step else min(max(outer, 0), 1)) * outer_step
    inwards = np.arange(first, last + 1 if inner_step else first + 1) * inner_step
    return np.unique(outwards[:, None] + inwards)
