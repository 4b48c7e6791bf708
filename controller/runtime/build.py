"""Building the runtime's wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from controller.home import Home
from controller.runtime import architectures, objects
from controller.runtime.architectures import Architecture
from controller.runtime.cpython import Headers
from controller.runtime.objects import Library, Unit
from controller.runtime.sources import Sources
from controller.runtime.wheel import Wheel
from targets.base import FleetError

NAME = "fleet-tvm-runtime"
_HERE = Path(__file__).parent
_HEADERS = _HERE / "headers"
_CYTHON_DEADLINE = 600.0
_CPP = ("-std=c++17", "-fvisibility=hidden")

Progress = Callable[[str, float], None]


def build(
    arch: str,
    out: Path,
    *,
    python: str = "",
    python_include: Path | None = None,
    home: Home | None = None,
    progress: Progress = lambda stage, share: None,
) -> Path:
    """Make the wheel for machines that ``uname -m`` calls ``arch`` and Python ``python`` (this one); its path.

    ``python_include`` is the folder of that Python's headers. What was compiled before is taken from ``home``'s cache.
    Raises FleetError: ``unknown-architecture``, ``no-tvm``, ``no-python-headers``, ``no-cython``, ``link-failed``.
    """
    architecture, sources = architectures.find(arch), Sources.find()
    headers = Headers.find(python, python_include)
    cache = (home or Home.find()).cache / "runtime"
    with tempfile.TemporaryDirectory(prefix="fleet-runtime-") as folder:
        made = compile_all(sources, headers, architecture, Path(folder), cache, progress)
        suffix = f"cpython-{headers.tag.removeprefix('cp')}-{architecture.triple}"
        places = {
            "libtvm_runtime.so": "tvm/lib/libtvm_runtime.so",
            "libtvm_ffi.so": "tvm_ffi/lib/libtvm_ffi.so",
            "core.so": f"tvm_ffi/core.{suffix}.so",
        }
        files = [(places[name], path.read_bytes()) for name, path in made.items()]
    files += [(name, path.read_bytes()) for name, path in sources.python()]
    files.append(("tvm/__init__.py", (_HERE / "device" / "tvm_init.py").read_bytes()))
    wheel = Wheel(
        name=NAME,
        version=sources.version,
        tag=f"{headers.tag}-{headers.tag}-{architecture.platform}",
        summary="The runtime and RPC of Apache TVM, without its compiler",
        requires=("numpy", "typing_extensions>=4.13"),
        requires_python=f"=={headers.python}.*",
    )
    progress("pack", 1.0)
    return wheel.write(out, sorted(files), [(name, path.read_bytes()) for name, path in sources.licences()])


def compile_all(
    sources: Sources, headers: Headers, architecture: Architecture, folder: Path, cache: Path, progress: Progress
) -> dict[str, Path]:
    """The three libraries, in ``folder``: TVM's FFI, the runtime, and tvm_ffi's extension of Python."""
    tree = folder / "src"
    # The runtime's sources name headers of a folder beside them, which the wheels leave out.
    shutil.copytree(sources.runtime, tree / "runtime")
    shutil.copytree(_HEADERS / "src" / "support", tree / "support")
    python = headers.fit(architecture, folder / "python")
    # The extension goes first: nothing else takes as long.
    cython = shutil.copytree(sources.extension.parent, folder / "cython")
    made_for_32_bits(cython / "tvm_ffi_python_object.h")
    core = Unit(
        cythonised(folder, f"{cython.name}/{sources.extension.name}", "core.cpp"),
        # Of 100,000 lines of glue between Python and C++, which take minutes to optimise.
        ("-std=c++17", "-O1"),
        (cython, python),
    )
    ffi = (*_CPP, "-DTVM_FFI_EXPORTS", "-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0")
    runtime = (*_CPP, "-DTVM_RUNTIME_EXPORTS", f'-DTVM_VERSION="{sources.version}"')
    libraries = [
        Library("libtvm_ffi.so", tuple(Unit(path, ffi) for path in sources.ffi_sources)),
        Library(
            "libtvm_runtime.so",
            tuple(Unit(tree / "runtime" / path, runtime, (tree / "support",)) for path in sources.runtime_sources),
            needs=("libtvm_ffi.so",),
            rpath="$ORIGIN/../../tvm_ffi/lib",
        ),
        Library(
            "core.so",
            (core, Unit(_HEADERS / "src" / "testing.cc")),
            needs=("libtvm_ffi.so",),
            rpath="$ORIGIN/lib",
        ),
    ]
    includes = [_HEADERS / "include", *sources.includes]
    return objects.build(libraries, includes, architecture, folder, cache / architecture.name, progress)


def made_for_32_bits(header: Path) -> None:
    """Pad what precedes every object to the 16 bytes that it takes where pointers have 8. Raises FleetError."""
    text, struct = header.read_text(), "struct PyCustomAllocHeader {\n"
    if text.count(struct) != 1:
        raise FleetError(f"the installed tvm_ffi is not one that this knows: {header.name}", code="no-tvm")
    padding = "  char padding[2 * (8 - sizeof(void*))];\n"
    header.write_text(text.replace(struct, f"{struct}#if UINTPTR_MAX == UINT32_MAX\n{padding}#endif\n"))


def cythonised(folder: Path, source: str, out: str) -> Path:
    """The C++ of a module in Cython, in ``folder``. Raises FleetError (``no-cython``)."""
    command = [sys.executable, "-m", "cython", "--cplus", "-3", "--module-name", "tvm_ffi.core", source, "-o", out]
    # The result says where its source lay: relative to here it is the same every time, and is compiled once.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_CYTHON_DEADLINE)
    if done.returncode != 0:
        missing = "No module named" in done.stderr
        raise FleetError(
            "Cython is not installed" if missing else f"Cython failed: {done.stderr.strip()[-1000:]}",
            code="no-cython",
            hint="pip install 'fleet-edge[runtime]'" if missing else "",
        )
    return folder / out
