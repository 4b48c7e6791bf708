"""What to measure next, and what the measurements say: the state of a tuning, without any I/O.

Layers come in the order of the time they are expected to take. Each candidate runs a short race against the default;
one that seems to win runs a longer one, in a session of its own. Only that one counts: the winner of many races has had
luck, and must do it again without.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from targets.statistics import median_interval
from targets.tuning import Candidate, Finding, Race, TunableLayer

#: By how much a candidate must be faster in both of its races: below that, the next release of anything undoes it.
MARGIN = 0.03
#: Rounds of a first race, and of the one that counts.
ROUNDS, CONFIRMING_ROUNDS = 9, 31

State = Literal["tuned", "default", "unfinished", "untried"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A race that was run; times are medians in milliseconds. With ``error`` the candidate failed."""

    signature: str
    choice: str
    #: What it raced against.
    default: str
    confirming: bool
    default_ms: float = 0.0
    ms: float = 0.0
    #: Whether the candidate was faster by the margin, and, in the race that counts, beyond noise.
    faster: bool = False
    error: str = ""

    @property
    def ratio(self) -> float:
        """Of the candidate's time to the default's."""
        return self.ms / self.default_ms if self.default_ms else float("inf")


@dataclass(frozen=True, slots=True)
class Trial:
    """A race to run: ``candidate`` of ``layers[layer]``."""

    layer: int
    candidate: int
    rounds: int
    confirming: bool


@dataclass(slots=True)
class Verdict:
    """What is known of one layer. ``best`` is the race that counts of the fastest candidate that won one."""

    layer: TunableLayer
    measured: int
    state: State
    best: Measured | None = None
    default_ms: float | None = None
    failures: list[Measured] = field(default_factory=list)

    def words_of(self, choice: str) -> str:
        """A candidate for people."""
        return next((one.words for one in self.layer.candidates if one.choice == choice), choice)


class TuningPlan:
    """Ask `next`, run that, `record` what came of it, until there is nothing more."""

    def __init__(
        self,
        layers: Sequence[TunableLayer],
        known: Iterable[Measured] = (),
        *,
        trials: int = 0,
        seconds: float = 0.0,
        clock: Callable[[], float],
    ) -> None:
        """``known`` was measured before and is not measured again, nor does it count in the budget: what raced
        against the defaults that stand now. 0 trials or seconds: no bound.
        """
        self.layers = layers
        self.order = sorted(range(len(layers)), key=lambda index: -layers[index].cost)
        self.trials, self.seconds, self.used = trials, seconds, 0
        self._clock, self._start = clock, clock()
        self._found: dict[tuple[str, str, bool], Measured] = {}
        defaults = {layer.signature: layer.candidates[0].choice for layer in layers}
        for one in known:
            if one.default == defaults.get(one.signature):
                self._keep(one)

    # --- Measuring ------------------------------------------------------------------------------

    def next(self) -> Trial | None:
        """The next race, or nothing when all is measured or the budget is spent."""
        if self.spent:
            return None
        return next(filter(None, (self._next_of(index) for index in self.order)), None)

    def record(self, trial: Trial, race: Race) -> Measured:
        """What a race says. Raises ValueError for one without times that did not fail."""
        layer = self.layers[trial.layer]
        default = own = 0.0
        faster = False
        if not race.error:
            default, own = statistics.median(race.default_ms), statistics.median(race.ms)
            faster = own <= (1 - MARGIN) * default
            if faster and trial.confirming:
                pairs = [one / other for one, other in zip(race.ms, race.default_ms, strict=True)]
                faster = median_interval(pairs)[1] < 1
        measured = Measured(
            signature=layer.signature,
            choice=layer.candidates[trial.candidate].choice,
            default=layer.candidates[0].choice,
            confirming=trial.confirming,
            default_ms=default,
            ms=own,
            faster=faster,
            error=race.error,
        )
        self.used += 1
        self._keep(measured)
        return measured

    @property
    def spent(self) -> bool:
        """Whether the budget is."""
        return bool(self.trials and self.used >= self.trials) or bool(self.seconds and self.elapsed >= self.seconds)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left(self) -> float | None:
        """Seconds until the end, as far as can be said: of the budget, or less if there is less to measure."""
        bounds = [self.seconds - self.elapsed] if self.seconds else []
        if self.used:
            races = sum(len(self._open(layer)) for layer in self.layers)
            races = min(races, self.trials - self.used) if self.trials else races
            bounds.append(races * self.elapsed / self.used)
        return max(0.0, min(bounds)) if bounds else None

    @property
    def share(self) -> float:
        """Done, of what the budget allows, 0..1."""
        total = sum(len(layer.candidates) - 1 for layer in self.layers)
        done = total - sum(len(self._open(layer)) for layer in self.layers)
        shares = [done / total if total else 1.0]
        shares += [self.used / self.trials] if self.trials else []
        shares += [self.elapsed / self.seconds] if self.seconds else []
        return min(1.0, max(shares))

    # --- What came of it ------------------------------------------------------------------------

    def verdict(self, index: int) -> Verdict:
        """Of ``layers[index]``."""
        layer = self.layers[index]
        races = [
            self._found[key] for one in layer.candidates[1:] for key in self._keys(layer, one) if key in self._found
        ]
        won = [one for one in races if one.confirming and one.faster]
        best = min(won, key=lambda one: one.ratio, default=None)
        times = [one.default_ms for one in races if not one.error]
        finished = self._next_of(index) is None
        state: State = "tuned" if best else "default" if finished else "unfinished" if races else "untried"
        return Verdict(
            layer,
            sum(not one.confirming for one in races),
            state,
            best,
            best.default_ms if best else statistics.median(times) if times else None,
            [one for one in races if one.error],
        )

    def findings(self, device: str, date: str) -> list[Finding]:
        """What is to be kept. Of a layer that is not finished and has no winner nothing is said."""
        found = []
        for verdict in map(self.verdict, self.order):
            if verdict.state not in ("tuned", "default") or verdict.default_ms is None:
                continue
            best = verdict.best
            found.append(
                Finding(
                    signature=verdict.layer.signature,
                    choice=best.choice if best else "",
                    default_choice=verdict.layer.candidates[0].choice,
                    ms=best.ms if best else verdict.default_ms,
                    default_ms=verdict.default_ms,
                    device=device,
                    date=date,
                )
            )
        return found

    # --- State ----------------------------------------------------------------------------------

    def _keep(self, measured: Measured) -> None:
        self._found[measured.signature, measured.choice, measured.confirming] = measured

    @staticmethod
    def _keys(layer: TunableLayer, candidate: Candidate) -> list[tuple[str, str, bool]]:
        return [(layer.signature, candidate.choice, confirming) for confirming in (False, True)]

    def _open(self, layer: TunableLayer) -> list[int]:
        """Candidates that have not run their first race."""
        return [n for n, one in enumerate(layer.candidates) if n and self._keys(layer, one)[0] not in self._found]

    def _next_of(self, index: int) -> Trial | None:
        """What seems to win is confirmed before others are tried: whenever the time is up, what was found counts."""
        layer = self.layers[index]
        best = float("inf")
        for number, one in enumerate(layer.candidates[1:], 1):
            first, second = (self._found.get(key) for key in self._keys(layer, one))
            if second is not None and second.faster:
                best = min(best, second.ratio)
            if first is None:
                return Trial(index, number, ROUNDS, confirming=False)
            if first.faster and second is None and first.ratio < best:
                return Trial(index, number, CONFIRMING_ROUNDS, confirming=True)
        return None
