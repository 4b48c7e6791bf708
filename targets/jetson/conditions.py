"""What a Jetson tells to the agent: readings of its sensors, and what a measurement on it depends on.

`telemetry` is called once a second, `conditions` once a run. Neither needs root, CUDA or torch.
"""

from __future__ import annotations

import atexit
from functools import cache

from targets.jetson import identity, power
from targets.jetson.sysfs import Clock, JetsonSensors, Roots
from targets.jetson.tegrastats import Sample, Tegrastats
from targets.sensors import INPUTS, slug

#: What has to be known of the power to read a figure of it.
POWER_NOTE = "the INA3221 gives averages and is slow: energy is of runs of several seconds only"
#: Readings that are worth a running ``tegrastats`` when sysfs has none of them.
_WORTH = ("gpu_mhz", "power_w")


class JetsonTelemetry:
    """One board: readings and conditions from sysfs; ``tool`` fills in where sysfs has no GPU clock or no power."""

    def __init__(self, roots: Roots | None = None, tool: Tegrastats | None = None) -> None:
        """Without ``roots``, of this machine: only then its programs are asked, too."""
        self._here = roots is None
        self._roots = roots if roots is not None else Roots()
        self._sensors = JetsonSensors(self._roots)
        self._tool = tool

    def read(self) -> dict[str, float]:
        """As `JetsonSensors.read`, with ``power_mode_id``, and ``emc_percent`` where ``tegrastats`` had to be asked."""
        found = self._sensors.read()
        if (mode := power.status(self._roots).id) is not None:
            found["power_mode_id"] = float(mode)
        if self._tool is not None and any(name not in found for name in _WORTH):
            sample = self._tool.latest()
            if sample is not None:
                found = {**_of(sample), **found}
        return found

    def conditions(self) -> dict[str, str]:
        """See :func:`conditions`."""
        sensors = self._sensors
        gpu, emc, cpus = sensors.gpu(), sensors.emc(), sensors.cpus()
        mode = power.current(self._roots) if self._here else power.status(self._roots)
        found = {
            **identity.find(None if self._here else self._roots).words(),
            "power_mode": mode.name,
            "power_mode_id": str(mode.id) if mode.id is not None else "",
            "power_mode_default": _default(power.modes(self._roots)),
            "clocks": power.pinned((gpu, *cpus.values())),
            "gpu_clock": _words(gpu),
            "cpu_clock": " | ".join(dict.fromkeys(map(_words, cpus.values()))),
            "emc_clock": _words(emc),
            "cpus_online": sensors.online(),
            "fan": f"{duty:.0f}%" if (duty := sensors.fan()) is not None else "",
            "throttling": self._throttling(),
            "power_source": sensors.rails.source,
            "power_note": POWER_NOTE if sensors.rails.source else "",
        }
        return {name: value for name, value in found.items() if value}

    def _throttling(self) -> str:
        """Empty when nothing tells."""
        throttling = self._sensors.throttling
        return ", ".join(throttling.reasons()) or ("no" if "throttled" in throttling.read() else "")


@cache
def _here() -> JetsonTelemetry:
    tool = Tegrastats()
    atexit.register(tool.close)
    return JetsonTelemetry(tool=tool)


def telemetry() -> dict[str, float]:
    """This board's readings, by the names that `agent.telemetry` has; what it does not tell is absent.

    ``temperature_c`` (of the junction) and ``temperature_<zone>_c``, ``temperature_limit_c``; ``gpu_mhz``,
    ``gpu_max_mhz``, ``gpu_percent``, ``emc_mhz``; ``power_w`` (of the module) and ``power_<rail>_w``; ``throttled``,
    ``throttle_events``; ``fan_percent``; ``power_mode_id``.
    """
    return _here().read()


def conditions() -> dict[str, str]:
    """What a measurement on this board depends on, in words; what is not known is absent.

    ``board``, ``module``, ``chip``, ``l4t``, ``jetpack``, ``jetpack_cuda``, ``jetpack_tensorrt``; ``power_mode``,
    ``power_mode_id``, ``power_mode_default``; ``clocks`` (``pinned``, ``not pinned``, ``unknown``), ``gpu_clock``,
    ``cpu_clock``, ``emc_clock`` (range, present clock, governor), ``cpus_online``; ``fan``, ``throttling``;
    ``power_source`` and ``power_note``.
    """
    return _here().conditions()


def _of(sample: Sample) -> dict[str, float]:
    """A line's readings with the module's power and temperature by their general names."""
    found = sample.readings()
    for names in INPUTS:
        rails = [found.get(f"power_{slug(name)}_w") for name in names]
        known = [watts for watts in rails if watts is not None]
        if len(known) == len(rails):
            found["power_w"] = sum(known)
            break
    junction = found.get("temperature_tj_c", found.get("temperature_cpu_c"))
    if junction is not None:
        found["temperature_c"] = junction
    return found


def _default(modes: power.ModeList) -> str:
    return modes.names.get(modes.default, str(modes.default)) if modes.default is not None else ""


def _words(clock: Clock | None) -> str:
    """``306 to 1020 MHz, now 612, nvhost_podgov``; empty when nothing is known of it."""
    if clock is None:
        return ""
    parts = [
        f"{clock.low:.0f} to {clock.high:.0f} MHz" if clock.low is not None and clock.high is not None else "",
        f"now {clock.now:.0f}" if clock.now is not None else "",
        clock.governor,
    ]
    return ", ".join(part for part in parts if part)
