"""How a Jetson is driven with Torch-TensorRT, from a model to results, with a double of each dialect's torch_tensorrt.

The double takes what the released wheels' signatures take and no more; see :mod:`torch_tensorrt_double`. Everything
else is what runs on a board: the build, the device half, the helper in the board's Python, the cache.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_tensorrt_double
from build_fixtures import convnet
from run_bundle import Loaded
from torch import nn

from controller import sources
from controller.build import BuildRequest, Built, build
from controller.home import Home
from targets import board_files
from targets.base import FleetError, Option
from targets.jetson import board_python
from targets.jetson.device import JetsonDevice

# Compilers run in these, on machines that others load too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSIONS = ("2.8.0", "2.14.0")
EITHER = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The Python that has the double of a version, by the version."""
    return {
        version: torch_tensorrt_double.install(version, tmp_path_factory.mktemp(f"double-{version}"))
        for version in VERSIONS
    }


# --- The double itself --------------------------------------------------------------------------

_PROGRAM = """
import json, torch, torch_tensorrt, tensorrt
from torch_tensorrt.dynamo import runtime
class Net(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x + 1) * 2 - x
program = torch.export.export(Net(), (torch.zeros(2, 3),))
inputs = (torch_tensorrt.Input(shape=(2, 3), dtype=torch.float32),)
compile = torch_tensorrt.dynamo.compile
def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
"""


def _tell(python: Path, expressions: dict[str, str]) -> dict[str, Any]:
    """Values of Python expressions beside the double."""
    program = _PROGRAM + "print(json.dumps({" + ", ".join(f"{n!r}: {e}" for n, e in expressions.items()) + "}))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@EITHER
def test_the_double_refuses_what_the_wheel_lacks(version: str, doubles: dict[str, Path]) -> None:
    found = _tell(
        doubles[version],
        {
            "version": "torch_tensorrt.__version__",
            "tensorrt": "tensorrt.__version__",
            "classes": "sorted(name for name in dir(runtime) if name.endswith('Module'))",
            "precisions": "refused(lambda: compile(program, arg_inputs=inputs, enabled_precisions={torch.float32}))",
            "autocast": "refused(lambda: compile(program, arg_inputs=inputs, enable_autocast=False))",
            "unknown": "refused(lambda: compile(program, arg_inputs=inputs, min_block=1))",
            "kind": "refused(lambda: compile(program, arg_inputs=inputs, min_block_size='1'))",
            "flag": "refused(lambda: compile(program, arg_inputs=inputs, disable_tf32=1))",
            "path": "refused(lambda: torch_tensorrt.save(None, 3))",
            "input": "refused(lambda: torch_tensorrt.Input(shape=(1,), size=1))",
            "ranges": "refused(lambda: torch_tensorrt.Input(min_shape=(1,), max_shape=(2,)))",
            "type": "refused(lambda: compile(program, arg_inputs=[torch_tensorrt.Input((2, 3), dtype=torch.half)]))",
            "shape": "refused(lambda: compile(program, arg_inputs=[torch_tensorrt.Input(shape=(1, 3))]))",
            "both": "refused(lambda: compile(program, inputs, arg_inputs=inputs))",
            "module": "refused(lambda: compile(Net(), arg_inputs=inputs))",
            "plain": "refused(lambda: torch_tensorrt.save(Net(), 'x.ep'))",
            "missing": "refused(lambda: torch_tensorrt.load('/nowhere.ep'))",
            "name": "refused(lambda: torch_tensorrt.dynamo.refit)",
        },
    )
    weak = version == "2.8.0"
    assert found["version"] == f"{version}+double" and found["tensorrt"].endswith("+double")
    assert found["classes"] == (["PythonTorchTensorRTModule"] if weak else []) + ["TorchTensorRTModule"]
    assert ("unexpected keyword" in found["precisions"]) is not weak
    assert ("unexpected keyword" in found["autocast"]) is weak
    assert "unexpected keyword argument 'min_block'" in found["unknown"]
    for name in ("kind", "flag", "path", "input"):
        assert found[name].startswith("TypeError"), found[name]
    for name in ("ranges", "type", "shape", "plain", "missing"):
        assert found[name].startswith("ValueError"), found[name]
    for name in ("both", "module", "name"):
        assert found[name].startswith(("AssertionError", "AttributeError")), found[name]


@EITHER
def test_the_double_cuts_as_it_is_told(version: str, doubles: dict[str, Path]) -> None:
    modules = "compile(program, arg_inputs=inputs, {}).modules()"
    engines = f"sum(isinstance(each, runtime.TorchTensorRTModule) for each in {modules})"
    found = _tell(
        doubles[version],
        {
            "all": engines.format("min_block_size=1"),
            "small": engines.format("min_block_size=9"),
            "cut": engines.format("min_block_size=1, torch_executed_ops={'aten.relu.default'}"),
            "whole": "refused(lambda: compile(program, arg_inputs=inputs, min_block_size=1, "
            "require_full_compilation=True, torch_executed_ops={'aten.relu.default'}))",
            "explicit": "refused(lambda: compile(program, arg_inputs=inputs, use_explicit_typing=True, "
            "enabled_precisions={torch.float32, torch.half}))",
        },
    )
    assert (found["all"], found["small"]) == (1, 0)
    assert found["cut"] == 2
    assert found["whole"].startswith("AssertionError")
    assert found["explicit"].startswith("AssertionError" if version == "2.8.0" else "TypeError")


# --- From a model to results --------------------------------------------------------------------


@dataclass
class Board:
    """A simulated Jetson whose Python has a double of torch_tensorrt."""

    home: Home
    stages: list[str]

    def built(self, path: Path, **options: Option) -> Built:
        model = sources.resolve(str(path), home=self.home)
        (built,) = build([BuildRequest(model, "jetson", {"engine": "torch-tensorrt", **options})], home=self.home)
        if built.error:
            raise built.error
        return built

    def run(self, built: Built) -> tuple[dict[str, str], float]:
        """Conditions, and the largest error of its golden outputs as a share of what is allowed."""
        assert built.manifest is not None
        bundle = Loaded(built.blobs, built.manifest)
        half = JetsonDevice(simulated=True)
        assert half.unmet(built.manifest.requirements) == ""
        runner = half.load_telling(bundle, 1, self.stages.append)
        try:
            shares = []
            golden = built.manifest.golden
            for given, expected in zip(golden.inputs, golden.outputs, strict=True):
                outputs = runner.infer([bundle.array(name) for name in given])
                for name, output in zip(expected, outputs, strict=True):
                    wanted = bundle.array(name)
                    allowed = golden.atol + golden.rtol * np.abs(wanted)
                    shares.append(float((np.abs(output - wanted) / allowed).max()))
            assert runner.measure(3).shape == (3,)
            return runner.conditions(), max(shares)
        finally:
            runner.close()


@pytest.fixture
def board(version: str, doubles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv(board_python.PYTHON, str(doubles[version]))
    monkeypatch.setenv(board_files.CACHE_VARIABLE, str(tmp_path / "cache"))
    return Board(Home.find(tmp_path / "home"), [])


@EITHER
@pytest.mark.parametrize("precision", ["fp32", "fp16", "autocast"])
def test_precisions_are_what_the_dialect_makes_of_them(
    version: str, precision: str, board: Board, tmp_path: Path
) -> None:
    built = board.built(convnet(tmp_path / "net.onnx"), precision=precision)
    weak = version == "2.8.0"
    if weak and precision == "autocast":
        with pytest.raises(FleetError, match="has no precision 'autocast'"):
            board.run(built)
        return
    found, share = board.run(built)
    assert share < 1
    # Nobody can take this for a result of TensorRT.
    assert found["torch_tensorrt"] == f"{version}+double" and found["tensorrt"].endswith("+double")
    assert "stands for a Jetson" in found["device"]
    assert found["engine"] == "torch-tensorrt" and found["engines"] == "1" and found["fallback"] == ""
    assert found["typing"] == ("weak typing" if weak else "strong typing")
    # What ran, not what was asked for: weak typing computes in halves between inputs and weights of float32.
    halves = precision == "fp16" and not weak
    assert found["input_dtype"] == found["output_dtype"] == ("float16" if halves else "float32")
    assert found["weight_dtype"] == ("float16" if halves else "float32")
    kinds = {part.split(" ")[0] for part in found["layer_dtypes"].split(", ")}
    assert kinds == {"fp32": {"float32"}, "fp16": {"float16"}, "autocast": {"float16", "float32"}}[precision]


@EITHER
def test_the_second_load_takes_what_is_kept(version: str, board: Board, tmp_path: Path) -> None:
    built = board.built(convnet(tmp_path / "net.onnx"))
    first, _ = board.run(built)
    assert first["engine_from"].startswith("built here") and "build engines" in board.stages
    board.stages.clear()
    second, share = board.run(built)
    assert second["engine_from"].startswith("cache") and "build engines" not in board.stages
    assert share < 1
    same = {name: value for name, value in first.items() if name != "engine_from"}
    assert {name: second[name] for name in same} == same
    # Weights, precision: each is another engine. torch_tensorrt's own key has no weights in it.
    for other in (
        board.built(convnet(tmp_path / "other.onnx", head_seed=5)),
        board.built(tmp_path / "net.onnx", precision="fp16"),
    ):
        board.stages.clear()
        found, share = board.run(other)
        assert found["engine_from"].startswith("built here") and share < 1


def test_another_version_builds_anew(doubles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_files.CACHE_VARIABLE, str(tmp_path / "cache"))
    board = Board(Home.find(tmp_path / "home"), [])
    built = board.built(convnet(tmp_path / "net.onnx"))
    for version in (*VERSIONS, VERSIONS[0]):
        monkeypatch.setenv(board_python.PYTHON, str(doubles[version]))
        found, _ = board.run(built)
        assert found["torch_tensorrt"] == f"{version}+double"
        wanted = "cache" if version == VERSIONS[0] and board.stages.count("build engines") == 2 else "built here"
        assert found["engine_from"].startswith(wanted)
    assert board.stages.count("build engines") == 2


@EITHER
def test_an_engine_that_was_damaged_is_built_again(version: str, board: Board, tmp_path: Path) -> None:
    built = board.built(convnet(tmp_path / "net.onnx"))
    board.run(built)
    (kept,) = (tmp_path / "cache").rglob("*.ep")
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:1000])
    found, share = board.run(built)
    assert found["engine_from"].startswith("built here") and share < 1


@EITHER
def test_a_dynamic_batch(version: str, board: Board, tmp_path: Path) -> None:
    path = convnet(tmp_path / "net.onnx", batch="batch")
    found, share = board.run(board.built(path, batch=4, dynamic=True, precision="fp16"))
    assert share < 1 and found["engines"] == "1"


class _Gap(nn.Module):
    """Something in the middle that no engine takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.first(x)).mean((2, 3))
        boxes = torch.stack([x[:, :4], x[:, :4] + 1, x[:, 4:]], 1).reshape(1, 1, -1, 4)
        scores = torch.sigmoid(x).reshape(1, 1, -1)[:, :, : boxes.shape[2]]
        found = torch.ops.fleet.class_nms(boxes, scores, 0.0, 0.5, 0, 0, 2, 0.0, False)
        return self.last(x) * 2 + 1, found[1]


@EITHER
def test_what_torch_has_to_run_is_named(version: str, board: Board, tmp_path: Path) -> None:
    """An operator that no engine takes stays with torch, by name, also when the engine comes from the cache."""
    import targets.detection.operators  # noqa: F401

    torch.manual_seed(0)
    path = tmp_path / "gap.pt2"
    torch.export.save(torch.export.export(_Gap().eval(), (torch.rand(1, 3, 9, 9),)), path)
    built = board.built(path)
    for place in ("built here", "cache"):
        found, share = board.run(built)
        assert found["engine_from"].startswith(place)
        assert "fleet.class_nms.default" in found["fallback"] and int(found["engines"]) >= 1
        assert share < 1


class _Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


@EITHER
def test_a_network_of_which_nothing_is_taken_is_an_error(version: str, board: Board, tmp_path: Path) -> None:
    path = tmp_path / "nothing.pt2"
    torch.export.save(torch.export.export(_Nothing(), (torch.rand(1, 3),)), path)
    with pytest.raises(FleetError, match="TensorRT took nothing of this network") as raised:
        board.run(board.built(path))
    assert raised.value.code == "nothing-compiled"
