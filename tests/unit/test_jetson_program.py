"""Programs for Jetsons: taken apart on the host, built again by a board's torch, number by number the same."""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from build_fixtures import model as onnx_model_of
from onnx import helper
from torch import Tensor, nn

from targets.base import FleetError, ModelError, SourceModel, TensorSpec
from targets.jetson import dialects, options, program, rebuild

CPU = torch.device("cpu")


def _weights(made: Any, files: Sequence[Any]) -> list[Tensor]:
    return [
        torch.from_file(file.path, size=math.prod(file.tensor.shape), dtype=getattr(torch, file.tensor.dtype)).reshape(
            file.tensor.shape
        )
        for file in files
    ]


def _again(exported: Any, folder: Path) -> tuple[Any, list[Any]]:
    folder.mkdir()
    entry, files = program.write(exported, folder)
    read = rebuild.read(entry.path)
    return rebuild.build(read, _weights(read, files), CPU), files


class Mixed(nn.Module):
    """Lists, several results, whole numbers, what is made anew, sizes that follow the batch."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.relu_(self.norm(self.conv(x)))
        first, second = x.split([3, 5], 1)
        x = torch.cat([second, first], 1)
        values, places = self.head(x.mean((2, 3))).topk(2, 1)
        grid = torch.arange(x.shape[0], device=x.device).to(torch.float32).reshape(x.shape[0], 1) + self.steps
        return values, places, torch.nn.functional.pad(grid, (1, 0), "constant", 0.5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_gives_the_same_numbers_when_it_is_built_again(dynamic: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Mixed().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},) if dynamic else None
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    module, files = _again(exported, tmp_path / "made")
    for batch in (1, 2, 5) if dynamic else (2,):
        x = torch.randn(batch, 3, 8, 8)
        for mine, wanted in zip(module(x), net(x), strict=True):
            assert mine.dtype == wanted.dtype and torch.equal(mine, wanted)
    # What no operator takes (the counter of a batch norm) does not travel.
    assert len(files) == 9 and all(file.role == "weight" for file in files)
    # A board's own torch can export it again, which is how its compilers are given it.
    again = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    assert len(list(again.graph.nodes)) > 10


def test_a_retrained_last_layer_changes_its_own_files_only(tmp_path: Path) -> None:
    contents = []
    for seed in (1, 2):
        torch.manual_seed(0)
        net = Mixed().eval()
        torch.manual_seed(seed)
        net.head.reset_parameters()
        exported = torch.export.export(net, (torch.randn(2, 3, 8, 8),))
        entry, files = program.write(exported, _made(tmp_path / str(seed)))
        contents.append({file.name: Path(file.path).read_bytes() for file in (entry, *files)})
    changed = [name for name, data in contents[0].items() if contents[1][name] != data]
    assert contents[0].keys() == contents[1].keys()
    assert sum(len(contents[1][name]) for name in changed) == (5 * 8 + 5) * 4


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.ops.aten",
        "torch.load",
        "torch.ops.evil.run.default",
        "_operator.attrgetter",
        "builtins.eval",
    ],
)
def test_only_operators_that_compute_can_be_named(target: str) -> None:
    text = {"format": 1, "inputs": ["x"], "weights": [], "outputs": ["y"]}
    node = {
        "target": target,
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "y"}}],
    }
    with pytest.raises(rebuild.ProgramError, match="none that may be called"):
        rebuild.build({**text, "nodes": [node]}, [], CPU)


def test_an_operator_that_this_torch_lacks_is_named(tmp_path: Path) -> None:
    node = {"target": "torch.ops.aten.of_the_future.default", "inputs": [], "outputs": [{"as_tensor": {"name": "y"}}]}
    text = {"format": 1, "inputs": ["x"], "weights": [], "nodes": [node], "outputs": ["y"]}
    with pytest.raises(rebuild.ProgramError, match="has no operator torch"):
        rebuild.build(text, [], CPU)
    path = tmp_path / "program.json"
    path.write_text(json.dumps({**text, "format": 99}))
    with pytest.raises(rebuild.ProgramError, match="another format"):
        rebuild.read(str(path))


# --- ONNX ---------------------------------------------------------------------------------------

_NOISE = np.random.default_rng(0)
_X = {"x": [2, 4, 9, 9]}
#: Nodes from ``x`` to ``y``, and constants that they take.
NETWORKS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "conv": (
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2])],
        {"w": _NOISE.standard_normal((6, 4, 3, 3)), "b": _NOISE.standard_normal(6)},
    ),
    "grouped conv with uneven padding": (
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[0, 1, 1, 2])],
        {"w": _NOISE.standard_normal((4, 2, 3, 3))},
    ),
    "max pool with uneven padding": (
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])],
        {},
    ),
    "max pool, rounded up": (
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
        {},
    ),
    "average pool": (
        [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)],
        {},
    ),
    "average pool of the padding": (
        [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        {},
    ),
    "batch norm, pool, gemm": (
        [
            helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"], epsilon=1e-3),
            helper.make_node("GlobalAveragePool", ["n"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "c"], ["y"], alpha=0.5, beta=2.0),
        ],
        {
            **{name: np.abs(_NOISE.standard_normal(4)) + 0.5 for name in "sbmv"},
            "w": _NOISE.standard_normal((4, 7)),
            "c": _NOISE.standard_normal(7),
        },
    ),
    "arithmetic": (
        [
            helper.make_node("Mul", ["x", "w"], ["a"]),
            helper.make_node("Sigmoid", ["a"], ["b"]),
            helper.make_node("Sub", ["b", "x"], ["c"]),
            helper.make_node("Div", ["c", "w"], ["d"]),
            helper.make_node("Clip", ["d", "low", "high"], ["e"]),
            helper.make_node("LeakyRelu", ["e"], ["g"], alpha=0.3),
            helper.make_node("Softmax", ["g"], ["y"], axis=1),
        ],
        {"w": _NOISE.standard_normal((1, 4, 1, 1)) + 3, "low": -2.0, "high": 2.0},
    ),
    "shapes": (
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Concat", ["t", "t"], ["c"], axis=-1),
            helper.make_node("Flatten", ["c"], ["f"], axis=1),
            helper.make_node("Identity", ["f"], ["y"]),
        ],
        {},
    ),
}


def _source(path: Path, nodes: list[Any], constants: dict[str, Any], opset: int = 18) -> SourceModel:
    built = onnx_model_of(nodes, _X, {"y": []}, constants, opset=opset)
    built.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(onnx.shape_inference.infer_shapes(built), path)
    from targets import onnx_model

    inputs, outputs = onnx_model.inputs_and_outputs(onnx_model.read(path))
    return SourceModel("net", "onnx", str(path), "0" * 64, "file:net.onnx", inputs, outputs)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_an_onnx_network_computes_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    import onnxruntime

    source = _source(tmp_path / "net.onnx", *NETWORKS[name])
    exported = program.export(source, 0, False)
    module, _ = _again(exported.program, tmp_path / "made")
    x = np.random.default_rng(1).standard_normal(_X["x"]).astype(np.float32)
    session = onnxruntime.InferenceSession(source.path, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    found = module(torch.from_numpy(x)).detach().numpy()
    assert found.shape == wanted.shape == exported.outputs[0].shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("node", "opset", "words"),
    [
        (helper.make_node("Hardmax", ["x"], ["y"], name="odd"), 18, r"operator Hardmax \(odd\).*none of those"),
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
            18,
            r"operator MaxPool \(node 0\).*pads SAME_UPPER",
        ),
        (helper.make_node("Softmax", ["x"], ["y"]), 12, "opset 12; 13 and newer"),
        (helper.make_node("Reshape", ["x", "x2"], ["y"]), 18, "its shape is computed"),
    ],
)
def test_what_an_onnx_network_cannot_be_made_of_is_named(node: Any, opset: int, words: str, tmp_path: Path) -> None:
    before: list[Any] = []
    if node.op_type == "Reshape":
        before = [helper.make_node("Shape", ["x"], ["x2"])]
    source = _source(tmp_path / "net.onnx", [*before, node], {}, opset)
    with pytest.raises(ModelError, match="Shape|" + words) as refused:
        program.export(source, 0, False)
    assert refused.value.hint


def test_another_batch_than_the_file_allows_is_refused(tmp_path: Path) -> None:
    exported = torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),))
    torch.export.save(exported, tmp_path / "net.pt2")
    specs = (TensorSpec("x", (4, 3), "float32"),), (TensorSpec("y", (4, 2), "float32"),)
    source = SourceModel("net", "pt2", str(tmp_path / "net.pt2"), "0" * 64, "file:net.pt2", *specs)
    assert program.export(source, 0, False).inputs[0].shape == (4, 3)
    with pytest.raises(ModelError, match="is exported for batch 4 and cannot be built for 2"):
        program.export(source, 2, False)


# --- Options and dialects -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "tensorflow"}, "no engine 'tensorflow'"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"batch": 0, "dynamic": True}, "needs its largest"),
        ({"batch": 5000}, "a batch is 1 to"),
        ({"workspace_mb": -1}, "a workspace is"),
        ({"engine": "torchscript", "dynamic": True, "batch": 4}, "traced for one batch"),
        ({"engine": "eager", "arch": "orin"}, "needs no 'arch'"),
        ({"precision": "int8", "dynamic": True, "batch": 4}, "calibrated for one batch"),
        ({"dynamic": 1}, "must be a bool"),
        ({"turbo": True}, "no option 'turbo'"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(FleetError, match=words) as refused:
        options.resolve(given)
    assert refused.value.code == "bad-option"


@pytest.mark.parametrize(
    ("version", "name"),
    [("2.8.0", "weak typing"), ("2.9.1+jp62", "weak typing"), ("2.10.0", "strong typing"), ("3.0.0", "strong typing")],
)
def test_each_version_has_its_dialect(version: str, name: str) -> None:
    assert dialects.choose(version).name == name


@pytest.mark.parametrize("version", ["1.4.0", "2.4.0", "unknown", ""])
def test_a_version_without_a_dialect_is_named(version: str) -> None:
    with pytest.raises(ValueError, match=r"older than 2\.\d"):
        dialects.choose(version)


# --- What runs in the board's Python ------------------------------------------------------------

_FOLDER = Path(rebuild.__file__).parent
_BOARD = sorted([*_FOLDER.glob("engines/*.py"), *(_FOLDER / f"{name}.py" for name in ("helper", "words", "rebuild"))])
_BOARD += [_FOLDER / "dialects.py", _FOLDER.parent / "pynq" / "helper.py"]
_ITS_OWN = ("torch", "torch_tensorrt", "targets")


@pytest.mark.parametrize("path", _BOARD, ids=lambda path: path.stem)
def test_it_is_written_in_python_3_8_and_needs_nothing_but_torch(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] in (*_ITS_OWN, *sys.stdlib_module_names), f"{path.name} imports {name}"
        # Functions that Python 3.8 has not, under a name that it could be called by.
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("removeprefix", "removesuffix", "bit_count"), f"{path.name}: {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not node.keywords, f"{path.name}: zip(strict=…) is of Python 3.10"
