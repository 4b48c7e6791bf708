"""GPUs for tests: this machine's, or an emulated one.

For the emulated one, a build's CUDA source is compiled for this processor and runs behind CUDA's own interface.
Kernels, the virtual machine, and the device half then run as they do on a GPU, but for the time they take.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from cuda_child import Built

from targets.base import BuiltFile, Requirements, TensorSpec
from targets.cpu.compile import LIBRARY, link, write_weights
from targets.cpu.machine import X86_MACHINE
from targets.cuda import architectures
from targets.cuda.compile import Compiled
from targets.cuda.gpu import find
from targets.cuda.nvrtc import compile_source, include_folders
from targets.jetson import chips

_HERE = Path(__file__).parent / "cuda_emulator"
_HELPER = re.compile(r"^(?:template[^\n]*\n)?__forceinline__ __device__ [^\n]*\{\n.*?^\}", re.M | re.S)
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)(?= *\{)')


def _zig(*arguments: str) -> None:
    # Without C++'s library, which Zig would compile first, for minutes.
    plain = ("-nostdinc++", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-sanitize=all", "-w")
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-std=c++17", *plain, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def device(folder: Path) -> Path:
    """The folder with the emulated libraries: for ``LD_LIBRARY_PATH`` of the process that loads TVM.

    That process's ``EMULATED_CAPABILITY`` and ``EMULATED_CUDA`` say which GPU and which driver it finds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{path}" for path in include_folders()]
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: cuda*; cu*; emulated_*; local: *; };\n")
    whole = folder / "libcudart.so.13"
    flags = (f"-Wl,--version-script={versions}", "-Wl,-soname,libcudart.so.13", "-o", str(whole))
    _zig(*includes, str(_HERE / "device.cc"), *flags)
    (folder / "libcuda.so.1").symlink_to(whole)
    return folder


def kernels(source: str, folder: Path) -> bytes:
    """What stands for a cubin of ``source``."""
    entries = []
    for name, parameters in _KERNEL.findall(source):
        types = [re.sub(r"__restrict__|\b\w+$", "", each.strip()).strip() for each in parameters.split(",")]
        given = ", ".join(f"*({kind}*)arguments[{index}]" for index, kind in enumerate(types))
        entries.append(f'extern "C" void {name}__emulated(void** arguments) {{ {name}({given}); }}')
    assert entries, "no kernel in the source"
    # TVM's own prelude is for CUDA's compilers; declarations of kernels come first in what is left.
    body = source[source.index('extern "C" __global__') :].replace("__shared__ alignas(64)", "alignas(64) static")
    folder.mkdir(parents=True, exist_ok=True)
    path, built = folder / "kernels.cc", folder / "kernels.so"
    helpers = "\n".join(_HELPER.findall(source))
    path.write_text(f'#include "kernels.h"\n{helpers if helpers not in body else ""}\n{body}\n' + "\n".join(entries))
    _zig(f"-I{_HERE}", "-ffp-contract=off", "-march=native", str(path), "-o", str(built))
    return built.read_bytes()


def run(
    compiled: Compiled,
    inputs: Sequence[np.ndarray],
    folder: Path,
    libraries: Path | None,
    jetson: str = "",
    cuda: int = 13000,
) -> list[np.ndarray]:
    """What a compiled module gives for ``inputs``: on the emulated GPU that is in ``libraries``, or on a real one.

    ``jetson`` names the chip whose GPU is emulated and that target's device half, ``cuda`` what its driver knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_weights(compiled.weights, folder)
    chip = chips.named(jetson) if jetson else None
    emulated = chip.capability if chip else 90
    architecture = f"sm_{emulated if libraries else find().capability}"
    code = folder / "kernels.so"
    code.write_bytes(
        kernels(compiled.source, folder / "kernels") if libraries else compile_source(compiled.source, architecture)
    )
    cubin = BuiltFile(name=architectures.file_name(architecture), path=str(code), role="extra")
    names = [f"input{number}" for number in range(len(inputs))]
    built = Built(
        entry=LIBRARY,
        files=[link(compiled.executable, X86_MACHINE, folder), *weights, cubin],
        parameters=[file.name for file in weights],
        inputs=[TensorSpec(n, a.shape, a.dtype.name) for n, a in zip(names, inputs, strict=True)],
        outputs=[],
        requirements=Requirements(accelerator=architecture),
    )
    (folder / "built.json").write_bytes(msgspec.json.encode(built))
    np.savez(folder / "inputs.npz", **dict(zip(names, inputs, strict=True)))
    environment = dict(os.environ)
    if libraries:
        environment |= {"EMULATED_CAPABILITY": str(emulated), "EMULATED_CUDA": str(cuda)}
        environment["LD_LIBRARY_PATH"] = str(libraries)
    command = [sys.executable, str(Path(__file__).with_name("cuda_child.py")), str(folder)]
    command += [("jetson" if jetson else "emulated")] if libraries else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "outputs.npz") as found:
        return [found[name] for name in found.files]
