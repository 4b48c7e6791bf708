"""A float network built in integers: calibrated, compiled, run by its device half and held against its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from build_fixtures import convnet, home_with_tools
from test_build import TWO, assert_right, good, ran, zig

from controller import sources
from controller.build import BuildRequest, build
from controller.home import Home

__all__ = ["zig"]


@pytest.fixture
def home(tmp_path: Path, zig: Path) -> Home:
    return home_with_tools(tmp_path / "home", zig)


def test_int8_is_built_with_samples(home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(convnet(tmp_path / "net.onnx")), home=home)
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32))
    (built,) = build([BuildRequest(source, "x86", {"precision": "int8", "calibration": str(samples)})], home=home)
    manifest = good(built).manifest
    assert manifest is not None and manifest.golden.reference.startswith("the same integers on ")
    assert "samples.npz" in manifest.toolchain["calibration"]
    assert_right(ran(built, tmp_path, threads=TWO))


def test_arm_is_built_in_integers_too(home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(convnet(tmp_path / "net.onnx")), home=home)
    options = [{"precision": "int8", "mcpu": "cortex-a76"}, {"precision": "int8", "board": "rpi4"}]
    for built in build([BuildRequest(source, "arm64", each) for each in options], home=home):
        assert good(built).size > 10_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "'precision' must be float32 or int8"),
        ({"calibration": "samples.npz"}, "no option 'calibration'"),
    ],
)
def test_options_that_are_none(options: dict[str, str], said: str, home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(convnet(tmp_path / "net.onnx")), home=home)
    (built,) = build([BuildRequest(source, "x86", dict(options))], home=home)
    assert built.error is not None and said in str(built.error) and built.error.code == "bad-option"
