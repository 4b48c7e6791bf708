"""What a Jetson tells in sysfs and procfs without root: temperatures, rails, clocks, governors, fan, throttling.

Paths by release: docs/telemetry.md. All roots are parameters, so that recorded trees can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from targets import sensors
from targets.sensors import Rails, Thermometer, Throttling, number, slug, text


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the board's file systems begin."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    etc: Path = Path("/etc")
    var: Path = Path("/var")

    @classmethod
    def below(cls, root: Path) -> Roots:
        """Those of a tree that was recorded from a board."""
        return cls(root / "sys", root / "proc", root / "etc", root / "var")


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock and the range it may move in, in MHz; None for what cannot be read."""

    now: float | None
    low: float | None
    high: float | None
    governor: str = ""

    @property
    def pinned(self) -> bool | None:
        """Whether it cannot move, which is what ``jetson_clocks`` does; None when that cannot be told.

        A gated GPU reads as 0 MHz or as its lowest clock, whatever it is pinned to.
        """
        if self.low is None or self.high is None:
            return None
        return self.low == self.high and self.now in (None, 0.0, self.high)


#: The GPU among the frequency-scaled devices, by the name of its node or of its folder.
_GPU = re.compile(r"(.*\.)?(gm20b|gp10b|gv11b|ga10b|gb10b|gpu)|gpu-gpc-0")
_ZONE_END = re.compile(r"[-_]therm(al)?(_zone)?$")
#: Where the GPU's load is, in tenths of a per cent, when not beside its clock.
_LOADS = ("devices/gpu.0/load", "devices/platform/gpu.0/load")
#: The memory's clock in Hz, for root only.
_EMC_RATES = ("kernel/debug/bpmp/debug/clk/emc/rate", "kernel/debug/clk/override.emc/clk_rate")


class JetsonSensors:
    """Reads one board; files are found once. Without root, well below 5 ms but for what the I2C bus takes."""

    def __init__(self, roots: Roots) -> None:
        self._sys = roots.sys
        devices = sorted((roots.sys / "class/devfreq").glob("*"))
        self._gpu = next((each for each in devices if _is_gpu(each)), None)
        self._emc = next((each for each in devices if each.name == "bwmgr" or each.name.endswith("emc")), None)
        loads = [self._gpu / "device/load"] if self._gpu is not None else []
        self._load = next((p for p in (*loads, *(roots.sys / path for path in _LOADS)) if number(p) is not None), None)
        self._emc_rate = next((p for path in _EMC_RATES if number(p := roots.sys / path) is not None), None)
        self._policies = sorted((roots.sys / "devices/system/cpu/cpufreq").glob("policy*"))
        self._zones = {
            _ZONE_END.sub("", kind): Thermometer(zone / "temp")
            for kind, zone in sensors.zones(roots.sys).items()
            if not kind.startswith("pmic")  # says 100 or 50 °C, always
        }
        self._tj = self._zones.get("tj") or sensors.processor(roots.sys)
        self._limit = sensors.slows_at(self._tj)
        self._fans = sorted(roots.sys.glob("class/hwmon/hwmon*/pwm1"))
        self.rails = Rails(roots.sys)
        self.throttling = Throttling(roots.sys)

    def read(self) -> dict[str, float]:
        """The readings that this board has.

        ``temperature_c`` (of the junction), ``temperature_limit_c``, ``temperature_<zone>_c``, ``gpu_mhz``,
        ``gpu_max_mhz``, ``gpu_percent``, ``emc_mhz``, ``power_w``, ``power_<rail>_w``, ``throttled``,
        ``throttle_events``, ``fan_percent``.
        """
        # First of all, before it falls for want of work.
        gpu = self.gpu()
        found = {
            f"temperature_{slug(name)}_c": celsius
            for name, zone in self._zones.items()
            if (celsius := zone.celsius()) is not None
        }
        if self._tj is not None and (celsius := self._tj.celsius()) is not None:
            found["temperature_c"] = celsius
            if self._limit is not None:
                found["temperature_limit_c"] = self._limit
        emc = self.emc()
        if gpu is not None and gpu.now:  # 0 while it is gated
            found["gpu_mhz"] = gpu.now
        if gpu is not None and gpu.high is not None:
            found["gpu_max_mhz"] = gpu.high
        if emc is not None and emc.now is not None:
            found["emc_mhz"] = emc.now
        if (load := number(self._load)) is not None and 0 <= load <= 1000:
            found["gpu_percent"] = load / 10
        if (pwm := self.fan()) is not None:
            found["fan_percent"] = pwm
        found.update(self.rails.read())
        found.update(self.throttling.read())
        return found

    def gpu(self) -> Clock | None:
        return _devfreq(self._gpu) if self._gpu is not None else None

    def emc(self) -> Clock | None:
        """Of the memory: Thor tells everybody, others only root."""
        if self._emc is not None:
            return _devfreq(self._emc)
        rate = number(self._emc_rate)
        return Clock(rate / 1e6, None, None) if rate is not None else None

    def cpus(self) -> dict[str, Clock]:
        """Clocks of the CPU clusters, by policy."""
        return {
            policy.name: Clock(
                _mhz(policy / "scaling_cur_freq", 1e3),
                _mhz(policy / "scaling_min_freq", 1e3),
                _mhz(policy / "scaling_max_freq", 1e3),
                text(policy / "scaling_governor"),
            )
            for policy in self._policies
        }

    def online(self) -> str:
        """CPU cores that are on, such as ``0-5``; empty when that cannot be told."""
        return text(self._sys / "devices/system/cpu/online")

    def fan(self) -> float | None:
        """Duty of the fan in per cent."""
        duty = next((value for path in self._fans if (value := number(path)) is not None), None)
        return duty / 2.55 if duty is not None and 0 <= duty <= 255 else None


def _is_gpu(device: Path) -> bool:
    names = (text(device / "device/of_node/name"), device.name)
    return any(_GPU.fullmatch(name) for name in names if name)


def _devfreq(device: Path) -> Clock:
    now, low, high = (_mhz(device / f"{name}_freq", 1e6) for name in ("cur", "min", "max"))
    return Clock(now, low, high, text(device / "governor"))


def _mhz(path: Path, unit: float) -> float | None:
    value = number(path)
    return value / unit if value is not None and value >= 0 else None
