"""Engine ``tvm`` of target ``jetson``: what is built for a Xavier, an Orin and a Thor, and what its kernels compute.

No Jetson is here. That the code is for the right processors is read from the files themselves; what it computes is
shown by the same kernels' source on the emulated GPU, through the device half that runs on a board.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_emulation
import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from controller import zoo
from controller.home import Home
from targets.base import BuildOutput, FleetError, Requirements, SourceModel, TensorSpec
from targets.cpu import passes
from targets.cpu.machine import ARM64_MACHINE, X86_MACHINE, machine
from targets.cuda.compile import PLACEHOLDER, Compiled, compile_module, tvm_target
from targets.cuda.device import here
from targets.cuda.nvrtc import CUDA_11, CUDA_13, CUDACompilerError, compile_source, supported
from targets.jetson import chips
from targets.jetson.tvm_cuda import build_tvm, toolchain
from targets.jetson.tvm_device import unmet_tvm

# Compilers run in these, on machines that others load too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHIPS = pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
EM_AARCH64, EM_CUDA = 183, 190


@dataclass(frozen=True)
class Elf:
    """The header of an ELF file of 64 bits, and the names of what it defines for others."""

    machine: int
    abi: tuple[int, int]
    flags: int
    defined: frozenset[str]
    undefined: frozenset[str]

    @classmethod
    def read(cls, data: bytes) -> Elf:
        assert data[:6] == b"\x7fELF\x02\x01"
        (elf_machine,) = struct.unpack_from("<H", data, 18)
        (sections_at,), (flags,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<I", data, 48)
        size, count = struct.unpack_from("<HH", data, 58)
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + size * number) for number in range(count)]
        defined, undefined = set(), set()
        for _, kind, _, _, at, length, link, *_ in sections:
            if kind not in (2, 11):
                continue
            names_at = sections[link][4]
            for symbol in range(at, at + length, 24):
                name_at, info, _, section = struct.unpack_from("<IBBH", data, symbol)
                name = data[names_at + name_at : data.index(b"\0", names_at + name_at)].decode()
                if name and info >> 4 in (1, 2):
                    (defined if section else undefined).add(name)
        return cls(elf_machine, (data[7], data[8]), flags, frozenset(defined), frozenset(undefined))

    @property
    def capability(self) -> int:
        """Of a cubin: in the lowest byte of the flags, and in the second one from CUDA 13's form of the file on."""
        assert self.machine == EM_CUDA
        return self.flags & 0xFF if self.abi == (0x33, 7) else self.flags >> 8 & 0xFF


def _build(name: str, arch: str, folder: Path, weights: str = "") -> tuple[BuildOutput, dict[str, Path]]:
    model = zoo.source(name, weights, Home.find(folder / "home"))
    workdir = folder / "built"
    workdir.mkdir(parents=True)
    stages: list[str] = []
    built = build_tvm(model, {"arch": arch, "engine": "tvm"}, workdir, lambda stage, _share: stages.append(stage))
    assert stages[-1] == "built"
    return built, {file.name: Path(file.path) for file in built.files}


def _check_files(built: BuildOutput, files: dict[str, Path], chip: chips.Chip) -> None:
    cubin = Elf.read(files[f"kernels/{chip.architecture}.cubin"].read_bytes())
    assert cubin.capability == chip.capability
    # A driver of CUDA 11 or 12 knows the first form of the file alone, which Xavier and Orin must have.
    assert cubin.abi == ((0x41, 8) if chip.name == "thor" else (0x33, 7))
    library = files["model.so"].read_bytes()
    elf = Elf.read(library)
    assert elf.machine == EM_AARCH64
    assert {"__tvm_ffi__library_bin", "__TVMFFIFunctionCall"} <= elf.defined | elf.undefined
    # The library calls each kernel by its name, and has a placeholder where their code would be.
    kernels = {name for name in cubin.defined if name.endswith("_kernel")}
    assert kernels and all(name.encode() in library for name in kernels)
    assert library.count(PLACEHOLDER.encode()) == 1 and b"__global__" not in library
    assert built.requirements.machine == "aarch64" and built.requirements.accelerator == chip.architecture
    assert set(built.requirements.runtime) == {"apache-tvm"}
    assert built.parameters and set(built.parameters) <= set(files)
    assert built.engine == "time_evaluator"


@CHIPS
def test_a_detector_is_built_for_every_chip(chip: chips.Chip, tmp_path: Path) -> None:
    built, files = _build("shapes-ssd", chip.name, tmp_path)
    _check_files(built, files, chip)


@CHIPS
def test_the_published_detector_is_built_for_every_chip(chip: chips.Chip, tmp_path: Path) -> None:
    built, files = _build("ssd300_resnet50", chip.name, tmp_path, "random:0")
    _check_files(built, files, chip)


def test_each_chip_has_a_compiler() -> None:
    for chip in chips.CHIPS:
        assert chip.capability in supported(chip.release)
    # Why there are two: the newer does not know Xavier, the older not Thor.
    with pytest.raises(CUDACompilerError, match="sm_72"):
        compile_source("", "sm_72", CUDA_13)
    with pytest.raises(CUDACompilerError, match="sm_110"):
        compile_source("", "sm_110", CUDA_11)


@pytest.mark.parametrize(("name", "chip"), [("sm_72", "xavier"), ("sm_87", "orin"), ("sm_110a", "thor")])
def test_names_of_chips(name: str, chip: str) -> None:
    assert chips.named(name).name == chip
    assert toolchain({"arch": name})["arch"] == chips.named(chip).architecture


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "none is named"),
        ({"arch": "nano"}, "no Jetson 'nano'"),
        ({"arch": "sm_90"}, "no Jetson 'sm_90'"),
        ({"arch": "orin", "precision": "fp16"}, "precision=fp16"),
        ({"arch": "orin", "dynamic": True}, "dynamic=True"),
        ({"arch": "orin", "batch": -1}, "batch"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FleetError, match=words) as raised:
        toolchain(options)
    assert raised.value.code == "bad-option"


# --- What the kernels compute -------------------------------------------------------------------


class _Net(nn.Module):
    """What detectors are made of, small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=24)
        self.last = nn.Conv2d(24, 10, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.max_pool2d(self.norm(self.first(x)).relu(), 3, 2, 1)
        x = self.last(self.deep(x) + x)
        return x.flatten(2).softmax(1), x.mean((2, 3))


def _relax(network: nn.Module, given: torch.Tensor) -> Any:
    from tvm.relax.frontend.torch import from_exported_program

    program = torch.export.export(network.eval(), (given,))
    return passes.simplify()(from_exported_program(program, unwrap_unit_return_tuple=True))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if machine() != "x86_64":
        pytest.skip("the emulated GPU is for x86-64")
    return cuda_emulation.device(tmp_path_factory.mktemp("cuda"))


def _compiled(chip: chips.Chip) -> tuple[Compiled, nn.Module, torch.Tensor]:
    torch.manual_seed(4)
    network, given = _Net(), torch.randn(2, 3, 33, 47)
    compiled = compile_module(_relax(network, given), tvm_target(chip.architecture, X86_MACHINE))
    board = compile_module(_relax(network, given), tvm_target(chip.architecture, ARM64_MACHINE))
    # What is shown below of these kernels is true of the board's: the GPU's code does not depend on the processor.
    assert board.source == compiled.source
    return compiled, network, given


@CHIPS
def test_kernels_compute_what_torch_does(chip: chips.Chip, tmp_path: Path, libraries: Path) -> None:
    compiled, network, given = _compiled(chip)
    compile_source(compiled.source, chip.architecture, chip.release)
    found = cuda_emulation.run(compiled, [given.numpy()], tmp_path, libraries, jetson=chip.name)
    with torch.no_grad():
        wanted = network(given)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
    conditions = msgspec.json.decode((tmp_path / "conditions.json").read_bytes())
    assert conditions["gpu"] == f"Jetson {chip.name}" and conditions["kernels"] == chip.architecture
    assert conditions["driver"] == "CUDA 13.0"
    assert conditions["input_dtype"] == conditions["weight_dtype"] == "float32"


def _fails(folder: Path, libraries: Path, **environment: str) -> str:
    child = Path(cuda_emulation.__file__).with_name("cuda_child.py")
    done = subprocess.run(
        [sys.executable, str(child), str(folder), "jetson"],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_other_boards_refuse_it(tmp_path: Path, libraries: Path) -> None:
    """What the device half says of a GPU, a driver and a machine that a bundle is not for."""
    thor = chips.named("thor")
    compiled, _, given = _compiled(thor)
    cuda_emulation.run(compiled, [given.numpy()], tmp_path, libraries, jetson="thor")
    words = _fails(tmp_path, libraries, EMULATED_CAPABILITY="110", EMULATED_CUDA="12060")
    assert "the kernels are of CUDA 13, the driver of this board knows CUDA up to 12.6" in words
    words = _fails(tmp_path, libraries, EMULATED_CAPABILITY="87", EMULATED_CUDA="13020")
    assert "sm_110" in words and "Jetson orin" in words
    if here():
        # No driver of this machine's own is found in the emulated one's place.
        assert "libcuda.so.1 is not there" in _fails(tmp_path, tmp_path / "weights")


def test_needs_are_held_against_the_device_tree(tmp_path: Path) -> None:
    tree = tmp_path / "compatible"
    tree.write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    assert chips.here(tree) is chips.named("orin")
    assert unmet_tvm(Requirements(accelerator="sm_87"), tree) == ""
    words = unmet_tvm(Requirements(accelerator="sm_72"), tree)
    assert "sm_72" in words and "orin (sm_87)" in words and "arch=orin" in words
    tree.write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    assert "no Jetson" in unmet_tvm(Requirements(accelerator="sm_87"), tree)
    assert chips.here(tmp_path / "none") is None
    assert "aarch64" in unmet_tvm(Requirements(machine="aarch64"), tree) or machine() == "aarch64"


def test_a_model_that_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    network = tmp_path / "broken.onnx"
    network.write_bytes(b"no network")
    spec = TensorSpec("x", (1, 3), "float32")
    model = SourceModel("broken", "onnx", str(network), "0" * 64, "file:broken.onnx", (spec,), (spec,))
    with pytest.raises(FleetError, match="broken"):
        build_tvm(model, {"arch": "orin"}, tmp_path, lambda _stage, _share: None)
