"""What a series of a board's readings shows: whether it has reached its temperature, and what an inference cost.

A series is a list of (time in seconds, reading), in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

Point = tuple[float, Mapping[str, float]]

#: A board is soaked with heat when its temperature has moved by less than so many kelvin over so many seconds.
SOAK_KELVIN = 1.0
SOAK_SECONDS = 60.0
#: Fewer readings than these show nothing.
SOAK_READINGS = 6
#: Shortest run, in seconds, that an energy is told of: sensors of power are averages over up to a second, and an
#: INA3221 that the kernel asks for 1,024 samples of 1.1 ms on three channels needs three.
ENERGY_SECONDS = 5.0


def thermal(series: Sequence[Point], name: str = "temperature_c") -> Literal["soaked", "not soaked", ""]:
    """Whether the temperature had settled at the end of a series; empty when the board tells none.

    A series that is shorter than `SOAK_SECONDS` shows no soak.
    """
    points = [(at, reading[name]) for at, reading in series if name in reading]
    if not points:
        return ""
    last = points[-1][0]
    window = [(at, value) for at, value in points if at >= last - SOAK_SECONDS]
    values = [value for _, value in window]
    # A tenth is allowed for readings that were taken a little late.
    if len(window) < SOAK_READINGS or last - window[0][0] < 0.9 * SOAK_SECONDS:
        return "not soaked"
    return "soaked" if max(values) - min(values) < SOAK_KELVIN else "not soaked"


def power_above_idle(series: Sequence[Point], idle_w: float, name: str = "power_w") -> float | None:
    """Power above idle, in W: the integral of the power over the series, by trapezia, less idle's, by its time.

    None when the series has no power, or is shorter than `ENERGY_SECONDS`.
    """
    points = [(at, reading[name]) for at, reading in series if name in reading]
    seconds = points[-1][0] - points[0][0] if points else 0.0
    if len(points) < 3 or seconds < ENERGY_SECONDS:
        return None
    joules = sum((one + two) / 2 * (then - at) for (at, one), (then, two) in pairwise(points))
    return joules / seconds - idle_w


def conditions(series: Sequence[Point], idle_w: float | None, items_per_second: float) -> dict[str, float | str]:
    """What a run's readings add to its conditions.

    ``thermal``, see :func:`thermal`. Where power is measured, and was before the run: ``idle_power_w``,
    ``power_above_idle_w`` and ``energy_per_item_j``, which is of one picture, not of a batch.
    """
    found: dict[str, float | str] = {}
    if settled := thermal(series):
        found["thermal"] = settled
    watts = power_above_idle(series, idle_w) if idle_w is not None else None
    if idle_w is not None and watts is not None and items_per_second > 0:
        found |= {
            "idle_power_w": idle_w,
            "power_above_idle_w": watts,
            "energy_per_item_j": watts / items_per_second,
        }
    return found
