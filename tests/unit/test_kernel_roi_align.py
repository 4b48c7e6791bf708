"""RoIAlign and the pasting of masks against their operators' references."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from targets.cpu import passes
from targets.cpu.compile import compile_module, tvm_target
from targets.cpu.kernels import paste_masks as paste
from targets.cpu.kernels import roi_align as roi
from targets.cpu.kernels.paste_masks import PasteMasks
from targets.cpu.kernels.roi_align import RoiAlign
from targets.cpu.machine import X86_MACHINE
from targets.detection import calls, operators

Array = npt.NDArray[Any]
TARGET = tvm_target(X86_MACHINE, X86_MACHINE.processor("host"))


@cache
def compiled(spec: RoiAlign | PasteMasks) -> Any:
    function = roi.roi_align(spec, "main") if isinstance(spec, RoiAlign) else paste.paste_masks(spec, "main")
    return tvm.compile(tvm.IRModule({"main": function}), target=TARGET)["main"]


def run(spec: RoiAlign | PasteMasks, *inputs: Array, result: Array) -> Array:
    arguments = [tvm.runtime.tensor(array) for array in (*inputs, result)]
    compiled(spec)(*arguments)
    found: Array = arguments[-1].numpy()
    return found


def scene(spec: RoiAlign, seed: int, *, rounded: bool = False, extent: float = 1.2) -> tuple[list[Array], Array]:
    """Features, and boxes over the whole input and some beyond it; ``rounded`` puts corners onto cells."""
    noise = np.random.default_rng(seed)
    features = [noise.standard_normal((spec.batch, *level, spec.channels)).astype("float32") for level in spec.levels]
    size = max(spec.levels[0]) / spec.scales[0]
    first, sides = noise.random((spec.rois, 2)) * size * extent, noise.exponential(size / 4, (spec.rois, 2))
    boxes = np.concatenate([first - size * 0.1, first - size * 0.1 + sides], 1)
    boxes = np.round(boxes / 8) * 8 if rounded else boxes
    pictures = noise.integers(0, spec.batch, (spec.rois, 1))
    return features, np.concatenate([pictures, boxes], 1).astype("float32")


def check(spec: RoiAlign, features: list[Array], rois: Array) -> None:
    planes = [torch.from_numpy(plane) for plane in features]
    how = (list(spec.scales), spec.size, spec.sampling, spec.aligned)
    expected = operators.roi_align(planes, torch.from_numpy(rois), *how).numpy()
    found = run(spec, *features, rois, result=np.full(expected.shape, np.nan, "float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 150),
    levels=st.integers(1, 5),
    finest=st.integers(2, 4),
    first=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rois=st.integers(1, 30),
    size=st.integers(1, 9),
    sampling=st.integers(1, 4),
    aligned=st.booleans(),
    lanes=st.sampled_from((16, 8, 4)),
)
def test_roi_align_is_the_references(
    batch: int,
    channels: int,
    levels: int,
    finest: int,
    first: tuple[int, int],
    rois: int,
    size: int,
    sampling: int,
    aligned: bool,
    lanes: int,
) -> None:
    shapes = tuple((max(1, first[0] >> level), max(1, first[1] >> level)) for level in range(levels))
    scales = tuple(2.0 ** -(finest + level) for level in range(levels))
    fitting = min(lanes, 1 << channels.bit_length() - 1)
    spec = RoiAlign(batch, channels, shapes, scales, rois, size, sampling, aligned, fitting)
    for seed, rounded in enumerate((False, True)):
        check(spec, *scene(spec, seed, rounded=rounded))


def test_levels_at_their_borders() -> None:
    """Boxes whose sides are where one level ends, and the floats around that."""
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    sides = np.float32([112, 224, 448])
    around = [sides]
    for steps in range(12):
        around += [np.nextafter(around[2 * steps], np.float32(0)), np.nextafter(around[-1], np.float32(1e9))]
    side = np.unique(np.concatenate(around))
    rois = np.zeros((len(side), 5), "float32")
    rois[:, 3] = rois[:, 4] = side
    spec = RoiAlign(1, 4, ((16, 16), (8, 8), (4, 4), (2, 2)), scales, len(side), 1, 1, False, 4)
    # Each level's features say which one it is.
    features = [np.full((1, *level, 4), index, "float32") for index, level in enumerate(spec.levels)]
    check(spec, features, rois)
    assert roi.first_areas(scales) == pytest.approx([112**2, 224**2, 448**2], rel=1e-5)


def test_boxes_that_are_no_numbers_read_within_the_features() -> None:
    spec = RoiAlign(1, 4, ((3, 3), (2, 2)), (1 / 4, 1 / 8), 3, 2, 2, False, 4)
    rois = np.array([[0, np.nan, 0, 1, 1], [np.nan, 0, 0, np.inf, 5], [9, -np.inf, 1, 2, 1e30]], "float32")
    features = [np.ones((1, *level, 4), "float32") for level in spec.levels]
    found = run(spec, *features, rois, result=np.full((3, 4, 2, 2), -1, "float32"))
    assert not np.any(found == -1)


# --- Masks ----------------------------------------------------------------------------------------


def check_masks(spec: PasteMasks, seed: int, extent: float, counts: list[int]) -> None:
    noise = np.random.default_rng(seed)
    masks = noise.random((spec.batch, spec.most, spec.side, spec.side)).astype("float32")
    size = np.float32([spec.width, spec.height])
    first = (noise.random((spec.batch, spec.most, 2)) * size).astype("float32")
    last = first + (noise.random((spec.batch, spec.most, 2)) * size * extent).astype("float32")
    boxes = np.concatenate([first, np.minimum(last, size)], -1).astype("float32")
    count = np.array(counts, "int32")
    tensors = [torch.from_numpy(each) for each in (masks, boxes, count)]
    expected = operators.paste_masks(*tensors, spec.height, spec.width).numpy()
    found = run(spec, masks, boxes, count, result=np.full(expected.shape, 99, "uint8"))
    # Of small masks torch rounds the sums otherwise: where one is a whole number, the result is that or the one before.
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 2 + difference.size // 1000


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    most=st.integers(1, 5),
    side=st.sampled_from((1, 2, 14, 28)),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    lanes=st.sampled_from((16, 8, 4)),
    data=st.data(),
)
def test_masks_are_the_references(
    batch: int, most: int, side: int, height: int, width: int, lanes: int, data: st.DataObject
) -> None:
    spec = PasteMasks(batch, most, side, height, width, min(lanes, 1 << width.bit_length() - 1))
    for seed, extent in enumerate((0.2, 1.0, 2.0)):
        check_masks(spec, seed, extent, [data.draw(st.integers(0, most)) for _ in range(batch)])


def test_masks_that_lie_outside_are_nothing() -> None:
    spec = PasteMasks(1, 4, 4, 20, 30, 4)
    boxes = np.array([[[50, 0, 60, 9], [-90, 5, -50, 9], [np.nan, 0, 9, 9], [0, 0, 1e30, 1e30]]], "float32")
    masks = np.ones((1, 4, 4, 4), "float32")
    found = run(spec, masks, boxes, np.array([4], "int32"), result=np.full((1, 4, 20, 30), 99, "uint8"))
    assert not found[0, :2].any()
    assert not np.any(found == 99)


# --- In a network ---------------------------------------------------------------------------------


class Head(torch.nn.Module):
    """All three operators, as a detector calls them."""

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor, rois: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cells = torch.ops.fleet.roi_align([fine, coarse], rois, [0.25, 0.125], 4, 2, False)
        scores = cells.mean((2, 3)).T[None].sigmoid()
        boxes, best, labels, counts = torch.ops.fleet.class_nms(
            rois[None, None, :, 1:].clamp(0, 64), scores, 0.5, 0.5, 0, 0, 10, 0.0, True
        )
        masks = torch.nn.functional.pad(best[:, :, None, None].expand(1, 10, 2, 2), (1, 1, 1, 1))
        return boxes, best, labels, counts, torch.ops.fleet.paste_masks(masks, boxes, counts, 64, 70)


def test_operators_of_a_network_become_kernels() -> None:
    spec = RoiAlign(1, 3, ((16, 16), (8, 8)), (0.25, 0.125), 40, 4, 2, False, 1)
    features, rois = scene(spec, 0)
    inputs = [torch.from_numpy(each) for each in (*features, rois)]
    program = torch.export.export(Head(), tuple(inputs)).run_decompositions()
    module = from_exported_program(
        program, run_ep_decomposition=False, unwrap_unit_return_tuple=True, custom_convert_map=calls.converters()
    )
    made = compile_module(passes.simplify()(module), X86_MACHINE, X86_MACHINE.processor("host"))
    weights = [value for _, value in made.weights]
    run = relax.VirtualMachine(made.executable, tvm.cpu(0))["main"]
    found = [each.numpy() for each in run(*(tvm.runtime.tensor(each.numpy()) for each in inputs), *weights)]
    expected = [each.numpy() for each in Head()(*inputs)]
    assert expected[3][0] > 3
    for mine, its in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)
    assert np.abs(found[4].astype(int) - expected[4]).max() <= 1
