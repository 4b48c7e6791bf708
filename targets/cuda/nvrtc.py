"""CUDA C++ to machine code of a GPU, with NVIDIA's runtime compiler: no toolkit and no GPU needed.

The compiler and its headers are the PyPI packages ``nvidia-cuda-nvrtc``, ``nvidia-cuda-runtime`` and
``nvidia-cuda-cccl``, the way to call it is ``cuda-bindings``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets.base import FleetError

HINT = "pip install 'fleet-edge[cuda]'"


class CUDACompilerError(FleetError):
    code = "cuda-compiler"


def compile_source(source: str, architecture: str) -> bytes:
    """Machine code (``architecture`` such as ``sm_90``) or PTX (``compute_90``, ends with a zero byte) of ``source``.

    Products and sums are rounded as the program says, but for fused multiply-adds; no fast math.

    Raises:
        CUDACompilerError: with the compiler's own words, or for an architecture it does not know.
    """
    nvrtc = _nvrtc()
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None))
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", "--disable-warnings"]
    options += [f"-I{folder}" for folder in include_folders()]
    try:
        encoded = [option.encode() for option in options]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            words = log.rstrip(b"\0").decode(errors="replace").strip()
            raise CUDACompilerError(f"CUDA code cannot be compiled for {architecture}: {words[:500] or result.name}")
        machine_code = architecture.startswith("sm_")
        size, get = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if machine_code
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        code = bytearray(_checked(nvrtc, size(program)))
        _checked(nvrtc, get(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def supported() -> list[int]:
    """Compute capabilities that the compiler knows, such as 90 for 9.0, sorted. Raises CUDACompilerError."""
    nvrtc = _nvrtc()
    _checked(nvrtc, nvrtc.nvrtcGetNumSupportedArchs())
    return sorted(int(each) for each in _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs()))


def include_folders() -> list[Path]:
    """Where CUDA's headers lie. Raises CUDACompilerError."""
    includes = [root / "include" for root in _roots()]
    if not any((include / "cuda_fp16.h").is_file() for include in includes):
        raise CUDACompilerError("CUDA's headers are not installed", hint=HINT)
    folders = (folder for include in includes for folder in (include, include / "cccl"))
    return [folder for folder in folders if folder.is_dir()]


def _roots() -> list[Path]:
    spec = find_spec("nvidia")
    return [Path(place) / "cu13" for place in (spec.submodule_search_locations or ())] if spec else []


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        raise CUDACompilerError("the compiler for CUDA is not installed", hint=HINT) from None
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise CUDACompilerError(f"the compiler for CUDA cannot be loaded: {error}", hint=HINT) from None
    return nvrtc


def _checked(nvrtc: Any, results: tuple[Any, ...]) -> Any:
    result, *values = results
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CUDACompilerError(f"NVRTC says {result.name}")
    return values[0] if values else None
