"""Whole networks through the CPU compiler, beside torch: fusion, layouts, conversions, what has no kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from targets.cpu import passes
from targets.cpu.compile import Compiled, compile_module
from targets.cpu.fuse import fuse
from targets.cpu.graph import Layer
from targets.cpu.layouts import Layouts
from targets.cpu.machine import MACHINES, cpu_features, machine
from targets.cpu.read import read

HERE = MACHINES[machine()]
#: One processor of each vector width that this machine can run.
PROCESSORS = list(
    {
        processor.lanes: name
        for name, processor in reversed(HERE.processors.items())
        if cpu_features().issuperset(processor.features)
    }.values()
)


class Residual(nn.Module):
    """Batch norms on both sides of a sum, a projection, and a convolution with padding that the next one needs not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 7, 2, 3)
        self.first = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 3, 2, 1, bias=False))
        self.second = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU6(), nn.Conv2d(40, 40, 3, 1, 1))
        self.shortcut = nn.Conv2d(24, 40, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.stem(x), 3, 2, 1)
        y = self.second(self.first(x)) + self.shortcut(x)
        return functional.adaptive_avg_pool2d(torch.relu(y), 1).flatten(1)


class Gated(nn.Module):
    """Squeeze and excitation, hard-swish, SiLU, a depthwise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 5, 1, 2, groups=48)
        self.squeeze = nn.Conv2d(48, 12, 1)
        self.excite = nn.Conv2d(12, 48, 1)
        self.project = nn.Conv2d(48, 32, 3, 1, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.depthwise(functional.silu(self.expand(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate)


class Dense(nn.Module):
    """Channels that are concatenated, read by several, resized and summed, as in DenseNet and feature pyramids."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(48, 16, 3, 2, 1)
        self.lateral, self.top = nn.Conv2d(48, 16, 1), nn.Conv2d(16, 16, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat(
            [x, functional.leaky_relu(self.first(functional.avg_pool2d(x, 2)), 0.1).repeat(1, 1, 2, 2)], 1
        )
        lower = self.second(joined)
        upper = self.lateral(joined) + functional.interpolate(lower, size=joined.shape[2:], mode="bilinear")
        return self.top(upper), functional.gelu(lower)


class Mixed(nn.Module):
    """Operators without kernels between those that have some, a value that is read in every layout, and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(16, 21, 3, 1, 1), nn.Conv2d(21, 9, 1)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.body(x))
        scores = self.head(torch.cumsum(x, 2) - x.flip(3))
        normed = scores / scores.pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-3)
        return normed.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3).softmax(-1), functional.relu(
            self.fc(x[:, :9, 0, 0])
        )


class Mobile(nn.Module):
    """Inverted residuals and a separable convolution, on pictures whose rows threads divide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, 2, 1)
        self.expand, self.depthwise = nn.Conv2d(20, 40, 1), nn.Conv2d(40, 40, 3, 1, 1, groups=40)
        self.project = nn.Conv2d(40, 20, 1)
        self.other, self.last = nn.Conv2d(20, 20, 5, 2, 2, groups=20), nn.Conv2d(20, 36, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem(x))
        x = x + self.project(functional.relu6(self.depthwise(functional.relu6(self.expand(x)))))
        return functional.hardswish(self.last(functional.silu(self.other(x))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 50, 47)),
    "gated": (Gated, (1, 8, 13, 10)),
    "mobile": (Mobile, (2, 3, 80, 68)),
    "dense": (Dense, (1, 16, 12, 18)),
    "mixed": (Mixed, (2, 16, 9, 9)),
}


def built(network: nn.Module, example: Tensor, processor: str) -> Compiled:
    program = torch.export.export(network, (example,)).run_decompositions()
    module = from_exported_program(program, run_ep_decomposition=False, unwrap_unit_return_tuple=True)
    return compile_module(passes.simplify()(module), HERE, HERE.processor(processor))


def outputs(compiled: Compiled, image: Tensor) -> list[Any]:
    machine_ = relax.VirtualMachine(compiled.executable, tvm.cpu(0))
    result = machine_["main"](tvm.runtime.tensor(image.numpy()), *(value for _, value in compiled.weights))
    return [each.numpy() for each in ([result] if hasattr(result, "numpy") else result)]


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_torch_computes(name: str, processor: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    network = make().eval()
    for norm in (each for each in network.modules() if isinstance(each, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 1.5)
    image = torch.randn(shape)
    with torch.no_grad():
        wanted = network(image)
    compiled = built(network, image, processor)
    for found, reference in zip(
        outputs(compiled, image), wanted if isinstance(wanted, tuple) else [wanted], strict=True
    ):
        largest = reference.abs().max().item()
        np.testing.assert_allclose(found, reference.numpy(), rtol=0, atol=1e-4 * largest)


def test_pointwise_work_is_done_in_the_layers_before_it() -> None:
    rows = built(Residual().eval(), torch.zeros(1, 3, 50, 47), PROCESSORS[0]).layers.layers
    kinds = [(row.operators[0], row.operators[-1]) for row in rows if row.operators != ["layout"]]
    assert kinds == [
        ("nn.conv2d", "add"),
        ("nn.max_pool2d", "nn.max_pool2d"),
        # The norm before a convolution, whose input the projection reads as it is, stays by itself.
        ("subtract", "nn.relu"),
        ("nn.conv2d", "clip"),
        ("nn.conv2d", "add"),
        ("nn.conv2d", "nn.relu"),
        ("mean", "mean"),
    ]


def test_residual_blocks_are_laid_alike_so_that_a_sum_lies_over_its_operand() -> None:
    class Blocks(nn.Module):
        """The first block's input and the last one's result are read by windows of 3; all others by ones of 1."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 2, 1)
            self.inner = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for inner in self.inner:
                x = torch.relu(x + inner(x))
            return self.last(x)

    for size, alike in ((30, True), (5, False)):
        program = torch.export.export(Blocks().eval(), (torch.zeros(1, 3, size, size),)).run_decompositions()
        module = passes.simplify()(
            from_exported_program(program, run_ep_decomposition=False, unwrap_unit_return_tuple=True)
        )
        graph = read(module["main"])
        fuse(graph)
        layouts = Layouts(graph, 16)
        first, *sums, _ = [layouts.home(node.output) for node in graph.nodes if isinstance(node, Layer)]
        assert len(sums) == 3
        assert sums[-1].top == sums[-1].left == 1
        # Of a small picture the border would be most of it: only who needs one has it.
        assert [layout == sums[-1] for layout in (first, *sums)] == [alike, alike, alike, True]
