"""Reading ONNX files that may be anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from targets import onnx_model
from targets.base import ModelError


def dense(batch: int | str = 1, features: int | str = 4) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        onnx_model.read(path)
    assert all(word in caught.value.message for word in words), caught.value.message
    return caught.value


def test_a_good_file(tmp_path: Path) -> None:
    model = onnx_model.read(saved(dense("n"), tmp_path / "m.onnx"))
    inputs, outputs = onnx_model.inputs_and_outputs(model)
    assert [(spec.name, spec.shape, spec.dtype) for spec in inputs] == [("x", (-1, 4), "float32")]
    assert [(spec.name, spec.shape) for spec in outputs] == [("y", (-1, 3))]


def test_files_that_are_not_models(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "No such file")
    refused(tmp_path, "cannot read")
    whole = dense().SerializeToString()
    for name, data in {
        "empty": b"",
        "text": b"hello world",
        "cut": whole[: len(whole) // 2],
        "zip": b"PK\x03\x04",
    }.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        assert refused(path, "not an ONNX").hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_damage_gives_a_model_or_a_model_error(at: int, change: int, cut: bool, tmp_path: Path) -> None:
    data = bytearray(dense().SerializeToString())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= change
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    try:
        onnx_model.inputs_and_outputs(onnx_model.read(path))
    except ModelError as error:
        assert error.message


def test_an_invalid_graph_is_refused_with_the_checkers_words(tmp_path: Path) -> None:
    model = dense()
    model.graph.node[0].input[1] = "nowhere"
    refused(saved(model, tmp_path / "m.onnx"), "not a valid ONNX model", "nowhere")


def external(folder: Path, location: str) -> Path:
    """A model whose weight lies in another file."""
    model = dense()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "48"}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_in_the_models_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(np.full((4, 3), 2, np.float32).tobytes())
    model = onnx_model.read(external(tmp_path, "m.data"))
    assert not onnx_model.has_external(model)
    assert (numpy_helper.to_array(model.graph.initializer[0]) == 2).all()


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link/secret", ""])
def test_external_data_outside_it_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    refused(external(folder, location), "outside the model's folder")


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    refused(external(tmp_path, "m.data"), "there is no such file")
    (tmp_path / "m.data").write_bytes(bytes(10))
    refused(external(tmp_path, "m.data"))


def test_shapes_are_fixed(tmp_path: Path) -> None:
    for batch, asked, found in (("n", 0, 1), ("n", 5, 5), (1, 0, 1), (1, 7, 7)):
        fixed = onnx_model.fix_shapes(dense(batch), asked)
        inputs, outputs = onnx_model.inputs_and_outputs(fixed)
        assert (inputs[0].shape, outputs[0].shape) == ((found, 4), (found, 3))


def test_another_open_dimension_is_named() -> None:
    with pytest.raises(ModelError, match=r"dimension 1 \('width'\) of input 'x'"):
        onnx_model.fix_shapes(dense(1, "width"), 0)


def test_constants_and_functions_become_plain() -> None:
    model = dense()
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 3])
    scale = helper.make_node("Constant", [], ["scale"], value_float=2.0)
    double = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model.functions.append(double)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[0].output[0] = "product"
    nodes = [
        helper.make_node("Double", ["product"], ["doubled"], domain="local"),
        helper.make_node("Mul", ["doubled", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["y"]),
    ]
    given = [shape, scale, *model.graph.node, *nodes]
    del model.graph.node[:]
    model.graph.node.extend(given)
    onnx.checker.check_model(model)
    found = onnx_model.plain(model)
    onnx.checker.check_model(found)
    assert {node.op_type for node in found.graph.node} == {"Constant", "MatMul", "Add", "Mul", "Reshape"}
    values = [numpy_helper.to_array(n.attribute[0].t) for n in found.graph.node if n.op_type == "Constant"]
    assert [(value.dtype.name, value.tolist()) for value in values] == [("int64", [1, 3]), ("float32", 2.0)]
