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
    window = [value for at, value in points if at >= last - SOAK_SECONDS]
    # A tenth is allowed for readings that were taken a little late.
    if last - points[0][0] < 0.9 * SOAK_SECONDS or len(window) < 3:
        return "not soaked"
    return "soaked" if max(window) - min(window) < SOAK_KELVIN else "not soaked"


def energy(series: Sequence[Point], idle_w: float, name: str = "power_w") -> float | None:
    """Joules above idle that the run took: the integral of the power, by trapezia, less ``idle_w`` times its time.

    None when the series has no power, or is shorter than `ENERGY_SECONDS`.
    """
    points = [(at, reading[name]) for at, reading in series if name in reading]
    if len(points) < 3 or points[-1][0] - points[0][0] < ENERGY_SECONDS:
        return None
    joules = sum((one + two) / 2 * (then - at) for (at, one), (then, two) in pairwise(points))
    return joules - idle_w * (points[-1][0] - points[0][0])
