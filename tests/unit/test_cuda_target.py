"""Target `cuda` without a GPU: what is compiled for which architecture, and what a GPU takes of it."""

from __future__ import annotations

import locale
from pathlib import Path

import pytest

from controller import sim, zoo
from controller.home import Home
from targets.base import FleetError, HardwareTarget, Requirements, find
from targets.cuda import CUDA, architectures
from targets.cuda.device import here, other_kernels, too_old
from targets.cuda.gpu import GPU
from targets.cuda.nvrtc import CUDA_11, CUDA_13, CUDACompilerError, Release, compile_source, supported

H200 = GPU("H200", 90, "580.1", (13, 0))


def test_the_default_architectures_are_compiled_for() -> None:
    known = supported()
    assert known[0] >= architectures.OLDEST
    assert {architectures.number(name) for name in architectures.parse(architectures.DEFAULT)} <= set(known)


@pytest.mark.parametrize(
    ("names", "capability", "best"),
    [
        ("sm_75,sm_80,sm_90", 90, "sm_90"),
        ("sm_75,sm_80,sm_90", 89, "sm_80"),
        ("sm_80,sm_86", 86, "sm_86"),
        ("sm_80,sm_86", 80, "sm_80"),
        ("sm_90", 100, ""),
        ("sm_90,compute_75", 100, "compute_75"),
        ("compute_75,compute_90,sm_80", 90, "compute_90"),
        ("sm_90", 80, ""),
    ],
)
def test_what_a_gpu_takes(names: str, capability: int, best: str) -> None:
    assert architectures.best(architectures.parse(names), capability) == best


@pytest.mark.parametrize("option", ["", "sm_70", "sm_9", "sm_90a", "gfx90", "sm_90,sm_90", "sm_90,,sm_80", "../sm_90"])
def test_bad_architectures(option: str) -> None:
    with pytest.raises(FleetError) as raised:
        CUDA().host().toolchain({"arch": option})
    assert raised.value.code == "bad-option"


def test_files_say_their_architecture() -> None:
    names = ("sm_90", "compute_120")
    paths = [architectures.file_name(name) for name in names]
    assert paths == ["kernels/sm_90.cubin", "kernels/compute_120.ptx"]
    assert architectures.in_files([*paths, "model.so", "kernels/other", "weights/sm_80.cubin"]) == names


def test_other_gpus_are_refused_in_words() -> None:
    assert other_kernels(["sm_80", "sm_90"], H200) == ""
    words = other_kernels(["sm_80"], H200)
    assert "sm_80" in words and "H200" in words and "9.0" in words and "arch=sm_90" in words
    assert too_old(H200) == ""
    assert "12.4" in too_old(GPU("A100", 80, "550.5", (12, 4)))
    assert "7.0" in too_old(GPU("V100", 70, "580.1", (13, 0)))


def test_without_a_gpu(tmp_path: Path) -> None:
    if not here():
        pytest.skip("this machine has a GPU")
    target = find("cuda")
    assert isinstance(target, HardwareTarget) and target.lacking() == here()
    assert target.device().unmet(Requirements(accelerator="sm_90")) == here()
    assert target.device().telemetry() == {}
    with pytest.raises(FleetError, match="nothing simulates boards of target 'cuda'") as raised:
        sim.up(Home.find(tmp_path), 1, target="cuda")
    assert raised.value.code == "sim-failed"


def test_code_and_errors_of_the_compiler() -> None:
    source = 'extern "C" __global__ void f(float* x) { x[threadIdx.x] *= 2; }'
    assert compile_source(source, "sm_80")[:4] == b"\x7fELF"
    ptx = compile_source(source, "compute_80")
    assert ptx.lstrip().startswith(b"//") and b".target sm_80" in ptx and ptx.endswith(b"\0")
    with pytest.raises(CUDACompilerError, match="undefined"):
        compile_source("__global__ void f() { nothing(); }", "sm_80")
    with pytest.raises(CUDACompilerError, match="sm_999"):
        compile_source(source, "sm_999")


@pytest.mark.parametrize("release", [CUDA_11, CUDA_13], ids=["11", "13"])
def test_the_compiler_leaves_the_locale_alone(release: Release) -> None:
    before = locale.nl_langinfo(locale.CODESET)
    assert compile_source("__global__ void f() {}", "sm_87", release)[:4] == b"\x7fELF"
    assert locale.nl_langinfo(locale.CODESET) == before


def test_a_classifier_is_built(tmp_path: Path) -> None:
    model = zoo.source("shapes-classifier", "", Home.find(tmp_path / "home"))
    workdir = tmp_path / "built"
    workdir.mkdir()
    built = CUDA().host().build(model, {"arch": "sm_90,compute_75"}, workdir, lambda _stage, _share: None)
    files = {file.name: Path(file.path) for file in built.files}
    assert files["kernels/sm_90.cubin"].read_bytes()[:4] == b"\x7fELF"
    assert b".target sm_75" in files["kernels/compute_75.ptx"].read_bytes()
    assert b"conv2d" in files["kernels/sm_90.cubin"].read_bytes()
    assert built.requirements.accelerator == "sm_90,compute_75"
    assert built.parameters and set(built.parameters) <= set(files)
