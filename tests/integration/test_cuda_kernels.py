"""Code for GPUs: what kernels compute, held against torch, on an emulated GPU and on this machine's if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_emulation
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from targets.cpu import passes
from targets.cuda.compile import compile_module
from targets.cuda.device import here
from targets.detection import calls, operators  # noqa: F401

CASES = [
    # per_class, total, most, min_size, shifted, shared boxes
    (0, 0, 10, 0.0, False, True),
    (12, 0, 100, 0.0, False, True),
    (12, 30, 9, 0.0, False, False),
    (0, 0, 20, 4.0, True, False),
    (40, 0, 5, 0.0, True, True),
]


@pytest.fixture(scope="module", params=["emulated", pytest.param("real", marks=pytest.mark.hardware)])
def libraries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Where the emulated GPU's libraries are; None for the real one."""
    if request.param == "real":
        if lacking := here():
            pytest.skip(lacking)
        return None
    return cuda_emulation.device(tmp_path_factory.mktemp("cuda"))


def _relax(network: nn.Module, inputs: Sequence[Tensor]) -> Any:
    from tvm.relax.frontend.torch import from_exported_program

    program = torch.export.export(network.eval(), tuple(inputs)).run_decompositions()
    module = from_exported_program(
        program,
        run_ep_decomposition=False,
        unwrap_unit_return_tuple=True,
        custom_convert_map=calls.converters(),
    )
    return passes.simplify()(module)


def _check(
    network: nn.Module, inputs: Sequence[Tensor], folder: Path, libraries: Path | None, atol: float = 1e-5
) -> None:
    compiled = compile_module(_relax(network, inputs))
    found = cuda_emulation.run(compiled, [each.numpy() for each in inputs], folder, libraries)
    with torch.no_grad():
        wanted = network(*inputs)
    wanted = wanted if isinstance(wanted, tuple | list) else (wanted,)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == tuple(other.shape) and one.dtype == other.numpy().dtype
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=atol)


class _Nms(nn.Module):
    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fleet.class_nms(boxes, scores, *self.numbers))


def _scene(batch: int, classes: int, boxes: int, shared: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes that overlap, scores with ties."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand((batch, 1 if shared else classes, boxes, 2), generator=draw) * 60
    sides = torch.rand(corner.shape, generator=draw) * 30 + 1
    scores = torch.rand((batch, classes, boxes), generator=draw)
    scores[..., ::3] = (scores[..., ::3] * 10).round() / 10
    return torch.cat([corner, corner + sides], -1), scores


@pytest.mark.parametrize("case", CASES, ids=str)
def test_class_nms(case: tuple[int, int, int, float, bool, bool], tmp_path: Path, libraries: Path | None) -> None:
    per_class, total, most, size, shifted, shared = case
    network = _Nms(0.2, 0.45, per_class, total, most, size, shifted)
    _check(network, _scene(2, 5, 70, shared), tmp_path, libraries, atol=0.0)


def test_class_nms_of_many_boxes(tmp_path: Path, libraries: Path | None) -> None:
    """More than a block's shared memory holds: keys are sorted, and boxes compared, in the GPU's memory."""
    _check(_Nms(0.5, 0.3, 0, 0, 50, 0.0, False), _scene(1, 2, 6000, True), tmp_path, libraries, atol=0.0)


def test_class_nms_of_nothing(tmp_path: Path, libraries: Path | None) -> None:
    _check(_Nms(2.0, 0.5, 10, 0, 8, 0.0, True), _scene(2, 3, 20, True), tmp_path, libraries, atol=0.0)


class _RoiAlign(nn.Module):
    def __init__(self, sampling: int, aligned: bool, levels: int) -> None:
        super().__init__()
        self.sampling, self.aligned, self.levels = sampling, aligned, levels

    def forward(self, rois: Tensor, *features: Tensor) -> Tensor:
        scales = [0.25 / (1 << level) for level in range(self.levels)]
        found: Tensor = torch.ops.fleet.roi_align(list(features), rois, scales, 7, self.sampling, self.aligned)
        return found


@pytest.mark.parametrize(("aligned", "levels"), [(False, 1), (True, 1), (False, 4)])
def test_roi_align(aligned: bool, levels: int, tmp_path: Path, libraries: Path | None) -> None:
    draw = torch.Generator().manual_seed(1)
    corner = torch.rand((40, 2), generator=draw) * 500 - 40
    sides = torch.rand((40, 2), generator=draw) ** 3 * 700
    sides[:3] = 0
    picture = torch.arange(40) % 2
    rois = torch.cat([picture[:, None].float(), corner, corner + sides], 1)
    features = [torch.randn((2, 128 >> level, 160 >> level, 12), generator=draw) for level in range(levels)]
    _check(_RoiAlign(2, aligned, levels), (rois, *features), tmp_path, libraries)


class _Rows(nn.Module):
    def forward(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        (begun,) = torch.ops.fleet.begin_rows([rows], counts)
        one, other = torch.ops.fleet.end_rows([begun * 2 + 1, begun.sum((2, 3))], counts)
        return one, other


def test_rows(tmp_path: Path, libraries: Path | None) -> None:
    _check(_Rows(), (torch.randn((10, 3, 4, 4)), torch.tensor([3, 0], dtype=torch.int32)), tmp_path, libraries)


class _Paste(nn.Module):
    def forward(self, masks: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        pasted: Tensor = torch.ops.fleet.paste_masks(masks, boxes, counts, 60, 85)
        return pasted


def test_paste_masks(tmp_path: Path, libraries: Path | None) -> None:
    draw = torch.Generator().manual_seed(2)
    corner = torch.rand((2, 6, 2), generator=draw) * 60 - 5
    boxes = torch.cat([corner, corner + torch.rand(corner.shape, generator=draw) * 40], -1)
    masks = torch.rand((2, 6, 28, 28), generator=draw)
    # A probability times 256, rounded down: an error of the last bit may be one step.
    _check(_Paste(), (masks, boxes, torch.tensor([6, 2], dtype=torch.int32)), tmp_path, libraries, atol=1.0)


class _Net(nn.Module):
    """What classifiers and detectors are made of, small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=24)
        self.point = nn.Conv2d(24, 40, 1)
        self.up = nn.ConvTranspose2d(40, 8, 2, stride=2)
        self.last = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = nn.functional.max_pool2d(self.norm(self.first(x)).relu(), 3, 2, 1)
        x = self.point(self.deep(x) + x).relu()
        logits = self.last(x.mean((2, 3)))
        best, order = torch.topk(logits, 4)
        return logits.softmax(-1), self.up(x).sigmoid(), best, order


def test_network(tmp_path: Path, libraries: Path | None) -> None:
    torch.manual_seed(3)
    _check(_Net(), (torch.randn(2, 3, 33, 47),), tmp_path, libraries)
