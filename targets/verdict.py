"""Whether a measurement may be believed: `VALID`, or `INVALID` with each figure that is out of bounds.

The conditions of a run are one flat dictionary, as `agent.protocol.RunResult.conditions` keeps it: :func:`conditions`
makes it of readings taken before, during and after, :func:`judge` reads it. What a board cannot tell is absent and is
not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from targets import defaults
from targets.bench import Spec

Value = float | str
Conditions = Mapping[str, Value]
Check = Callable[[Spec, Conditions], str]

#: Readings that are counts since the system started: what they rose by within the run is judged.
THROTTLE_COUNT = "throttle_events"
#: Clocks that must not fall, nor be limited anew, by the readings that tell them.
CLOCKS = {"cpu_mhz": "clock", "gpu_mhz": "GPU's clock"}


def conditions(
    before: Mapping[str, Value],
    during: Sequence[Mapping[str, float]],
    after: Mapping[str, Value],
    **run: Value,
) -> dict[str, Value]:
    """Flat conditions of a run.

    ``before`` and ``after`` are single readings (of `agent.telemetry`, with the governor as text); ``during`` all
    readings taken while it measured, kept as mean, ``…_min`` and ``…_max``; ``run`` is what was measured over the
    whole run, such as ``other_load=0.03``, kept as ``during.other_load``.
    """
    flat: dict[str, Value] = {f"before.{name}": value for name, value in before.items()}
    for name in sorted({name for reading in during for name in reading}):
        values = [reading[name] for reading in during if name in reading]
        flat[f"during.{name}"] = sum(values) / len(values)
        flat[f"during.{name}_min"] = min(values)
        flat[f"during.{name}_max"] = max(values)
    flat.update({f"during.{name}": value for name, value in run.items()})
    flat.update({f"after.{name}": value for name, value in after.items()})
    return flat


def judge(spec: Spec, shortfalls: Sequence[str], found: Conditions) -> tuple[Literal["VALID", "INVALID"], str]:
    """Verdict and reason of one run: ``shortfalls`` from `Plan.shortfalls`, ``found`` from :func:`conditions`."""
    reasons = [*shortfalls, *filter(None, (check(spec, found) for check in CHECKS))]
    return ("INVALID", "; ".join(reasons)) if reasons else ("VALID", "")


def other_load(spec: Spec, found: Conditions) -> str:
    load = _number(found, "during.other_load")
    if load is None or load <= spec.max_other_load:
        return ""
    return f"other processes used {load:.0%} of the CPU (bound {spec.max_other_load:.0%})"


def throttling(spec: Spec, found: Conditions) -> str:
    before, after = _number(found, f"before.{THROTTLE_COUNT}"), _number(found, f"after.{THROTTLE_COUNT}")
    if before is not None and after is not None and after > before:
        return f"the board was throttled {after - before:.0f} times (bound 0)"
    readings = (_number(found, name) for name in ("before.throttled", "during.throttled_max", "after.throttled"))
    return "the board was throttled while it was measured (bound: never)" if any(readings) else ""


def governor(spec: Spec, found: Conditions) -> str:
    before, after = found.get("before.governor", ""), found.get("after.governor", "")
    return f"the clock governor changed from {before} to {after}" if before != after else ""


def clock_limit(spec: Spec, found: Conditions) -> str:
    for reading, words in CLOCKS.items():
        name = reading.replace("_mhz", "_max_mhz")
        before, after = _number(found, f"before.{name}"), _number(found, f"after.{name}")
        if before and after is not None and after != before:
            return f"the highest allowed {words} changed from {before:.0f} to {after:.0f} MHz"
    return ""


def clock(spec: Spec, found: Conditions) -> str:
    bound = defaults.BENCH_MAX_CLOCK_DROP
    for reading, words in CLOCKS.items():
        low, high = _number(found, f"during.{reading}_min"), _number(found, f"during.{reading}_max")
        if low is not None and high and 1 - low / high > bound:
            fall = 1 - low / high
            return f"the {words} fell by {fall:.0%}, from {high:.0f} to {low:.0f} MHz (bound {bound:.0%})"
    return ""


def temperature(spec: Spec, found: Conditions) -> str:
    low, high = _number(found, "during.temperature_c_min"), _number(found, "during.temperature_c_max")
    bound = defaults.BENCH_MAX_TEMPERATURE_RISE
    if low is None or high is None or high - low <= bound:
        return ""
    return f"the temperature moved by {high - low:.1f} K, between {low:.1f} and {high:.1f} °C (bound {bound:g} K)"


def temperature_limit(spec: Spec, found: Conditions) -> str:
    high, limit = _number(found, "during.temperature_c_max"), _number(found, "before.temperature_limit_c")
    if high is None or limit is None or high < limit:
        return ""
    return f"the temperature reached {high:.1f} °C, where this board slows down (bound {limit:.1f} °C)"


def power_mode(spec: Spec, found: Conditions) -> str:
    for name in ("power_mode", "power_mode_id"):
        before, after = found.get(f"before.{name}", ""), found.get(f"after.{name}", "")
        if before != after:
            return f"the power mode changed from {_words(before)} to {_words(after)}"
    return ""


CHECKS: tuple[Check, ...] = (
    other_load,
    throttling,
    governor,
    power_mode,
    clock_limit,
    clock,
    temperature,
    temperature_limit,
)


def _number(found: Conditions, name: str) -> float | None:
    value = found.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _words(value: Value) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else value or "unknown"
