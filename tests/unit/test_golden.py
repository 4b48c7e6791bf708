"""Golden inputs: the same on every machine, and of the kind that the model is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from controller import golden
from targets.base import ModelError, Postprocess, Preprocess, SourceModel, TensorSpec

PICTURES = Preprocess(size=(24, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def test_samples_are_the_same_every_time_and_differ_from_each_other() -> None:
    spec = TensorSpec("x", (1, 3, 24, 32), "float32")
    for preprocess in (None, PICTURES):
        first, again, second = (golden.sample(spec, index, preprocess) for index in (0, 0, 1))
        assert np.array_equal(first, again) and not np.array_equal(first, second)
        assert first.shape == spec.shape and first.dtype == np.float32
    # A value that must never change: golden data of stored bundles would no longer be made again.
    assert float(golden.sample(TensorSpec("x", (3,), "float32"), 0, None)[0]).hex() == "0x1.a011d60000000p-4"


def test_pictures_are_in_the_range_of_normalised_pictures() -> None:
    for layout, shape in (("NCHW", (2, 3, 24, 32)), ("NHWC", (2, 24, 32, 3))):
        preprocess = Preprocess(size=(24, 32), mean=PICTURES.mean, std=PICTURES.std, layout=layout)  # type: ignore[arg-type]
        for index in (0, 1):
            values = golden.sample(TensorSpec("x", shape, "float32"), index, preprocess)
            channels = np.moveaxis(values, 1 if layout == "NCHW" else 3, 0)
            for channel, mean, std in zip(channels, PICTURES.mean, PICTURES.std, strict=True):
                assert channel.min() >= (0 - mean) / std - 1e-6 and channel.max() <= (1 - mean) / std + 1e-6
                assert channel.std() > 0.05


def test_integers_can_index_any_table_and_bytes_take_their_range() -> None:
    for dtype in ("int64", "int32", "int8", "bool"):
        values = golden.sample(TensorSpec("ids", (200,), dtype), 0, None)
        assert values.dtype.name == dtype and set(np.unique(values).tolist()) == {0, 1}
    values = golden.sample(TensorSpec("bytes", (2000,), "uint8"), 0, None)
    assert values.min() < 10 and values.max() > 245


def test_types_that_numpy_lacks() -> None:
    values = golden.sample(TensorSpec("x", (8,), "bfloat16"), 0, None)
    assert values.dtype.name == "bfloat16" and values.nbytes == 16


def test_the_light_installs_reference_agrees_with_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX Runtime the reference outputs come from ONNX's own evaluator, and the manifest says so."""
    noise = np.random.default_rng(0)
    weight = numpy_helper.from_array(noise.standard_normal((8, 3, 3, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [weight],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    inputs, outputs = (TensorSpec("x", (2, 3, 8, 8), "float32"),), (TensorSpec("y", (2, 8, 8, 8), "float32"),)
    source = SourceModel("net", "onnx", str(path), "0" * 64, "file:net.onnx", inputs, outputs)

    def made(folder: str) -> tuple[golden.GoldenData, list[np.ndarray]]:
        data = golden.make(source, inputs, outputs, tmp_path / folder)
        files = {file.name: file.path for file in data.files}
        return data, [np.fromfile(files[name], np.float32) for (name,) in data.outputs]

    full, expected = made("full")
    present = golden._version
    monkeypatch.setattr(golden, "_version", lambda name: "" if name == "onnxruntime" else present(name))
    light, found = made("light")
    assert full.reference.startswith("onnxruntime ") and light.reference.startswith("onnx.reference ")
    assert len(found) == golden.SETS and light.inputs == full.inputs
    for a, b in zip(found, expected, strict=True):
        assert a.size == 2 * 8 * 8 * 8 and np.allclose(a, b, atol=1e-5)


def test_outputs_that_prove_nothing_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    path = tmp_path / "log.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    spec = (TensorSpec("x", (1, 4), "float32"),)
    source = SourceModel("log", "onnx", str(path), "0" * 64, "file:log.onnx", spec, spec)
    with pytest.raises(ModelError, match="not finite"):
        golden.make(source, spec, spec, tmp_path)


DETECTIONS = Postprocess("detections")


def test_detectors_are_given_scenes_and_the_sizes_that_these_have() -> None:
    preprocess = Preprocess(size=(96, 90), resize="fit", canvas=(96, 96), mean=PICTURES.mean, std=PICTURES.std)
    images, sizes = TensorSpec("images", (3, 3, 96, 96), "float32"), TensorSpec("sizes", (3, 2), "float32")
    for index in (0, 1):
        pictures, inside = (golden.sample(spec, index, preprocess, DETECTIONS) for spec in (images, sizes))
        assert pictures.shape == images.shape and inside.dtype == np.float32
        assert len({tuple(size) for size in inside.tolist()}) == 3, "of several sizes"
        for picture, (height, width) in zip(pictures, inside.astype(int).tolist(), strict=True):
            assert 0 < height <= 96 and 0 < width <= 90
            assert not picture[:, height:].any() and not picture[:, :, width:].any()
            seen = picture[:, :height, :width].transpose(1, 2, 0) * preprocess.std + preprocess.mean
            assert seen.min() >= -1e-6 and seen.max() <= 1 + 1e-6
            # Edges, and areas between them.
            steps = np.abs(np.diff(seen, axis=1)).max(-1)
            assert steps.max() > 0.2 and np.median(steps) < 0.1
    stretched = [golden.sample(sizes, index, Preprocess(size=(30, 40)), DETECTIONS).tolist() for index in (0, 1)]
    assert stretched == [[[30, 40]] * 3] * 2
    grey = Preprocess(size=(32, 32), colour="L", mean=(0.5,), std=(0.5,), layout="NHWC")
    assert golden.sample(TensorSpec("x", (1, 32, 32, 1), "float32"), 0, grey, DETECTIONS).std() > 0.05
    # Rules that do not fit the input are found where somebody's picture is prepared.
    assert golden.sample(images, 0, Preprocess(size=(8, 8)), DETECTIONS).shape == images.shape


def test_scenes_hold_something_that_a_trained_detector_finds(tmp_path: Path) -> None:
    from controller import zoo
    from controller.home import Home
    from targets.pictures.answers import detect
    from targets.pictures.place import place

    source = zoo.source("shapes-ssd", "", Home.find(tmp_path))
    assert source.preprocess is not None and source.postprocess is not None
    data = golden.make(source, source.inputs, source.outputs, tmp_path / "golden")
    where = place((128, 128), source.preprocess)
    for names in data.outputs:
        outputs = [
            np.fromfile(tmp_path / "golden" / name, spec.dtype).reshape(spec.shape)
            for name, spec in zip(names, source.outputs, strict=True)
        ]
        found = detect(outputs, source.outputs, source.postprocess, where, threshold=0.5)
        assert len(found) >= 1
