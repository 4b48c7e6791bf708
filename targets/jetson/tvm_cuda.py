"""Engine ``tvm`` on the host: a network as a library for Jetson's processor, and machine code for its GPU.

Nothing of CUDA's toolkit and no GPU is needed, and nothing is compiled on the board.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from targets.base import BuildOutput, FleetError, Option, SourceModel
from targets.cpu.host import check_batch, tool_versions
from targets.cpu.machine import ARM64_MACHINE
from targets.cuda.host import Boards, build_library
from targets.cuda.nvrtc import compiler_version
from targets.jetson import chips

#: What the options of a Jetson's build must be for this engine, where they are given.
_ONLY: dict[str, Option] = {"precision": "fp32", "dynamic": False}


def toolchain(options: Mapping[str, Option]) -> dict[str, str]:
    """Versions of all that shapes the result, and the architecture. Raises FleetError for options it cannot have."""
    chip = _chip(options)
    return {**tool_versions(), "nvrtc": compiler_version(chip.release), "arch": chip.architecture}


def build_tvm(
    model: SourceModel,
    options: Mapping[str, Option],
    workdir: Path,
    progress: Callable[[str, float], None],
) -> BuildOutput:
    """Compile ``model`` for the chip of the option ``arch``; a `targets.base.HostHalf`'s ``build``.

    The requirements name the machine (aarch64), the version of TVM, and the GPU's architecture.

    Raises:
        FleetError: ``bad-option``, or ``cuda-compiler`` where NVIDIA's compiler is not installed.
        ModelError: for what cannot be compiled.
    """
    chip = _chip(options)
    boards = Boards(ARM64_MACHINE, chip.architecture, (chip.architecture,), chip.release)
    return build_library(model, int(options.get("batch", 0)), boards, workdir, progress)


def _chip(options: Mapping[str, Option]) -> chips.Chip:
    check_batch(options)
    for name, only in _ONLY.items():
        if options.get(name, only) != only:
            raise FleetError(
                f"engine tvm has no {name}={options[name]}",
                code="bad-option",
                hint="its kernels are for one shape, in float32; other engines have more",
            )
    arch = str(options.get("arch", ""))
    if not arch:
        known = ", ".join(chip.name for chip in chips.CHIPS)
        raise FleetError(
            "engine tvm compiles for one chip, and none is named",
            code="bad-option",
            hint=f"--option arch=NAME with one of: {known}",
        )
    return chips.named(arch)
