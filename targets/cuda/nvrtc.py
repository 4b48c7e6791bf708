"""CUDA C++ to machine code of a GPU, with NVIDIA's runtime compiler: no toolkit and no GPU needed.

The compiler and its headers are packages of PyPI, one set for each CUDA: see :class:`Release`. Its library is called
with :mod:`ctypes`, because its Python bindings know one CUDA at a time.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from targets.base import FleetError

_SUCCESS = 0


class CUDACompilerError(FleetError):
    code = "cuda-compiler"


@dataclass(frozen=True, slots=True)
class Release:
    """One CUDA whose compiler may be installed."""

    major: int
    #: The package of PyPI that has the compiler.
    package: str
    #: Below the folder ``nvidia`` of the installed packages.
    library: str
    includes: tuple[str, ...]
    #: What of this distribution installs it.
    extra: str


#: The last that knows Xavier, and whose machine code the drivers of every JetPack from 5 on load: from 12.8 on the
#: compiler writes another ELF for new architectures, and from 13 on for all.
CUDA_11 = Release(
    11,
    "nvidia-cuda-nvrtc-cu11",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    ("cuda_runtime/include", "cuda_cccl/include"),
    "jetson",
)
CUDA_13 = Release(13, "nvidia-cuda-nvrtc", "cu13/lib/libnvrtc.so.13", ("cu13/include", "cu13/include/cccl"), "cuda")


def compile_source(source: str, architecture: str, release: Release = CUDA_13) -> bytes:
    """Machine code (``architecture`` such as ``sm_90``) or PTX (``compute_90``, ends with a zero byte) of ``source``.

    Products and sums are rounded as the program says, but for fused multiply-adds; no fast math.

    Raises:
        CUDACompilerError: with the compiler's own words, or for an architecture it does not know.
    """
    # CUDA 11's compiler leaves the C locale behind in the thread that calls it (uselocale(3) is of a thread): Python
    # would decode files and pipes as ASCII from then on.
    with ThreadPoolExecutor(1, "nvrtc") as thread:
        return thread.submit(_compile, source, architecture, release).result()


def _compile(source: str, architecture: str, release: Release) -> bytes:
    nvrtc = _library(release)
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", "--disable-warnings"]
    options += [f"-I{folder}" for folder in include_folders(release)]
    with _program(nvrtc, source) as program:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        result = nvrtc.nvrtcCompileProgram(program, len(options), given)
        if result != _SUCCESS:
            words = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            raise CUDACompilerError(
                f"CUDA code cannot be compiled for {architecture}: {words[:500] or _words(nvrtc, result)}"
            )
        return _read(nvrtc, program, "CUBIN" if architecture.startswith("sm_") else "PTX")


def supported(release: Release = CUDA_13) -> list[int]:
    """Compute capabilities that the compiler knows, such as 90 for 9.0, sorted. Raises CUDACompilerError."""
    nvrtc = _library(release)
    count = ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(found))
    return sorted(found)


def include_folders(release: Release = CUDA_13) -> list[Path]:
    """Where CUDA's headers lie. Raises CUDACompilerError where they are not, or are another CUDA's."""
    folders = [root / include for include in release.includes for root in _roots() if (root / include).is_dir()]
    versions = [found for folder in folders if (found := _version(folder / "cuda.h"))]
    if not versions:
        raise CUDACompilerError(f"headers of CUDA {release.major} are not installed", hint=_hint(release))
    if any(found // 1000 != release.major for found in versions):
        # Packages of CUDA 11 and 12 write into the same folders.
        have = ", ".join(str(found // 1000) for found in versions)
        raise CUDACompilerError(
            f"where headers of CUDA {release.major} should be are those of CUDA {have}",
            hint="install it in an environment of its own: two of its packages write the same files",
        )
    return folders


def compiler_version(release: Release = CUDA_13) -> str:
    """The version of the package that has the compiler; ``none`` when it is not installed."""
    try:
        return version(release.package)
    except PackageNotFoundError:
        return "none"


def _roots() -> list[Path]:
    spec = find_spec("nvidia")
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _version(header: Path) -> int:
    """13020 for the ``cuda.h`` of CUDA 13.2; 0 for none."""
    found = (
        re.search(r"^#define CUDA_VERSION (\d+)", header.read_text(errors="replace"), re.M)
        if header.is_file()
        else None
    )
    return int(found[1]) if found else 0


def _hint(release: Release) -> str:
    return f"pip install 'fleet-edge[{release.extra}]'"


@cache
def _library(release: Release) -> ctypes.CDLL:
    paths = [path for root in _roots() if (path := root / release.library).is_file()]
    if not paths:
        raise CUDACompilerError(f"the compiler of CUDA {release.major} is not installed", hint=_hint(release))
    try:
        nvrtc = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        raise CUDACompilerError(f"the compiler of CUDA {release.major} cannot be loaded: {error}") from None
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


@contextmanager
def _program(nvrtc: ctypes.CDLL, source: str) -> Iterator[ctypes.c_void_p]:
    program = ctypes.c_void_p()
    text = source.encode()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None))
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """The program's ``CUBIN``, ``PTX`` or ``ProgramLog``."""
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, data))
    return data.raw


def _check(nvrtc: ctypes.CDLL, result: int) -> None:
    if result != _SUCCESS:
        raise CUDACompilerError(f"NVRTC says {_words(nvrtc, result)}")


def _words(nvrtc: ctypes.CDLL, result: int) -> str:
    return str(nvrtc.nvrtcGetErrorString(result).decode(errors="replace"))
