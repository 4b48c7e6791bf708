"""What the host makes for Ascend boards: graphs in the opset that was published, in parts that are one file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from controller import sources
from controller.home import Home
from controller.zoo import export as zoo_export
from targets.ascend import aipp
from targets.ascend.host import AscendHost
from targets.ascend.onnx_export import export
from targets.ascend.onnx_parts import SMALL, join, split
from targets.ascend.opset import CannotLower, lowered
from targets.ascend.plan import AIPP, ENTRY, GRAPH, HEAD, Tensor, decode
from targets.base import BuildOutput, FleetError, ModelError, Preprocess, SourceModel, TensorSpec
from targets.files import hash_file


def _run(model: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    copy = type(model)()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, 10)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {one.name: array for one, array in zip(session.get_inputs(), inputs, strict=True)}))


def _model(nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], opset: int = 18) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


_INTEGERS = np.array([2, 3])
_NODES = {
    "split": ([helper.make_node("Split", ["x", "sizes"], ["a", "y"], axis=1)], {"sizes": np.array([1, 3])}),
    "split in equal parts": ([helper.make_node("Split", ["x"], ["a", "y"], axis=1, num_outputs=2)], {}),
    "mean": ([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], {"axes": _INTEGERS}),
    "mean of all": ([helper.make_node("ReduceMean", ["x"], ["y"])], {}),
    "squeeze": (
        [helper.make_node("Unsqueeze", ["x", "axes"], ["a"]), helper.make_node("Squeeze", ["a", "axes"], ["y"])],
        {"axes": np.array([0])},
    ),
    "reshape": ([helper.make_node("Reshape", ["x", "to"], ["y"], allowzero=1)], {"to": np.array([1, -1])}),
    "softmax": ([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], {}),
    "arithmetic": (
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Add", ["a", "x"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node("Identity", ["c"], ["y"]),
        ],
        {},
    ),
}


@pytest.mark.parametrize("name", _NODES)
def test_an_older_opset_computes_the_same(name: str) -> None:
    nodes, constants = _NODES[name]
    model = onnx.shape_inference.infer_shapes(_model(nodes, constants, [1, 4, 6, 5]))
    older = lowered(model, 11)
    assert older.opset_import[0].version == 11 and older.ir_version <= 6
    assert model.opset_import[0].version == 18
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(_run(model, x)[0], _run(older, x)[0])


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (helper.make_node("HardSwish", ["x"], ["y"]), {}, "HardSwish"),
        (helper.make_node("Softmax", ["x"], ["y"], axis=1), {}, "another axis"),
        (helper.make_node("Reshape", ["x", "to"], ["y"], allowzero=1), {"to": np.array([0, 4])}, "allowzero"),
        (helper.make_node("Mish", ["x"], ["y"]), {}, "Mish"),
    ],
)
def test_what_an_older_opset_cannot_say(node: Any, constants: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(CannotLower, match=words):
        lowered(_model([node], constants, [1, 4, 6, 5]), 11)


def test_parts_are_the_same_file_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    large = {f"w{n}": noise.standard_normal((4, 4, 30 + n)).astype(np.float32) for n in range(3)}
    large["half"] = noise.standard_normal((700,)).astype(np.float16)
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {**large, "few": np.array([1, 2])}, [1, 4])
    parts = split(model)
    assert [tensor.name for tensor, _ in parts.tensors] == list(large)
    tensors = []
    for tensor, data in parts.tensors:
        assert len(data) >= SMALL
        (tmp_path / tensor.name).write_bytes(data)
        tensors.append(Tensor(tensor.name, tuple(tensor.dims), tensor.data_type, tensor.name))
    target = tmp_path / "model.onnx"
    join(parts.head, parts.graph, tensors, tmp_path.__truediv__, target)
    again = onnx.load(target)
    found = {each.name: numpy_helper.to_array(each) for each in again.graph.initializer}
    assert found.keys() == {*large, "few"}
    for name, array in large.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    del again.graph.initializer[:], model.graph.initializer[:]
    assert again == model


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


_PREPROCESS = Preprocess(size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _pt2(folder: Path) -> SourceModel:
    torch.manual_seed(0)
    path = folder / "small.pt2"
    path.write_bytes(zoo_export.exported(_Small().eval(), (torch.zeros(2, 3, 16, 16),)))
    return SourceModel(
        name="small",
        format="pt2",
        path=str(path),
        sha256=hash_file(path),
        origin="file:small.pt2",
        inputs=(TensorSpec("image", (-1, 3, 16, 16), "float32", "NCHW"),),
        outputs=(TensorSpec("logits", (-1, 5), "float32"),),
        preprocess=_PREPROCESS,
    )


def test_a_network_of_torch_has_the_published_opset_and_names(tmp_path: Path) -> None:
    source = _pt2(tmp_path)
    made = export(source, batch=3)
    assert made.open_batch and not made.warnings
    assert made.inputs == (TensorSpec("image", (3, 3, 16, 16), "float32", "NCHW"),)
    assert made.outputs == (TensorSpec("logits", (3, 5), "float32"),)
    assert made.model.opset_import[0].version == 11
    assert [value.name for value in (*made.model.graph.input, *made.model.graph.output)] == ["image", "logits"]
    x = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = _Small().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(_run(made.model, x)[0], wanted, atol=1e-5)


def test_the_same_network_is_exported_to_the_same_bytes(tmp_path: Path) -> None:
    source = _pt2(tmp_path)
    first, second = (export(source).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second and b"test_ascend_host" not in first


def test_the_published_network_has_its_names(tmp_path: Path) -> None:
    source = sources.resolve("ssd300_resnet34", weights="random:0", home=Home.find(tmp_path))
    made = export(source, batch=1)
    assert made.model.opset_import[0].version == 11 and not made.warnings and made.open_batch
    assert [spec.name for spec in made.inputs] == ["image"]
    assert {spec.name: spec.shape for spec in made.outputs} == {"ploc": (1, 4, 8732), "plabel": (1, 81, 8732)}


def test_boxes_found_inside_are_not_for_atc(tmp_path: Path) -> None:
    source = sources.resolve("shapes-ssd@boxes", home=Home.find(tmp_path))
    with pytest.raises(ModelError, match="finds its boxes inside") as caught:
        export(source)
    assert "raw outputs" in caught.value.hint


def _onnx(folder: Path, name: str = "x", batch: int | str = "N") -> SourceModel:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {}, [batch, 3, 8, 8], opset=13)
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    path = folder / "file.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return sources.resolve(str(path), home=Home.find(folder))


def test_a_file_keeps_its_opset_unless_another_is_asked_for(tmp_path: Path) -> None:
    source = _onnx(tmp_path)
    assert export(source).model.opset_import[0].version == 13
    assert export(source, opset=11).model.opset_import[0].version == 11


def test_a_name_that_no_command_line_can_carry_is_changed(tmp_path: Path) -> None:
    made = export(_onnx(tmp_path, "images:0"))
    assert made.model.graph.input[0].name == made.model.graph.node[0].input[0] == "images_0"
    assert made.inputs[0].name == "images:0"


def test_batches_open_a_fixed_one(tmp_path: Path) -> None:
    made = export(_onnx(tmp_path, batch=1), batch=4, batches=(1, 4))
    assert made.open_batch and made.inputs[0].shape == (4, 3, 8, 8)


def _built(source: SourceModel, folder: Path, **options: Any) -> BuildOutput:
    folder.mkdir(exist_ok=True)
    return AscendHost().build(source, options, folder, lambda _stage, _share: None)


def test_what_is_built_is_the_same_file_on_the_board(tmp_path: Path) -> None:
    source = _pt2(tmp_path)
    built = _built(source, tmp_path / "build", batch=2, soc_version="Ascend310P3")
    assert built.entry == ENTRY and built.requirements.accelerator == "Ascend310P3"
    paths = {file.name: Path(file.path) for file in built.files}
    plan = decode(paths[ENTRY].read_bytes())
    assert plan.batch == 2 and plan.inputs[0].name == "image" and len(plan.tensors) == len(built.parameters) > 0
    target = tmp_path / "board.onnx"
    join(paths[HEAD].read_bytes(), paths[GRAPH].read_bytes(), plan.tensors, paths.__getitem__, target)
    x = np.random.default_rng(3).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(_run(onnx.load(target), x)[0], _run(export(source).model, x)[0])


def test_another_batch_has_the_same_blobs_but_for_the_entry(tmp_path: Path) -> None:
    source = _pt2(tmp_path)
    digests = [
        {file.name: hash_file(Path(file.path)) for file in _built(source, tmp_path / f"b{batch}", batch=batch).files}
        for batch in (1, 8)
    ]
    assert {name for name in digests[0] if digests[0][name] != digests[1][name]} == {ENTRY}


def test_with_aipp_pictures_are_bytes(tmp_path: Path) -> None:
    built = _built(_pt2(tmp_path), tmp_path / "build", batch=1, aipp=True)
    assert built.inputs == (TensorSpec("image", (1, 16, 16, 3), "uint8", "NHWC"),)
    assert built.preprocess is not None and built.preprocess.layout == "NHWC"
    text = next(Path(file.path) for file in built.files if file.name == AIPP).read_text()
    assert "min_chn_0: 123.675" in text and "var_reci_chn_0: 0.0171247" in text and "src_image_size_w: 16" in text
    from targets.pictures.prepare import batch

    noise = np.random.default_rng(4).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    from PIL import Image

    [prepared] = batch([Image.fromarray(noise)], built.preprocess, built.inputs)
    np.testing.assert_array_equal(prepared[0], noise)


def test_aipp_is_for_pictures() -> None:
    spec = TensorSpec("x", (1, 10), "float32")
    with pytest.raises(ModelError, match="does not take pictures"):
        aipp.prepared(spec, _PREPROCESS, "net")
    with pytest.raises(ModelError, match="larger canvas"):
        canvas = Preprocess(size=(8, 8), canvas=(16, 16), resize="fit")
        aipp.prepared(TensorSpec("x", (1, 3, 16, 16), "float32"), canvas, "net")


@pytest.mark.parametrize("opset", [7, 19])
def test_opsets_that_there_are_not(tmp_path: Path, opset: int) -> None:
    with pytest.raises(FleetError, match="between 11 and 18"):
        _built(_onnx(tmp_path), tmp_path / "build", opset=opset)
