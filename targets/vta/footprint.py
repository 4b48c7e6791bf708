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
    # A window of four iterations holds every distance below 4, and where in the loops it lies matters only as to when
    # the inner loop ends within it.
    starts = sorted({0, *range(max(0, inner - 3), inner)})
    window = 4 if len(writes) < 3 else 2
    closest = 4
    for start in starts:
        iteration = np.arange(start, min(start + window, outer * inner))
        at = (iteration // inner)[:, None], (iteration % inner)[:, None]
        written = (at[0] * factors[0] + at[1] * factors[1] + writes).ravel()
        read = (at[0] * read_factors[0] + at[1] * read_factors[1] + reads).ravel()
        for distance in range(1, closest):
            if (written[:-distance] == read[distance:]).any():
                closest = distance
                break
    return closest
