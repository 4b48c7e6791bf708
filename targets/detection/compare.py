"""Are these the same detections? What is found goes through thresholds, so differences in the last bit can be large.

Two scores that are one rounding apart may swap places; a box whose score, or whose overlap with a better one, is within
rounding of a threshold may be there or not. So detections are matched one to one, and what only one side has is excused
where, and only where, a cut explains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Rows(Protocol):
    """What was found in one picture, best first: ``boxes`` (n, 4) corners, ``scores`` and ``labels`` (n,), and maybe
    ``masks``: (n, S, S) floats within each box, or (n, H, W) uint8 of the whole picture."""

    @property
    def boxes(self) -> npt.NDArray[Any]: ...
    @property
    def scores(self) -> npt.NDArray[Any]: ...
    @property
    def labels(self) -> npt.NDArray[Any]: ...
    @property
    def masks(self) -> npt.NDArray[Any] | None: ...


class Cuts(NamedTuple):
    """By what detections are chosen: the lowest score, the largest overlap within a class, the largest number.

    An overlap of 0 and a number of 0 cut nothing.
    """

    score: float = 0.0
    overlap: float = 0.0
    most: int = 0


class Comparison(NamedTuple):
    """``differences`` in words, the best detection's first; none: they are the same."""

    differences: tuple[str, ...]
    #: The largest absolute difference of a number of two detections that are taken for one.
    worst: float
    #: Pairs that are taken for one, and detections of one side that a cut explains.
    matched: int
    excused: int

    @property
    def same(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        """The first difference, and how many there are; empty when there are none."""
        if len(self.differences) < 2:
            return "".join(self.differences)
        return f"{self.differences[0]}; {len(self.differences)} differences in all"


def compare(a: Rows, b: Rows, rtol: float, atol: float, cuts: Cuts | None = None) -> Comparison:
    """Match ``a`` with the reference ``b``: one to one, of the same class, numbers within ``atol + rtol * |b|``.

    For an edge of a box ``|b|`` is the largest of the box's coordinates: edges are computed from centre and size. Order
    matters between scores that differ by more than the tolerance. What one side alone has is excused when its score
    is within the tolerance of the lowest that could be there, or when a better one of its class on the other side
    overlaps it by the cut's overlap, within the tolerance, or is itself excused.
    """
    one, other = _Side.of(a, rtol, atol), _Side.of(b, rtol, atol)
    for side, who in ((one, "their"), (other, "the reference's")):
        if not (np.isfinite(side.boxes).all() and np.isfinite(side.scores).all()):
            return Comparison((f"{who} boxes or scores hold values that are no finite numbers",), np.inf, 0, 0)
    near = _near(one, other)
    partner = _matched(near, _distances(one, other))
    here = np.flatnonzero(partner >= 0)
    there = partner[here]
    excused, alone = _alone(one, other, partner, cuts or Cuts())
    differences = [*_disorder(one, "they are"), *_disorder(other, "the reference is"), *alone]
    worst = max(
        float(np.abs(one.boxes[here] - other.boxes[there]).max(initial=0.0)),
        float(np.abs(one.scores[here] - other.scores[there]).max(initial=0.0)),
    )
    if a.masks is not None and b.masks is not None:
        for mine, theirs in zip(here.tolist(), there.tolist(), strict=True):
            difference, words = _masks(a.masks[mine], b.masks[theirs], rtol, atol)
            worst = max(worst, difference)
            if words:
                differences.append(f"the mask of {other.words(theirs)} {words}")
    elif (a.masks is None) != (b.masks is None):
        differences.append(f"{'they' if a.masks is None else 'the references'} have no masks")
    return Comparison(tuple(differences), worst, len(here), excused)


class _Side(NamedTuple):
    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    #: Allowed difference of an edge and of a score.
    of_edges: Floats
    of_scores: Floats

    @staticmethod
    def of(rows: Rows, rtol: float, atol: float) -> _Side:
        boxes, scores = rows.boxes.astype(np.float64).reshape(-1, 4), rows.scores.astype(np.float64)
        return _Side(
            boxes,
            scores,
            rows.labels.astype(np.int64),
            atol + rtol * np.abs(boxes).max(axis=1, initial=0.0),
            atol + rtol * np.abs(scores),
        )

    def words(self, row: int) -> str:
        corners = ", ".join(f"{edge:.6g}" for edge in self.boxes[row])
        return f"class {self.labels[row]} at [{corners}] with score {self.scores[row]:.6g}"


def _distances(a: _Side, b: _Side) -> Floats:
    """How far apart each two are: 1 is the tolerance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        edges = np.abs(a.boxes[:, None] - b.boxes[None]).max(-1) / b.of_edges
        scores = np.abs(a.scores[:, None] - b.scores[None]) / b.of_scores
    # Equal numbers are equal where nothing is tolerated.
    farthest: Floats = np.maximum(np.nan_to_num(edges, nan=0.0), np.nan_to_num(scores, nan=0.0))
    return farthest


def _near(a: _Side, b: _Side) -> Flags:
    edges = (np.abs(a.boxes[:, None] - b.boxes[None]) <= b.of_edges[:, None]).all(-1)
    scores = np.abs(a.scores[:, None] - b.scores[None]) <= b.of_scores
    near: Flags = edges & scores & (a.labels[:, None] == b.labels[None])
    return near


def _matched(near: Flags, distances: Floats) -> npt.NDArray[np.int64]:
    """For each row of ``near`` the column that is its partner, or -1: as many pairs as there can be (Kuhn 1955)."""
    taken = np.full(near.shape[1], -1, np.int64)
    choices = [
        sorted(np.flatnonzero(row).tolist(), key=cost.__getitem__) for row, cost in zip(near, distances, strict=True)
    ]
    for row in range(len(near)):
        _augment(row, choices, taken)
    partner = np.full(len(near), -1, np.int64)
    columns = np.flatnonzero(taken >= 0)
    partner[taken[columns]] = columns
    return partner


def _augment(row: int, choices: list[list[int]], taken: npt.NDArray[np.int64]) -> None:
    """Give ``row`` a column, by moving others to other columns where that is needed."""
    came_from: dict[int, int] = {}
    waiting = [row]
    for current in waiting:
        for column in choices[current]:
            if column in came_from:
                continue
            came_from[column] = current
            if taken[column] >= 0:
                waiting.append(int(taken[column]))
                continue
            while column >= 0:
                giver = came_from[column]
                before = next((c for c in came_from if taken[c] == giver), -1)
                taken[column] = giver
                column = before if giver != row else -1
            return


def _alone(a: _Side, b: _Side, partner: npt.NDArray[np.int64], cuts: Cuts) -> tuple[int, list[str]]:
    """How many detections of one side are excused, and those that are not, in words; best first."""
    without = {"a": set(np.flatnonzero(partner < 0).tolist())}
    without["b"] = set(range(len(b.scores))) - set(partner.tolist())
    sides = {"a": (a, b), "b": (b, a)}
    lowest = {name: _lowest(other, cuts) for name, (_, other) in sides.items()}
    excused: dict[str, set[int]] = {"a": set(), "b": set()}
    unexplained: list[str] = []
    rows = sorted(
        ((name, row) for name in sides for row in without[name]), key=lambda one: -sides[one[0]][0].scores[one[1]]
    )
    for name, row in rows:
        own, other = sides[name]
        near_cut = own.scores[row] <= lowest[name] + own.of_scores[row]
        if near_cut or _displaced(own, row, other, excused["b" if name == "a" else "a"], cuts.overlap):
            excused[name].add(row)
            continue
        words = own.words(row)
        nearest = _nearest(own, row, other, without["b" if name == "a" else "a"])
        unexplained.append(
            (f"{words} is not in the reference" if name == "a" else f"{words} is only in the reference") + nearest
        )
    return len(excused["a"]) + len(excused["b"]), unexplained


def _lowest(other: _Side, cuts: Cuts) -> float:
    """The score below which the other side may have cut a detection off."""
    full = bool(cuts.most) and len(other.scores) >= cuts.most
    return max(cuts.score, float(other.scores.min())) if full else cuts.score


def _displaced(own: _Side, row: int, other: _Side, excused: set[int], overlap: float) -> bool:
    """Whether a better one of its class on the other side may have taken the place of ``row``."""
    if not overlap:
        return False
    better = np.flatnonzero((other.labels == own.labels[row]) & (other.scores >= own.scores[row] - own.of_scores[row]))
    for rival in better.tolist():
        shared, slack = _overlap(own.boxes[row], other.boxes[rival], own.of_edges[row])
        if shared >= overlap - slack and (shared <= overlap + slack or rival in excused):
            return True
    return False


def _overlap(a: Floats, b: Floats, tolerance: float) -> tuple[float, float]:
    """IoU of two boxes, and by how much it may change when their edges move by ``tolerance``."""
    inside = float(np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)))
    areas = [float(np.prod(np.clip(box[2:] - box[:2], 0, None))) for box in (a, b)]
    union = sum(areas) - inside
    if union <= 0:
        return 0.0, 1.0
    around = sum(float((box[2:] - box[:2]).sum()) for box in (a, b))
    return inside / union, min(1.0, 2 * tolerance * around / union)


def _nearest(own: _Side, row: int, other: _Side, candidates: set[int]) -> str:
    """What it may have been meant to be."""
    rows = [each for each in sorted(candidates) if other.labels[each] == own.labels[row]]
    if not rows:
        return ""
    edges = np.abs(other.boxes[rows] - own.boxes[row]).max(-1)
    nearest = int(edges.argmin())
    score = abs(float(other.scores[rows[nearest]] - own.scores[row]))
    return f", the nearest differs by {edges[nearest]:.3g} in its box and {score:.3g} in its score"


def _disorder(side: _Side, who: str) -> Iterator[str]:
    if len(side.scores) < 2:
        return
    best_after = np.maximum.accumulate(side.scores[::-1])[::-1]
    wrong = np.flatnonzero(best_after - side.scores > side.of_scores)
    if len(wrong):
        yield f"{who} not best first: {side.words(int(wrong[0]))} comes before a score of {best_after[wrong[0]]:.6g}"


def _masks(a: npt.NDArray[Any], b: npt.NDArray[Any], rtol: float, atol: float) -> tuple[float, str]:
    """The largest difference of a pixel, and what is wrong; of 8 bits both in steps of 1/256."""
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return np.inf, f"is {a.dtype} {a.shape} instead of {b.dtype} {b.shape}"
    if a.dtype.kind == "f":
        low = high = b.astype(np.float64)
        values, step = a.astype(np.float64), 0.0
    else:
        rows, columns = (np.flatnonzero((a | b).any(axis)) for axis in (1, 0))
        if not len(rows):
            return 0.0, ""
        window = tuple(slice(max(0, some[0] - 1), some[-1] + 2) for some in (rows, columns))
        values, reference = a[window] / 256, b[window] / 256
        # A box that ends within rounding of a pixel's edge moves its mask by that pixel.
        low, high = _extremes(reference)
        step = 1 / 256
    over = np.maximum(low - values, values - high)
    bound = atol + step + rtol * np.abs(high)
    wrong = ~(over <= bound)
    worst = float(np.where(np.isnan(over), np.inf, over).max(initial=0.0))
    return worst, f"differs by up to {worst:.3g} in {int(wrong.sum())} of {wrong.size} pixels" if wrong.any() else ""


def _extremes(values: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest value of each pixel and its eight neighbours."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.minimum.reduce(shifted), np.maximum.reduce(shifted)
