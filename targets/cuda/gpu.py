"""The GPU of this machine, as NVIDIA's management library sees it: no CUDA is started for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: The first CUDA that a driver must know: libraries of TVM are built with it.
LEAST_CUDA = (13, 0)


Reads = dict[str, Callable[[], Any]]


class NoGPU(Exception):
    """Why there is no GPU, in words."""


@dataclass(frozen=True, slots=True)
class GPU:
    """What a bundle's needs are held against, and what conditions of a measurement name."""

    name: str
    #: 90 for compute capability 9.0.
    capability: int
    driver: str
    #: The newest CUDA that the driver knows.
    cuda: tuple[int, int]


def find() -> GPU:
    """The GPU that CUDA calls device 0. Raises NoGPU."""
    with _opened() as (nvml, handle):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return GPU(
            name=str(nvml.nvmlDeviceGetName(handle)),
            capability=int(major) * 10 + int(minor),
            driver=str(nvml.nvmlSystemGetDriverVersion()),
            cuda=(cuda // 1000, cuda % 1000 // 10),
        )


def readings() -> dict[str, float]:
    """Power in W, temperature in °C, clocks in MHz, memory in bytes, load in %; what it does not tell is left out."""
    found: dict[str, float] = {}
    try:
        with _opened() as (nvml, handle):
            reads: Reads = {
                "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                "gpu_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "gpu_memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "gpu_memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
                "gpu_memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
                "gpu_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            }
            for name, read in reads.items():
                with contextlib.suppress(nvml.NVMLError):
                    found[name] = float(read())
    except NoGPU:
        return {}
    return found


def conditions() -> dict[str, str]:
    """What of the GPU a measurement depends on: clocks now and at most, the limit of power, and what slows it down."""
    found: dict[str, str] = {}
    with contextlib.suppress(NoGPU), _opened() as (nvml, handle):
        reads: Reads = {
            "gpu_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_max_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000,
            "gpu_throttled": lambda: _throttled(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        }
        for name, read in reads.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = str(read())
    return found


def _throttled(nvml: Any, reasons: int) -> str:
    slow = {
        "power": nvml.nvmlClocksEventReasonSwPowerCap | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "heat": nvml.nvmlClocksEventReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "setting": nvml.nvmlClocksEventReasonApplicationsClocksSetting,
    }
    return ", ".join(name for name, bits in slow.items() if reasons & bits) or "no"


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Any, Any]]:
    """The library, and its handle of the GPU that CUDA calls device 0. Raises NoGPU."""
    try:
        import pynvml as nvml
    except ImportError:
        raise NoGPU("nvidia-ml-py is not installed (pip install 'fleet-edge[cuda]')") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoGPU(f"this machine has no GPU of NVIDIA, or no driver for it: {error}") from None
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        first = "0" if visible is None else visible.split(",")[0].strip()
        if not first.isdigit():
            handle = nvml.nvmlDeviceGetHandleByUUID(first) if first.startswith(("GPU-", "MIG-")) else None
        else:
            handle = nvml.nvmlDeviceGetHandleByIndex(int(first)) if int(first) < nvml.nvmlDeviceGetCount() else None
        if handle is None:
            raise NoGPU(f"CUDA_VISIBLE_DEVICES={visible} leaves no GPU to this process" if visible else "no GPU")
        yield nvml, handle
    except nvml.NVMLError as error:
        raise NoGPU(f"the GPU does not answer: {error}") from None
    finally:
        nvml.nvmlShutdown()
