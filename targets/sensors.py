"""Sensors that the kernel's classes hwmon, iio and thermal have in common on all kinds of boards.

Files are found once and opened anew for each reading. What cannot be read, or says something impossible, is absent
from a reading, never zero. Layouts are those of the kernel's documents ``hwmon/sysfs-interface``, ``ABI/testing/
sysfs-bus-iio``, ``driver-api/thermal/sysfs-api`` and ``hwmon/ina3221``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

#: Rails read at most: each one is a transfer over I2C.
MAX_RAILS = 24
#: Rails that, together, are all that a board or its module draws; the first set of which all are there is taken.
#: Jetson: one sensor of the input, or the rails of modules that have none (AGX Orin, Thor without VIN, AGX Xavier).
#: VDDQ_VDD2_1V8AO of AGX Orin is fed from VIN_SYS_5V0 and counted there.
INPUTS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),
    ("VIN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
#: Labels of channels that measure nothing: not connected, or the INA3221's sum over its shunts.
_NOTHING = re.compile(r"nc|.*\bshunt\b.*|sum of .*", re.IGNORECASE)
#: Labels of PMBus chips, which are alike on all of them; what flows in is counted where it comes out.
_PMBUS_OUT = re.compile(r"pout\d*")
_PMBUS_IN = re.compile(r"pin\d*")
#: Cooling devices that slow a processor down: clocks that the kernel lowers, and the Jetson's alerts.
_SLOWING = re.compile(r"cpufreq|devfreq|throttle-alert")
#: IIO devices whose temperature is the chip's own: Zynq-7000's XADC, Zynq UltraScale+'s AMS.
_IIO_CHIPS = re.compile(r"xadc|ams|system-monitor")
#: hwmon chips whose first temperature is the processor's, where there is no thermal zone.
_HWMON_CHIPS = re.compile(r"coretemp|k10temp|cpu|soc|iio_hwmon")


def text(path: Path) -> str:
    """What a file says, stripped; empty when it cannot be read. Device-tree strings end in a NUL, which goes too."""
    try:
        return path.read_bytes()[:65536].decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def number(path: Path | None, base: int = 10) -> float | None:
    """The first word of a file as a finite number; None without the file or the number."""
    word = next(iter(text(path).split()), "") if path is not None else ""
    try:
        value = float(word) if base == 10 else float(int(word, base))
    except (ValueError, OverflowError):
        return None
    return value if abs(value) < 1e18 else None


def plausible(celsius: float | None) -> float | None:
    """A temperature, unless no silicon has it: a sensor that is off says such a thing."""
    return celsius if celsius is not None and -60 < celsius < 200 else None


def slug(name: str) -> str:
    """A sensor's name as part of a reading's: ``VDD_IN`` is ``vdd_in``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:48]


@dataclass(frozen=True, slots=True)
class Thermometer:
    """One temperature: ``(raw + offset) * scale`` in m°C."""

    path: Path
    scale: float = 1.0
    offset: float = 0.0

    def celsius(self) -> float | None:
        raw = number(self.path)
        return None if raw is None else plausible((raw + self.offset) * self.scale / 1e3)


def zones(sysfs: Path) -> dict[str, Path]:
    """Folders of the thermal zones by their type, such as ``cpu-thermal``; of several of one type the first."""
    found: dict[str, Path] = {}
    for zone in sorted((sysfs / "class/thermal").glob("thermal_zone*"), key=_by_number):
        found.setdefault(text(zone / "type").lower(), zone)
    return found


def processor(sysfs: Path) -> Thermometer | None:
    """The processor's temperature: of its thermal zone, else of a hwmon or IIO device of the chip itself."""
    readable = {kind: zone for kind, zone in zones(sysfs).items() if Thermometer(zone / "temp").celsius() is not None}
    for word in ("x86_pkg_temp", "tj-therm", "cpu", "soc", "coretemp", ""):
        for kind, zone in readable.items():
            if word in kind:
                return Thermometer(zone / "temp")
    candidates = (*_hwmon_temperatures(sysfs), *_iio_temperatures(sysfs))
    return next((each for each in candidates if each.celsius() is not None), None)


def slows_at(thermometer: Thermometer | None) -> float | None:
    """Lowest trip point in °C at which the kernel slows the processor down (``passive`` or ``hot``)."""
    if thermometer is None or thermometer.path.name != "temp":
        return None
    limits = [
        limit
        for kind in thermometer.path.parent.glob("trip_point_*_type")
        if text(kind) in ("passive", "hot")
        and (limit := Thermometer(kind.with_name(kind.name.replace("_type", "_temp"))).celsius()) is not None
        and limit > 0
    ]
    return min(limits, default=None)


def _hwmon_temperatures(sysfs: Path) -> Iterator[Thermometer]:
    for chip in _numbered(sysfs, "class/hwmon/hwmon*"):
        if _HWMON_CHIPS.search(text(chip / "name")):
            yield from map(Thermometer, sorted(chip.glob("temp*_input")))


def _iio_temperatures(sysfs: Path) -> Iterator[Thermometer]:
    """Of each device, what is of the processors comes first: AMS has one of the logic, too."""
    for device in _numbered(sysfs, "bus/iio/devices/iio:device*"):
        if not _IIO_CHIPS.search(text(device / "name")):
            continue
        found = [path.name.removesuffix("_raw") for path in sorted(device.glob("in_temp*_raw"))]
        labels = {stem: f"{stem} {text(device / f'{stem}_label')}" for stem in found}
        for stem in sorted(found, key=lambda stem: not re.search(r"ps_temp|Temp_FPD", labels[stem])):
            scale, offset = number(device / f"{stem}_scale"), number(device / f"{stem}_offset")
            if scale is not None:
                yield Thermometer(device / f"{stem}_raw", scale, offset or 0.0)


@dataclass(frozen=True, slots=True)
class Rail:
    """One supply. Its power is the product of what ``factors`` say, times ``unit``, in W."""

    name: str
    factors: tuple[Path, ...]
    unit: float

    def watts(self) -> float | None:
        values = [number(path) for path in self.factors]
        known = [value for value in values if value is not None]
        return prod(known) * self.unit if len(known) == len(values) else None


class Rails:
    """The supplies of a board that have a sensor."""

    def __init__(self, sysfs: Path) -> None:
        found: dict[str, Rail] = {}
        for rail in (*_hwmon_rails(sysfs), *_old_jetson_rails(sysfs)):
            found.setdefault(rail.name, rail)
        self._rails = {name: found[name] for name in list(found)[:MAX_RAILS]}
        self._input = next((names for names in INPUTS if all(name in self._rails for name in names)), ())
        if not self._input and len(self._rails) == 1:
            self._input = tuple(self._rails)

    @property
    def source(self) -> str:
        """What ``power_w`` is measured at, such as ``VDD_IN``; empty when no sensor tells of the whole board."""
        return " + ".join(self._input)

    def read(self) -> dict[str, float]:
        """``power_w`` of the whole board or module where that is known, ``power_<rail>_w`` of each rail that is named.

        A rail may draw slightly less than nothing: sensors have an offset.
        """
        watts = {name: value for name, rail in self._rails.items() if (value := rail.watts()) is not None}
        found = {f"power_{slug(name)}_w": value for name, value in watts.items() if name}
        if self._input and all(name in watts for name in self._input):
            found["power_w"] = sum(watts[name] for name in self._input)
        return found


def _hwmon_rails(sysfs: Path) -> Iterator[Rail]:
    for chip in _numbered(sysfs, "class/hwmon/hwmon*"):
        kind = text(chip / "name")
        for path in _numbered(chip, "power*_input"):
            label = text(chip / path.name.replace("_input", "_label"))
            if _PMBUS_IN.fullmatch(label) or _NOTHING.fullmatch(label):
                continue
            if _PMBUS_OUT.fullmatch(label):
                label = f"{kind}_{_address(chip)}_{label}"
            yield Rail(label or text(chip / "label") or kind, (path,), 1e-6)
        if "ina3221" in kind:  # of which in1 to in3 and curr1 to curr3 belong together
            for volts in _numbered(chip, "in*_label"):
                channel = volts.name.removeprefix("in").removesuffix("_label")
                factors = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
                name = text(volts)
                if name and not _NOTHING.fullmatch(name) and factors[1].exists():
                    yield Rail(name, factors, 1e-6)


def _old_jetson_rails(sysfs: Path) -> Iterator[Rail]:
    """Of JetPack 4, whose driver of the INA3221 is an IIO device that has the names and the power."""
    for device in _numbered(sysfs, "bus/i2c/devices/*/iio:device*"):
        for path in _numbered(device, "rail_name_*"):
            channel, name = path.name.rpartition("_")[2], text(path)
            if name and not _NOTHING.fullmatch(name):
                yield Rail(name, (device / f"in_power{channel}_input",), 1e-3)


class Throttling:
    """What tells that a board is being slowed down."""

    def __init__(self, sysfs: Path) -> None:
        cpu = sysfs / "devices/system/cpu"
        self._counters = sorted(cpu.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        # Jetson Orin and later: times that a supply was too low or gave too much, where that throttles.
        for path in _numbered(sysfs, "class/hwmon/hwmon*/oc*_event_cnt"):
            if number(path.with_name(path.name.replace("event_cnt", "throt_en"))) != 0:
                self._counters.append(path)
        # The Raspberry Pi's firmware: bits 0 to 3 say what is wrong now, 16 to 19 what has been since it started.
        self._firmware = next(
            (path for where in _FIRMWARE for path in sorted(sysfs.glob(where)) if number(path, 16) is not None), None
        )
        alarms = _numbered(sysfs, "class/hwmon/hwmon*/curr*_crit_alarm")
        if self._firmware is None:
            # The same firmware by the kernel's own driver: the supply is too low, so clocks are.
            alarms += [
                path
                for path in _numbered(sysfs, "class/hwmon/hwmon*/in*_lcrit_alarm")
                if text(path.parent / "name") == "rpi_volt"
            ]
        self._alarms = {path: _alarm_name(path) for path in alarms}
        cooling = _numbered(sysfs, "class/thermal/cooling_device*")
        kinds = {device / "cur_state": text(device / "type") for device in cooling}
        self._cooling = {path: kind for path, kind in kinds.items() if _SLOWING.search(kind)}

    def read(self) -> dict[str, float]:
        """``throttled``: 1 while the board is slowed down, else 0; ``throttle_events`` since the system started."""
        found = {}
        counts = [value for path in self._counters if (value := number(path)) is not None]
        if counts:
            found["throttle_events"] = sum(counts)
        states = list(self._states())
        if states:
            found["throttled"] = float(any(value for _, value in states))
        return found

    def reasons(self) -> list[str]:
        """What slows the board down now, by the names of its sensors: ``gpu-throttle-alert``, ``VDD_IN``."""
        return [name for name, value in self._states() if value]

    def _states(self) -> Iterator[tuple[str, bool]]:
        if (bits := number(self._firmware, 16)) is not None:
            yield "firmware", bool(int(bits) & 0xF)
        for path, name in (*self._alarms.items(), *self._cooling.items()):
            if (state := number(path)) is not None:
                yield name, state > 0


#: The node's name has its address since kernel 6.1 on the Raspberry Pi 5.
_FIRMWARE = (
    "devices/platform/soc/soc:firmware/get_throttled",
    "devices/platform/soc*/soc*:firmware/get_throttled",
    "devices/platform/soc*/*firmware/get_throttled",
)


def _alarm_name(path: Path) -> str:
    label = path.name.replace("curr", "in").replace("_crit_alarm", "_label")
    return text(path.with_name(label)) or text(path.parent / "name") or path.name


def _address(chip: Path) -> str:
    """A chip's place on its bus, such as ``6-0043``; its hwmon's name where that is not said."""
    device = chip / "device"
    return device.resolve().name if device.exists() else chip.name


def _numbered(root: Path, pattern: str) -> list[Path]:
    """What is there, in the order of the numbers in its name."""
    return sorted(root.glob(pattern), key=_by_number)


def _by_number(path: Path) -> tuple[str, list[int]]:
    return str(path.parent), [int(digits[:9]) for digits in re.findall(r"\d+", path.name)] or [0]
