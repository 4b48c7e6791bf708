"""Engines of a Jetson on the GPU of this machine: in halves, proven against the framework, and faster than float32.

On a machine that is no Jetson the GPU stands for one; figures are then that GPU's, and every result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from run_bundle import Loaded

from agent.golden import compare
from controller import sources
from controller.build import BuildRequest, Built, build
from controller.home import Home
from targets.base import Option
from targets.board_files import CACHE_VARIABLE
from targets.jetson import identity
from targets.jetson.device import JetsonDevice
from targets.jetson.runner import TorchRunner

pytestmark = pytest.mark.hardware

#: Engines, what they are asked for, and what must have run.
CASES = [
    ("eager", "fp32", "float32"),
    ("eager", "fp16", "float16"),
    ("eager", "autocast", "float16"),
    ("torchscript", "fp16", "float16"),
    ("inductor", "fp16", "float16"),
    ("torch-tensorrt", "fp16", "float16"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    return Home.find(tmp_path_factory.mktemp("home"))


@pytest.fixture
def loaded(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[TorchRunner, Built]]]:
    """What loads a network with options, on a real board where this is one."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    half = JetsonDevice(simulated=not identity.find().is_jetson)
    runners: list[TorchRunner] = []

    def load(name: str, weights: str = "", **options: Option) -> tuple[TorchRunner, Built]:
        model = sources.resolve(name, weights=weights, home=home)
        (found,) = build([BuildRequest(model, "jetson", options)], home=home)
        assert found.error is None and found.manifest is not None, found.error
        if unmet := half.unmet(found.manifest.requirements):
            pytest.skip(unmet)
        runner = half.load_telling(Loaded(found.blobs, found.manifest), 0, lambda _: None)
        assert isinstance(runner, TorchRunner)
        runners.append(runner)
        return runner, found

    yield load
    for runner in runners:
        runner.close()


def _prove(runner: TorchRunner, found: Built) -> None:
    manifest = found.manifest
    assert manifest is not None
    bundle = Loaded(found.blobs, manifest)
    for given, expected in zip(manifest.golden.inputs, manifest.golden.outputs, strict=True):
        outputs = runner.infer([bundle.array(name) for name in given])
        references = [bundle.array(name) for name in expected]
        _, mismatch = compare(
            outputs,
            references,
            manifest.outputs,
            rtol=manifest.golden.rtol,
            atol=manifest.golden.atol,
            postprocess=manifest.model.postprocess,
        )
        assert mismatch == ""


@pytest.mark.parametrize(("engine", "precision", "layers"), CASES)
def test_an_engine_computes_in_what_was_asked_for(
    engine: str, precision: str, layers: str, loaded: Callable[..., tuple[TorchRunner, Built]]
) -> None:
    runner, found = loaded("resnet18", "random:0", engine=engine, precision=precision, batch=8)
    _prove(runner, found)
    known = runner.conditions()
    assert "gpu" not in known["engine"] and "sm_" in known["device"]
    if known.get("layer_dtypes"):
        assert known["layer_dtypes"].startswith(layers)
    host = runner.measure(50)
    # The GPU's own time is within the host's, which waits for it.
    assert 0 < runner.counters()["gpu_ms"] <= float(np.median(host)) * 1e3


def test_a_detector_runs_on_the_gpu(loaded: Callable[..., tuple[TorchRunner, Built]]) -> None:
    _prove(*loaded("shapes-ssd@boxes", engine="eager"))


@pytest.mark.timeout(1800)
def test_halves_are_as_much_faster_as_was_published(loaded: Callable[..., tuple[TorchRunner, Built]]) -> None:
    """SSD300 with ResNet-50 at batch 128: 167.31 ms eager in float32 without TF32, 46.21 ms in halves."""

    def mean(engine: str, precision: str) -> float:
        runner, _ = loaded("ssd300_resnet50", "random:0", engine=engine, precision=precision, batch=128)
        runner.measure(50)
        taken = float(runner.measure(100).mean())
        runner.close()
        return taken

    eager = mean("eager", "fp32")
    best, engine = 0.0, ""
    for candidate in ("torch-tensorrt", "inductor", "torchscript"):
        try:
            speed = eager / mean(candidate, "fp16")
        except pytest.skip.Exception:
            continue
        if speed > best:
            best, engine = speed, candidate
    assert best >= 167.31 / 46.21, f"the best engine in halves, {engine}, is {best:.2f} times as fast"
