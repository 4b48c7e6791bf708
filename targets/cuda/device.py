"""The device half of target ``cuda``: TVM's virtual machine on the first GPU, in the worker process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets.base import BundleError, FleetError, LoadedBundle, Requirements
from targets.cpu.device import CPUDevice, CPURunner
from targets.cpu.pool import import_runtime
from targets.cuda import architectures, gpu
from targets.cuda.compile import PLACEHOLDER
from targets.installed import installed

_RUNTIME = "libcudart.so.13"


class GPUError(FleetError):
    code = "no-gpu"


class CUDADevice:
    """A :class:`targets.base.DeviceHalf`."""

    def unmet(self, requirements: Requirements) -> str:
        if unmet := CPUDevice().unmet(requirements):
            return unmet
        try:
            found = gpu.find()
        except gpu.NoGPU as error:
            return str(error)
        return too_old(found) or other_kernels(requirements.accelerator.split(","), found)

    def load(self, bundle: LoadedBundle, threads: int) -> CUDARunner:
        found = gpu.find()
        # CUDA's own order is by speed; NVML's, which the readings are from, is by place.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        start_cuda(threads)
        return CUDARunner(bundle, found)

    def telemetry(self) -> dict[str, float]:
        return gpu.readings()


class CUDARunner(CPURunner):
    """A :class:`targets.base.Runner` on a GPU. Inputs are copied to it before a query, and results back after it."""

    def __init__(self, bundle: LoadedBundle, found: gpu.GPU) -> None:
        import tvm
        import tvm_ffi

        self._gpu = found
        if not tvm.cuda(0).exist:
            raise GPUError("CUDA finds no GPU that it can use", hint="does nvidia-smi name it?")
        self._kernels = read_kernels(bundle, found)
        # TVM asks for the kernels of a library that was linked without them when it loads it.
        tvm_ffi.register_global_func("tvm_callback_cuda_compile", self._compiled, override=True)
        super().__init__(bundle)

    def conditions(self) -> dict[str, str]:
        cuda = ".".join(map(str, self._gpu.cuda))
        return {
            "apache-tvm": installed("apache-tvm"),
            "gpu": self._gpu.name,
            "driver": f"{self._gpu.driver} (CUDA {cuda})",
            "kernels": self._kernels[0],
            **gpu.conditions(),
        }

    def _device(self) -> Any:
        import tvm

        return tvm.cuda(0)

    def _read_all(self, weights: Sequence[tuple[Path, Any]]) -> list[Any]:
        def new(shape: Sequence[int], dtype: str) -> Any:
            return self._empty(shape, dtype, self._cpu)

        return [self._read(path, spec, new).copyto(self._place) for path, spec in weights]

    def _compiled(self, source: str) -> bytes:
        if source != PLACEHOLDER:
            raise BundleError("the library was not built for these kernels")
        return self._kernels[1]


def here() -> str:
    """Why this machine cannot run any bundle, in words; empty when it can."""
    try:
        return too_old(gpu.find())
    except gpu.NoGPU as error:
        return str(error)


def too_old(found: gpu.GPU) -> str:
    """Why a GPU and its driver cannot run any bundle, in words; empty when they can."""
    if found.cuda < gpu.LEAST_CUDA:
        wanted, have = (".".join(map(str, each)) for each in (gpu.LEAST_CUDA, found.cuda))
        return f"the driver {found.driver} knows CUDA up to {have}; {wanted} is needed: install a newer driver"
    if found.capability < architectures.OLDEST:
        have, least = (f"{number // 10}.{number % 10}" for number in (found.capability, architectures.OLDEST))
        return f"{found.name} has compute capability {have}; CUDA 13 needs {least} or newer"
    return ""


def other_kernels(names: Sequence[str], found: gpu.GPU) -> str:
    """Why none of the kernels for these architectures is for a GPU, in words; empty when one is."""
    if architectures.best(names, found.capability):
        return ""
    have = f"{found.capability // 10}.{found.capability % 10}"
    return (
        f"the bundle has kernels for {', '.join(names)}; {found.name} has compute capability {have}: build it with "
        f"--option arch=sm_{found.capability}"
    )


def read_kernels(bundle: LoadedBundle, found: gpu.GPU) -> tuple[str, bytes]:
    """The architecture, and the kernels for it, that this GPU takes. Raises BundleError where it has none."""
    names = architectures.in_files(file.path for file in bundle.manifest.files)
    if other := other_kernels(names, found):
        raise BundleError(other)
    chosen = architectures.best(names, found.capability)
    return chosen, bundle.path(architectures.file_name(chosen)).read_bytes()


def start_cuda(threads: int) -> None:
    """Load TVM's runtime, and its part for CUDA. Raises GPUError where a library is not there."""
    load_cudart()
    start_runtime(threads)


def start_runtime(threads: int) -> None:
    """`start_cuda`, where CUDA's own library is where the system finds it."""
    import_runtime(threads)
    from tvm.libinfo import package_lib_paths
    from tvm_ffi.libinfo import load_lib_ctypes

    try:
        load_lib_ctypes("tvm", "tvm_runtime_cuda", "RTLD_GLOBAL", extra_lib_paths=package_lib_paths())
    except (OSError, RuntimeError) as error:
        raise GPUError(f"TVM's runtime for CUDA cannot be loaded: {str(error).splitlines()[0]}") from None


def load_cudart() -> None:
    """CUDA's runtime library, where TVM's will find it: the system's, or the PyPI package's. Raises GPUError."""
    spec = find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    for name in (_RUNTIME, *(str(Path(folder) / "cu13" / "lib" / _RUNTIME) for folder in folders)):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise GPUError(f"{_RUNTIME} is not installed", hint="pip install 'fleet-edge[cuda]'")
