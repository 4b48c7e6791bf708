"""Sorting and non-maximum suppression against torch and torchvision, and against what TVM makes of the operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from targets.cpu import operators, passes
from targets.cpu.kernels.nms import AllClassNms, all_class_nms
from targets.cpu.kernels.sort import Sort, key_bits, sort
from targets.cpu.machine import X86_MACHINE
from targets.cpu.schedule import schedule

Array = npt.NDArray[Any]
PROCESSOR = X86_MACHINE.processor("host")
TARGET = tvm.target.Target({"kind": "llvm", "mcpu": PROCESSOR.mcpu})
DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


def compiled(function: Any) -> Any:
    return tvm.compile(tvm.IRModule({"main": function}), target=TARGET)["main"]


def sorted_by_kernel(x: Array, spec: Sort) -> tuple[Array, Array]:
    values, indices = np.zeros(spec.result, x.dtype), np.full(spec.result, -1, spec.index_dtype)
    arguments = [tvm.runtime.tensor(array) for array in (x, values, indices)]
    compiled(sort(spec, "main"))(*arguments)
    return arguments[1].numpy(), arguments[2].numpy()


def numbers(dtype: str, shape: tuple[int, ...], many_equal: bool) -> Array:
    """Noise of a type over its whole range, or so little of it that numbers repeat."""
    noise = np.random.default_rng(math.prod(shape))
    if dtype == "bool":
        return noise.random(shape) < 0.5
    if dtype.startswith("float"):
        x = noise.standard_normal(shape) * 100
        return (np.round(x / 50) if many_equal else x).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = (max(limits.min, -3), 3) if many_equal else (limits.min, limits.max)
    return noise.integers(low, high, shape, dtype=dtype, endpoint=True)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    descending=st.booleans(),
    many_equal=st.booleans(),
)
def test_sort_of_any_axis(
    shape: tuple[int, ...], data: st.DataObject, dtype: str, descending: bool, many_equal: bool
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    x = numbers(dtype, shape, many_equal)
    index_dtype = data.draw(st.sampled_from(("int32", "int64")))
    spec = Sort(shape, axis, k, descending, dtype=dtype, index_dtype=index_dtype)
    values, indices = sorted_by_kernel(x, spec)
    expected = torch.sort(torch.from_numpy(x), dim=axis, descending=descending, stable=True)
    np.testing.assert_array_equal(values, expected.values.narrow(axis, 0, k).numpy())
    np.testing.assert_array_equal(indices, expected.indices.narrow(axis, 0, k).numpy())


@pytest.mark.parametrize("length", [63, 64, 2047, 2048, 8732])
@pytest.mark.parametrize("k", [1, 5, 0.25, 1.0])
def test_few_of_many(length: int, k: float) -> None:
    """Rows around the lengths at which the way of sorting changes; few of them, and all."""
    count = int(k * length) if isinstance(k, float) else k
    x = numbers("float32", (3, length), many_equal=length % 2 == 1)
    values, indices = sorted_by_kernel(x, Sort((3, length), 1, count, True))
    expected = torch.sort(torch.from_numpy(x), dim=1, descending=True, stable=True)
    np.testing.assert_array_equal(values, expected.values[:, :count])
    np.testing.assert_array_equal(indices, expected.indices[:, :count])


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_zeros_are_equal_and_nan_is_the_largest(dtype: str, descending: bool) -> None:
    x = np.array([0.0, -0.0, 1, np.nan, -np.inf, np.inf, -1, -np.nan, 0.0, -0.0, 1e-7, -1e-7], dtype)
    values, indices = sorted_by_kernel(x, Sort(x.shape, 0, len(x), descending, dtype=dtype))
    expected = torch.sort(torch.from_numpy(x), dim=0, descending=descending, stable=True)
    np.testing.assert_array_equal(indices, expected.indices.numpy())
    np.testing.assert_array_equal(values, expected.values.numpy())


def test_types_without_order_are_named() -> None:
    for dtype in ("bfloat16", "float8_e4m3fn", "handle"):
        with pytest.raises(ValueError, match=dtype):
            key_bits(dtype)


# --- Non-maximum suppression --------------------------------------------------------------------


def scene(batch: int, classes: int, boxes: int, seed: int, equal: bool = False) -> tuple[Array, Array]:
    """Boxes with corners in any order, and probabilities; ``equal`` makes many scores the same."""
    noise = np.random.default_rng(seed)
    centres, sizes = noise.random((batch, boxes, 2)), noise.random((batch, boxes, 2)) * 0.6 - 0.3
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1).astype("float32")
    powers = np.exp(noise.standard_normal((batch, classes, boxes)) * 2)
    scores = (powers / powers.sum(1, keepdims=True)).astype("float32")
    return corners, np.round(scores, 1) if equal else scores


def selected(spec: AllClassNms, boxes: Array, scores: Array) -> Array:
    rows = spec.batch * spec.classes * spec.most
    arrays = (boxes, scores, np.full((rows, 3), -1, "int64"), np.zeros(1, "int64"))
    arguments = [tvm.runtime.tensor(array) for array in arrays]
    compiled(all_class_nms(spec, "main"))(*arguments)
    found: Array = arguments[2].numpy()[: int(arguments[3].numpy()[0])]
    return found


def by_torchvision(spec: AllClassNms, boxes: Array, scores: Array) -> Array:
    ordered = np.concatenate(
        [np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1
    )
    rows = []
    for batch in range(spec.batch):
        for label in range(spec.classes):
            score = torch.from_numpy(scores[batch, label])
            above = torch.nonzero(score > spec.score_threshold)[:, 0]
            kept = torchvision.ops.nms(torch.from_numpy(ordered[batch])[above], score[above], spec.iou_threshold)
            rows += [(batch, label, int(box)) for box in above[kept][: spec.most]]
    return np.array(rows, "int64").reshape(-1, 3)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    classes=st.integers(1, 4),
    boxes=st.integers(1, 120),
    data=st.data(),
    iou=st.sampled_from((0.05, 0.3, 0.5, 0.9)),
    score=st.sampled_from((0.0, 0.05, 0.3, 0.99)),
    lanes=st.sampled_from((16, 8, 4)),
)
def test_nms_is_torchvisions(
    batch: int, classes: int, boxes: int, data: st.DataObject, iou: float, score: float, lanes: int
) -> None:
    spec = AllClassNms(batch, classes, boxes, data.draw(st.integers(1, boxes)), iou, score, lanes)
    corners, scores = scene(batch, classes, boxes, seed=boxes)
    np.testing.assert_array_equal(selected(spec, corners, scores), by_torchvision(spec, corners, scores))


def test_equal_scores_come_in_the_order_of_the_boxes() -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [5, 5, 6, 6], [9, 9, 8, 8]]], "float32")
    scores = np.full((1, 1, 4), 0.5, "float32")
    found = selected(AllClassNms(1, 1, 4, 4, 0.5, 0.1, 4), boxes, scores)
    assert found[:, 2].tolist() == [0, 2, 3]
    # A box of no size overlaps nothing.
    found = selected(AllClassNms(1, 1, 4, 4, 0.5, 0.1, 4), np.zeros_like(boxes), scores)
    assert found[:, 2].tolist() == [0, 1, 2, 3]


def through_relax(module: Any, *inputs: Array, own: bool) -> list[Array]:
    """What a module computes, by our kernels or as TVM has its operators; ours must not need TVM's compiler."""
    if own:
        module = operators.kernels(PROCESSOR)(module)
        text = module.script()
        assert "vision." not in text and "sort(" not in text and "topk(" not in text
    pipeline = passes.lower(schedule(PROCESSOR)) if own else "default"
    with TARGET:
        executable = tvm.compile(module, target=TARGET, relax_pipeline=pipeline)
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs))
    return [part.numpy() for part in (result if isinstance(result, tvm.ir.Array | list | tuple) else [result])]


def network(inputs: dict[str, Array], build: Any) -> Any:
    builder = relax.BlockBuilder()
    parameters = [relax.Var(name, relax.TensorType(array.shape, str(array.dtype))) for name, array in inputs.items()]
    with builder.function("main", parameters):
        with builder.dataflow():
            outputs = builder.emit(build(*parameters))
            result = builder.emit_output(outputs)
        builder.emit_func_output(result)
    return builder.finalize()


def all_class(boxes: Array, scores: Array, most: int, iou: float, score: float) -> Any:
    def build(b: Any, s: Any) -> Any:
        thresholds = (relax.const(iou, "float32"), relax.const(score, "float32"))
        return relax.op.vision.all_class_non_max_suppression(b, s, relax.const(most, "int64"), *thresholds, "onnx")

    return network({"boxes": boxes, "scores": scores}, build)


@pytest.mark.parametrize("score", [-2.0, -0.5, 0.0, 0.2])
@pytest.mark.parametrize("iou", [0.0, 0.4])
def test_all_class_nms_means_what_relax_does(score: float, iou: float) -> None:
    """Negative scores and thresholds that keep nothing too."""
    boxes, scores = scene(2, 3, 40, seed=1, equal=True)
    scores = scores * 2 - 0.6
    module = all_class(boxes, scores, 3, iou, score)
    ours, theirs = (through_relax(module, boxes, scores, own=own) for own in (True, False))
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_file_may_ask_for_more_boxes_than_there_are() -> None:
    boxes, scores = scene(1, 2, 30, seed=2)
    asked, all_there_are = (
        through_relax(all_class(boxes, scores, most, 0.5, 0.0), boxes, scores, own=True) for most in (2**40, 30)
    )
    np.testing.assert_array_equal(asked[0], all_there_are[0])
    assert len(asked[0]) == asked[1][0] > 2


@settings(max_examples=12, deadline=None)
@given(
    most=st.sampled_from((-1, 4)),
    force=st.booleans(),
    top_k=st.sampled_from((-1, 10)),
    id_index=st.sampled_from((0, -1)),
    return_indices=st.booleans(),
    to_bottom=st.booleans(),
)
def test_nms_means_what_relax_does(
    most: int, force: bool, top_k: int, id_index: int, return_indices: bool, to_bottom: bool
) -> None:
    noise = np.random.default_rng(most + top_k + 2)
    boxes, scores = scene(2, 1, 30, seed=3, equal=True)
    labels = noise.integers(0, 2, (2, 30, 1)).astype("float32")
    data = np.concatenate([labels, scores.transpose(0, 2, 1) - 0.05, boxes], -1).astype("float32")
    inputs = {
        "data": data,
        "valid": np.array([30, 17], "int32"),
        "indices": noise.permuted(np.tile(np.arange(30, dtype="int32"), (2, 1)), axis=1),
    }

    def build(*args: Any) -> Any:
        flags = {"return_indices": return_indices, "invalid_to_bottom": to_bottom}
        return relax.op.vision.non_max_suppression(
            *args, most, 0.4, force, top_k, coord_start=2, score_index=1, id_index=id_index, **flags
        )

    module = network(inputs, build)
    ours, theirs = (through_relax(module, *inputs.values(), own=own) for own in (True, False))
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_sorting_operators_become_kernels() -> None:
    x = numbers("float32", (4, 50, 3), many_equal=True)

    def build(x: Any) -> Any:
        few = relax.op.topk(x, 5, axis=1, ret_type="both", largest=False, dtype="int64")
        order = relax.op.argsort(x, axis=1, descending=True, dtype="int32")
        return relax.Tuple([relax.TupleGetItem(few, 0), relax.TupleGetItem(few, 1), order, relax.op.sort(x, axis=2)])

    few, where, order, whole = through_relax(network({"x": x}, build), x, own=True)
    expected = torch.sort(torch.from_numpy(x), dim=1, stable=True)
    np.testing.assert_array_equal(few, expected.values[:, :5])
    np.testing.assert_array_equal(where, expected.indices[:, :5])
    np.testing.assert_array_equal(
        order, torch.sort(torch.from_numpy(x), dim=1, descending=True, stable=True).indices.numpy()
    )
    np.testing.assert_array_equal(whole, np.sort(x, 2))
