"""Gluon's ResNets have the structure that is published of them; sample pictures are what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from controller import zoo
from controller.home import Home
from controller.zoo import gluon, leaves, preactivation, resnet, weights
from targets import pt2_model
from targets.pictures.prepare import prepare

#: Parameters by the table in Gluon's model zoo, which counts running statistics too, and 1 and 0 for the scale and
#: shift that v2's first batch norm does not have; then convolutions, and the shape that the last stage gives.
PUBLISHED = {
    "resnet18_v1": (11_699_112, 20, 512),
    "resnet34_v1": (21_814_696, 36, 512),
    "resnet18_v2": (11_695_796, 20, 512),
    "resnet34_v2": (21_811_380, 36, 512),
    "resnet50_v2": (25_595_060, 53, 2048),
    "resnet101_v2": (44_639_412, 104, 2048),
}
#: Scale and shift of three channels.
ABSENT = 6


def _built(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return gluon.build(name).eval()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_structure_is_the_published_one(name: str) -> None:
    network = _built(name)
    values = [*network.parameters(), *(value for key, value in network.named_buffers() if "num_batches" not in key)]
    count, convolutions, channels = PUBLISHED[name]
    assert sum(value.numel() for value in values) == count - (ABSENT if name.endswith("v2") else 0)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions

    seen: list[torch.Size] = []
    network.avgpool.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    picture = zoo.samples(name, 1, 3)[0]
    with torch.no_grad():
        logits = network(torch.from_numpy(prepare(picture, resnet.PREPROCESS)))
    assert seen == [(1, channels, 7, 7)] and logits.shape == (1, 1000)
    # Random weights are drawn so that values neither vanish nor grow with the depth.
    assert 0.3 < logits.std() < 10


def test_v1_does_the_work_that_vta_is_measured_by() -> None:
    """Multiplications of ResNet-18 v1's convolutions but the first: 6,623,232 blocks of 16 by 16."""
    network = _built("resnet18_v1")
    work: dict[str, int] = {}

    def count(name: str) -> object:
        def hook(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            work[name] = module.weight[0].numel() * output.numel()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count(name))
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    assert work.pop("conv1") == 118_013_952 and len(work) == 19
    assert sum(work.values()) == 6_623_232 * 256


def test_torchvisions_weights_fit_v1(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    source = zoo.source("resnet18_v1", str(tmp_path / "theirs.pth"), Home.find(tmp_path / "home"))
    assert source.origin == "zoo:resnet18_v1 weights=file:theirs.pth"
    picture = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found = pt2_model.read(Path(source.path)).load().module()(picture)
        torch.testing.assert_close(found, theirs(picture), rtol=1e-5, atol=1e-5)


def test_a_networks_file_takes_every_batch_and_says_where_it_is_from(tmp_path: Path) -> None:
    source = zoo.source("resnet18_v2", "random:4", Home.find(tmp_path))
    assert source.origin == "zoo:resnet18_v2 weights=random:4"
    assert (source.inputs[0].shape, source.outputs[0].shape) == ((-1, 3, 224, 224), (-1, 1000))
    assert (len(source.labels), source.labels[0]) == (1000, "tench")
    pictures_ = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        found = pt2_model.read(Path(source.path)).load().module()(pictures_)
        torch.testing.assert_close(found, _built("resnet18_v2", 4)(pictures_), rtol=1e-4, atol=1e-4)


def test_weights_are_never_chosen_silently(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError) as caught:
        zoo.source("resnet18_v1", "", Home.find(tmp_path))
    assert "pretrained" in caught.value.hint and "random:SEED" in caught.value.hint


def _normalised(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    mean, scale = norm.running_mean, norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return torch.relu((x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])


@pytest.mark.parametrize("stride", [1, 2])
def test_v2_blocks_normalise_before_they_convolve(stride: int) -> None:
    torch.manual_seed(stride)
    x = torch.randn(2, 16, 8, 8)
    for kind in (preactivation.BasicBlock, preactivation.Bottleneck):
        # The projection is where channels change: a stage's first block.
        block = kind(16, 32 if stride == 2 else 16, stride).eval()
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.bias)
        with torch.no_grad():
            active = _normalised(x, block.bn1)
            if kind is preactivation.BasicBlock:
                inner = functional.conv2d(active, block.conv1.weight, stride=stride, padding=1)
                wanted = functional.conv2d(_normalised(inner, block.bn2), block.conv2.weight, padding=1)
            else:
                inner = functional.conv2d(active, block.conv1.weight)
                inner = functional.conv2d(_normalised(inner, block.bn2), block.conv2.weight, stride=stride, padding=1)
                wanted = functional.conv2d(_normalised(inner, block.bn3), block.conv3.weight)
            wanted += x if stride == 1 else functional.conv2d(active, block.downsample.weight, stride=2)
            torch.testing.assert_close(block(x), wanted)


# --- Sample pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("resnet18_v1", 256), ("shapes-classifier", 64), ("shapes-ssd", 128)])
def test_samples_are_the_same_for_the_same_seed(name: str, size: int) -> None:
    first, again, other = zoo.samples(name, 2, 5), zoo.samples(name, 2, 5), zoo.samples(name, 2, 6)
    assert [picture.size for picture in first] == [(size, size)] * 2 and first[0].mode == "RGB"
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
    assert len({picture.tobytes() for picture in (*first, *other)}) == 4


def test_leaves_have_the_spectrum_of_photographs() -> None:
    """Power falls with about the square of the frequency (Field 1987, JOSA A 4, 2379)."""
    power = np.zeros((leaves.SIZE, leaves.SIZE))
    for index in range(6):
        grey = leaves.picture(11, index).astype(np.float64).mean(axis=2)
        power += np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(256), np.hanning(256)))) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(leaves.SIZE) * leaves.SIZE] * 2))
    rings = np.arange(3, 60)
    ring = [power[(frequency >= low) & (frequency < low + 1)].mean() for low in rings]
    slope = np.polyfit(np.log(rings + 0.5), np.log(ring), 1)[0]
    assert -2.6 < slope < -1.4
