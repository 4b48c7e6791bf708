"""Small trees of sysfs, procfs and /etc as boards have them: names and formats as documented, figures made up.

Each board is a dictionary of paths and contents below its root, which has ``sys``, ``proc``, ``etc`` and ``var``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Files = dict[str, str]


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Make the tree, or change what of it is there. A content ``-> TARGET`` is a symbolic link."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_text(content if content.endswith(("\n", "\0")) else f"{content}\n")
    return root


def zone(index: int, kind: str, milli: int, **trips: int) -> Files:
    """A thermal zone in m°C with trip points by their type."""
    place = f"sys/class/thermal/thermal_zone{index}"
    files = {f"{place}/type": kind, f"{place}/temp": str(milli)}
    for number, (trip, at) in enumerate(trips.items()):
        files |= {f"{place}/trip_point_{number}_type": trip, f"{place}/trip_point_{number}_temp": str(at)}
    return files


def zones(**kinds: int) -> Files:
    """Zones in °C by their names, with the ending that JetPack 5 and later give them."""
    files: Files = {}
    for index, (kind, celsius) in enumerate(kinds.items()):
        files |= zone(index, f"{kind}-thermal", celsius * 1000)
    return files


def policy(index: int, now: int, low: int, high: int, governor: str = "schedutil") -> Files:
    """A CPU cluster's clock, in kHz."""
    place = f"sys/devices/system/cpu/cpufreq/policy{index}/scaling_"
    figures = {"cur_freq": str(now), "min_freq": str(low), "max_freq": str(high), "governor": governor}
    return {f"{place}{name}": value for name, value in figures.items()}


def hwmon(index: int, name: str, **files: int | str) -> Files:
    place = f"sys/class/hwmon/hwmon{index}"
    return {f"{place}/name": name, **{f"{place}/{file}": str(value) for file, value in files.items()}}


def ina3221(index: int, *rails: tuple[str, int, int]) -> Files:
    """Three channels of (label, mV, mA) with their alarms, and the shunts' voltages that follow them."""
    files: dict[str, int | str] = {"in7_label": "sum of shunt voltages", "in7_input": 12, "curr4_input": 900}
    for number, (label, volts, current) in enumerate(rails, 1):
        files |= {f"in{number}_label": label, f"in{number}_input": volts, f"curr{number}_input": current}
        files |= {f"curr{number}_crit_alarm": 0, f"curr{number}_max_alarm": 0, f"in{number + 3}_input": 4}
    return hwmon(index, "ina3221", **files)


def cooling(index: int, kind: str, state: int = 0) -> Files:
    place = f"sys/class/thermal/cooling_device{index}"
    return {f"{place}/type": kind, f"{place}/cur_state": str(state)}


def devfreq(name: str, now: int, low: int, high: int, governor: str, node: str = "", load: int | None = None) -> Files:
    """A device whose clock is scaled, in Hz; ``node``: its name in the device tree; ``load`` in tenths of per cent."""
    place = f"sys/class/devfreq/{name}"
    files = {f"{place}/cur_freq": str(now), f"{place}/min_freq": str(low), f"{place}/max_freq": str(high)}
    files[f"{place}/governor"] = governor
    if node:
        files[f"{place}/device/of_node/name"] = f"{node}\0"
    if load is not None:
        files[f"{place}/device/load"] = str(load)
    return files


def device_tree(model: str, compatible: Sequence[str]) -> Files:
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": "".join(f"{each}\0" for each in compatible),
    }


def l4t(major: int, revision: str) -> Files:
    line = f"# R{major} (release), REVISION: {revision}, GCID: 12345678, BOARD: generic, EABI: aarch64, DATE: Tue Nov 3"
    return {"etc/nv_tegra_release": f"{line}\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"}


def nvpmodel(modes: Mapping[int, str], default: int, now: int) -> Files:
    text = "# < POWER_MODEL ID=id_num NAME=mode_name >\n< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_1 /sys/cpu1/online\n"
    text += "".join(f"< POWER_MODEL ID={id} NAME={name} >\nCPU_ONLINE CORE_1 1\n" for id, name in modes.items())
    text += f"# mandatory section to configure the default mode\n< PM_CONFIG DEFAULT={default} >\n"
    return {"etc/nvpmodel.conf": text, "var/lib/nvpmodel/status": f"pmode:{now:04} fmode:quiet"}


RASPBERRY_PI_4: Files = {
    **zone(0, "cpu-thermal", 48686, critical=110000),
    **policy(0, 1500000, 600000, 1800000, "ondemand"),
    **hwmon(0, "cpu_thermal", temp1_input=48686),
    **hwmon(1, "rpi_volt", in0_lcrit_alarm=1),
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
}
#: Its firmware's node has an address in its name; hwmon: the RP1's converter, the fan, the supply.
RASPBERRY_PI_5: Files = {
    **zone(0, "cpu-thermal", 56150, critical=110000, active=50000),
    **policy(0, 2400000, 1500000, 2400000, "ondemand"),
    **hwmon(0, "cpu_thermal", temp1_input=56150),
    **hwmon(1, "rp1_adc", in1_input=1475, in2_input=2520, in3_input=1400, in4_input=1430, temp1_input=48500),
    **hwmon(2, "pwmfan", fan1_input=3054, pwm1=75),
    **hwmon(3, "rpi_volt", in0_lcrit_alarm=0),
    **cooling(0, "pwm-fan", 1),
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0",
}
_XADC = "sys/bus/iio/devices/iio:device0"
#: Zynq-7000: (2545 - 2219) * 123.04 m°C.
PYNQ_Z1: Files = {
    f"{_XADC}/name": "xadc",
    f"{_XADC}/in_temp0_raw": "2545",
    f"{_XADC}/in_temp0_offset": "-2219",
    f"{_XADC}/in_temp0_scale": "123.040771484",
    f"{_XADC}/in_voltage0_vccint_raw": "1387",
    f"{_XADC}/in_voltage0_vccint_scale": "0.732421875",
    "sys/devices/system/cpu/online": "0-1",
}
_PMBUS = {
    f"power{n}_{kind}": value
    for n, label, watts in ((1, "pin1", 990000), (2, "pout1", 812000), (3, "pout2", 0))
    for kind, value in (("label", label), ("input", watts))
}
#: Zynq UltraScale+ with the vendor's kernel; regulators IRPS5401 and IR38060 on the PMBus.
ULTRA96_V2: Files = {
    f"{_XADC}/name": "ams",
    **{
        f"{_XADC}/in_temp{n}_{name}_{kind}": value
        for n, name, raw in ((0, "ps_temp", 40658), (1, "remote_temp", 40500), (2, "pl_temp", 40100))
        for kind, value in (("raw", str(raw)), ("scale", "7.771514892"), ("offset", "-36058"))
    },
    **hwmon(0, "irps5401", **_PMBUS),
    "sys/class/hwmon/hwmon0/device": "-> ../../../bus/i2c/devices/6-0043",
    "sys/bus/i2c/devices/6-0043/name": "irps5401",
    **hwmon(1, "irps5401", **_PMBUS),
    "sys/class/hwmon/hwmon1/device": "-> ../../../bus/i2c/devices/6-0044",
    "sys/bus/i2c/devices/6-0044/name": "irps5401",
    **policy(0, 1199999, 299999, 1199999, "userspace"),
    "sys/devices/system/cpu/online": "0-3",
}
#: The kernel's own AMS driver, which labels its channels, and an INA226.
ULTRASCALE_MAINLINE: Files = {
    f"{_XADC}/name": "xilinx-ams",
    **{
        f"{_XADC}/in_temp{n}_{kind}": value
        for n, label, raw in ((20, "Temp_PL", 40100), (7, "Temp_LPD", 40600), (8, "Temp_FPD", 40658))
        for kind, value in (("raw", str(raw)), ("scale", "7.771514892"), ("offset", "-36058"), ("label", label))
    },
    **hwmon(0, "ina226", in0_input=3, in1_input=12035, curr1_input=511, power1_input=6150000),
}
#: Assumed, for nobody documents its sysfs: one zone, no scaling of clocks. The vendor's own tool has the rest.
ATLAS_200I_DK_A2: Files = {
    **zone(0, "soc_thermal", 51000),
    "sys/devices/system/cpu/online": "0-3",
}

_ALERTS = {**cooling(0, "pwm-fan", 2), **cooling(1, "cpu-throttle-alert"), **cooling(2, "gpu-throttle-alert")}
_OVER_CURRENT = hwmon(
    5, "soctherm_oc", oc1_event_cnt=1, oc1_throt_en=1, oc2_event_cnt=7, oc2_throt_en=0, oc3_event_cnt=4, oc3_throt_en=1
)
XAVIER_NX_JETPACK_4: Files = {
    **zone(0, "AO-therm", 38000),
    **zone(1, "CPU-therm", 40500, passive=95500),
    **zone(2, "GPU-therm", 39000),
    **zone(3, "PMIC-Die", 100000),
    **policy(0, 1190400, 1190400, 1420800),
    **devfreq("17000000.gv11b", 803250000, 114750000, 803250000, "nvhost_podgov", "gv11b", 311),
    **{
        f"sys/bus/i2c/devices/7-0040/iio:device0/{name}": value
        for name, value in {
            "rail_name_0": "VDD_IN",
            "in_power0_input": "5210",
            "rail_name_1": "VDD_CPU_GPU_CV",
            "in_power1_input": "1410",
            "rail_name_2": "NC",
            "in_power2_input": "0",
        }.items()
    },
    **device_tree("NVIDIA Jetson Xavier NX Developer Kit", ("nvidia,p3449-0000+p3668-0000", "nvidia,tegra194")),
    **l4t(32, "7.4"),
    **nvpmodel({0: "MODE_15W_2CORE", 2: "MODE_15W_6CORE"}, 2, 2),
}
ORIN_NANO: Files = {
    **zone(0, "cpu-thermal", 49218),
    **zone(1, "gpu-thermal", 48500),
    **zone(2, "cv0-thermal", -256000),
    **zone(3, "tj-thermal", 49218, active=99000, hot=101000, critical=104500),
    **policy(0, 1510400, 729600, 1510400),
    **policy(4, 729600, 729600, 1510400),
    **devfreq("17000000.gpu", 611000000, 306000000, 1020000000, "nvhost_podgov", "gpu", 710),
    **ina3221(1, ("VDD_IN", 5000, 1824), ("VDD_CPU_GPU_CV", 5000, 662), ("VDD_SOC", 5000, 442)),
    **hwmon(2, "pwmfan", pwm1=102, fan1_input=2140),
    **_OVER_CURRENT,
    **_ALERTS,
    "sys/devices/system/cpu/online": "0-5",
    **device_tree(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
    ),
    **l4t(36, "4.7"),
    **nvpmodel({0: "15W", 1: "25W", 2: "MAXN_SUPER"}, 1, 2),
}
AGX_ORIN_JETPACK_7: Files = {
    **zones(cpu=51, gpu=48, tj=52, soc0=50),
    **policy(0, 2201600, 2201600, 2201600, "performance"),
    **policy(4, 2201600, 2201600, 2201600, "performance"),
    **devfreq("17000000.gpu", 1295000000, 1295000000, 1295000000, "nvhost_podgov", "ga10b", 440),
    **ina3221(1, ("VDD_GPU_SOC", 19000, 210), ("VDD_CPU_CV", 19000, 100), ("VIN_SYS_5V0", 5000, 900)),
    **ina3221(2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 120), ("NC", 0, 0)),
    **_ALERTS,
    **device_tree("NVIDIA Jetson AGX Orin Developer Kit", ("nvidia,p3737-0000+p3701-0005", "nvidia,tegra234")),
    **l4t(39, "2.1"),
    **nvpmodel({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}, 2, 0),
}
#: No load of the GPU, no node's name beside its clock; its sensors reach a little below nothing.
THOR: Files = {
    **zones(cpu=46, soc012=45, soc345=45, tj=46),
    **zone(4, "gpu-thermal", -256000),
    **policy(0, 1404000, 972000, 2601000),
    **devfreq("gpu-gpc-0", 1575000000, 315000000, 1575000000, "nvhost_podgov"),
    **devfreq("bwmgr", 4266000000, 665600000, 4266000000, "userspace"),
    **ina3221(1, ("VDD_GPU", 19000, -20), ("VDD_CPU_SOC_MSS", 19000, 340), ("VIN_SYS_5V0", 5000, 1320)),
    **hwmon(2, "ina238", label="VIN", in1_input=20010, curr1_input=1455, power1_input=29100000),
    **_ALERTS,
    **cooling(3, "devfreq-gpu-gpc-0"),
    **device_tree("NVIDIA Jetson AGX Thor Developer Kit", ("nvidia,p4071-0000+p3834-0008", "nvidia,tegra264")),
    **l4t(38, "4.0"),
    **nvpmodel({0: "MAXN", 1: "120W"}, 1, 1),
}
JETSONS = {
    "xavier-nx": XAVIER_NX_JETPACK_4,
    "orin-nano": ORIN_NANO,
    "agx-orin": AGX_ORIN_JETPACK_7,
    "thor": THOR,
}
