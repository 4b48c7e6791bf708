"""Engine ``tvm`` on the board: TVM's virtual machine on the GPU of a Jetson, in the worker process.

TVM's runtime with CUDA has to be there: the wheel of PyPI is built for CUDA 13 (JetPack 7), for others one builds it.
Clocks, power and temperature are the Jetson's own (no NVML here) and are told by the device half.
"""

from __future__ import annotations

import contextlib
import ctypes
from importlib.metadata import version
from pathlib import Path

from targets.base import BundleError, LoadedBundle, Requirements
from targets.cpu.device import CPUDevice
from targets.cuda.device import CUDARunner, GPUError, load_cudart, start_runtime
from targets.cuda.gpu import GPU
from targets.jetson import chips
from targets.jetson import conditions as sensed


def unmet_tvm(requirements: Requirements, compatible: Path = chips.COMPATIBLE) -> str:
    """Why this board cannot run a bundle of engine ``tvm``, in words; empty when it can. Starts no CUDA."""
    if unmet := CPUDevice().unmet(requirements):
        return unmet
    chip = chips.here(compatible)
    if chip is None:
        return "this machine is no Jetson that there are kernels for"
    if requirements.accelerator != chip.architecture:
        return (
            f"the bundle has kernels for {requirements.accelerator}, this is {chip.name} ({chip.architecture}): "
            f"build it with --option arch={chip.name}"
        )
    return ""


def load_tvm(bundle: LoadedBundle, threads: int) -> JetsonTVMRunner:
    """Start CUDA and load a bundle that `targets.jetson.tvm_cuda.build_tvm` made. In the worker process only.

    Raises:
        GPUError: no GPU, no driver or no part of TVM for it.
        BundleError: for another GPU, or for a newer CUDA than the driver knows.
    """
    cuda = _driver_cuda()
    with contextlib.suppress(GPUError):
        # PyPI's wheel of TVM wants that of CUDA 13; a runtime that was built on the board finds its own.
        load_cudart()
    start_runtime(threads)
    return JetsonTVMRunner(bundle, _gpu(cuda))


class JetsonTVMRunner(CUDARunner):
    """A :class:`targets.base.Runner`; ``conditions`` are the board's, and what CUDA says without NVML."""

    def __init__(self, bundle: LoadedBundle, found: GPU) -> None:
        needed = _release(bundle)
        if found.cuda[0] < needed:
            have = ".".join(map(str, found.cuda))
            raise BundleError(f"the kernels are of CUDA {needed}, the driver of this board knows CUDA up to {have}")
        super().__init__(bundle, found)

    def conditions(self) -> dict[str, str]:
        tensors = {file.path: file.tensor for file in self._bundle.manifest.files}
        weights = {tensors[name].dtype for name in self._bundle.manifest.parameters}
        return {
            **sensed.conditions(),
            "apache-tvm": version("apache-tvm"),
            "gpu": self._gpu.name,
            "driver": f"CUDA {'.'.join(map(str, self._gpu.cuda))}",
            "kernels": self._kernels[0],
            "input_dtype": self._inputs[0].dtype,
            "weight_dtype": ",".join(sorted(weights)),
        }


def _driver_cuda() -> tuple[int, int]:
    """The newest CUDA that the driver knows. Raises GPUError where there is no driver for the GPU."""
    found = ctypes.c_int()
    try:
        result = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except OSError:
        raise GPUError("there is no driver for a GPU here: libcuda.so.1 is not there") from None
    if result != 0:
        raise GPUError(f"the driver of the GPU does not answer: error {result} of CUDA")
    return found.value // 1000, found.value % 1000 // 10


def _gpu(cuda: tuple[int, int]) -> GPU:
    """The GPU as TVM finds it. Raises GPUError for none."""
    import tvm

    device = tvm.cuda(0)
    if not device.exist:
        raise GPUError("CUDA finds no GPU that it can use", hint="may this user open /dev/nvhost-gpu and /dev/nvmap?")
    major, _, minor = str(device.compute_version).partition(".")
    capability = int(major) * 10 + int(minor)
    chip = next((chip for chip in chips.CHIPS if chip.capability == capability), None)
    return GPU(
        name=f"Jetson {chip.name}" if chip else f"compute capability {major}.{minor}",
        capability=capability,
        driver="",
        cuda=cuda,
    )


def _release(bundle: LoadedBundle) -> int:
    """The CUDA that compiled a bundle's kernels."""
    return chips.named(str(bundle.manifest.requirements.accelerator)).release.major
