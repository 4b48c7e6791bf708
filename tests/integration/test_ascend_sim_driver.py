"""The driver of Ascend boards on the simulated toolchain: what it must not take for a real one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from build_fixtures import convnet

from targets import onnx_model
from targets.ascend import Ascend
from targets.ascend.sim import board as boards
from targets.ascend.sim import om
from targets.ascend.sim.board import Board, Fault, Faults
from targets.ascend.sim.install import PREFIX
from targets.base import BuildOutput, FleetError, SourceModel


@dataclass
class Bundle:
    """A build as an agent has it once it was pushed."""

    manifest: SimpleNamespace
    files: Mapping[str, Path]

    def path(self, name: str) -> Path:
        return self.files[name]


def bundle(output: BuildOutput) -> Bundle:
    files = {file.name: Path(file.path) for file in output.files}
    listed = [
        SimpleNamespace(path=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items()
    ]
    return Bundle(SimpleNamespace(files=listed, inputs=output.inputs, outputs=output.outputs), files)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return convnet(tmp_path / "net.onnx", batch="N")


@pytest.fixture
def built(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    for name, value in Ascend().prepare(tmp_path / "board").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FLEET_ASCEND_PYTHON", raising=False)
    inputs, outputs = onnx_model.inputs_and_outputs(onnx_model.read(network))
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    model = SourceModel("net", "onnx", str(network), digest, "file:net.onnx", inputs, outputs)
    (tmp_path / "work").mkdir()
    return bundle(Ascend().host().build(model, {"batch": 2}, tmp_path / "work", lambda stage, share: None))


def pictures() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


def test_a_network_runs_and_says_that_it_was_simulated(built: Bundle, network: Path) -> None:
    runner = Ascend().device().load(built, 1)
    try:
        (found,) = runner.infer([pictures()])
        times = runner.measure(20)
        assert runner.conditions()["cann"].endswith("+simulated")
    finally:
        runner.close()
    (expected,) = onnxruntime.InferenceSession(str(network)).run(None, {"image": pictures()})
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    assert len(times) == 20
    assert (times >= 0).all() and times.sum() > 0


def test_a_simulated_model_is_refused_where_the_toolkit_says_it_is_real(built: Bundle, tmp_path: Path) -> None:
    for path in (tmp_path / "board" / PREFIX / "usr/local/Ascend").rglob("*.info"):
        path.write_text(path.read_text().replace(om.SIMULATED_VERSION, ""))
    with pytest.raises(FleetError, match=r"\.om was made by the simulated atc") as error:
        Ascend().device().load(built, 1)
    assert error.value.code == "simulated-om"


def test_a_damaged_model_in_the_cache_is_said_plainly(built: Bundle, tmp_path: Path) -> None:
    runner = Ascend().device().load(built, 1)
    try:
        (model,) = (tmp_path / "cache").rglob("*.om")
        # In place: the runner may hold a link to it.
        with model.open("r+b") as file:
            file.truncate(len(om.MAGIC) + 100)
        with pytest.raises(FleetError, match="load model from file failed"):
            runner.infer([pictures()])
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        (Faults(npu_smi=Fault("no-driver")), "no-chip", "-8005"),
        (Faults(atc=Fault("fail", code="EZ3003", text="No supported Ops kernel")), "atc-failed", "EZ3003"),
        (Faults(atc=Fault("no-space")), "disk-full", "No space left|disk is full"),
        (Faults(atc=Fault("garbage")), "atc-failed", "atc cannot compile"),
        (Faults(atc=Fault("kill")), "atc-failed", "exit status -9"),
    ],
    ids=["no-driver", "atc-fails", "disk-full", "garbage", "killed"],
)
def test_a_board_that_is_broken_is_one_clear_error(
    built: Bundle, tmp_path: Path, faults: Faults, code: str, words: str
) -> None:
    boards.save(Board(faults=faults), tmp_path / "board" / PREFIX)
    with pytest.raises(FleetError, match=words) as error:
        Ascend().device().load(built, 1)
    assert error.value.code == code
    assert "\n" not in error.value.message
