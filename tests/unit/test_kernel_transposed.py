"""Transposed convolutions against torch, with what is fused into them and what reads them."""

from __future__ import annotations

import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from targets.cpu import passes
from targets.cpu.compile import Compiled, compile_module
from targets.cpu.kernels.interleave import Interleave, interleave
from targets.cpu.layout import ImageType, Layout
from targets.cpu.machine import X86_MACHINE

#: Of 16, 8 and 4 lanes.
PROCESSORS = ("host", "x86-64-v3", "x86-64-v2")


def built(network: nn.Module, example: Tensor, processor: str) -> Compiled:
    program = torch.export.export(network.eval(), (example,)).run_decompositions()
    module = from_exported_program(program, run_ep_decomposition=False, unwrap_unit_return_tuple=True)
    return compile_module(passes.simplify()(module), X86_MACHINE, X86_MACHINE.processor(processor))


def check(network: nn.Module, image: Tensor, processor: str) -> list[str]:
    """The network computes what torch does; returns its kernels."""
    made = built(network, image, processor)
    run = relax.VirtualMachine(made.executable, tvm.cpu(0))["main"]
    found = torch.from_numpy(run(tvm.runtime.tensor(image.numpy()), *(value for _, value in made.weights)).numpy())
    with torch.no_grad():
        expected = network(image)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max() + 1e-6
    return [row.kernel.rstrip("_0123456789") for row in made.layers.layers]


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 3),
    inputs=st.sampled_from((1, 3, 16, 21)),
    outputs=st.sampled_from((1, 5, 16, 20)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    data=st.data(),
    processor=st.sampled_from(PROCESSORS),
)
def test_any_transposed_convolution(
    batch: int,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    data: st.DataObject,
    processor: str,
) -> None:
    padding, more = [], []
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1)
        # Something is left of the result.
        whole = (size[axis] - 1) * stride[axis] + reach
        padding.append(data.draw(st.integers(0, min(whole // 2, 4))))
        more.append(data.draw(st.integers(0, stride[axis] - 1)))
    torch.manual_seed(inputs)
    layer = nn.ConvTranspose2d(
        inputs, outputs, kernel, stride, (padding[0], padding[1]), (more[0], more[1]), 1, True, dilation
    )
    kernels = check(layer, torch.randn(batch, inputs, *size), processor)
    assert any("conv2d" in kernel for kernel in kernels)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_bias_and_activation_are_fused_and_the_border_is_written(processor: str) -> None:
    """As a mask head has it: the convolution after it reads a border that the pixels' kernel clears."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1),
        nn.ConvTranspose2d(40, 40, 2, 2),
        nn.ReLU(),
        nn.Conv2d(40, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 5, 1),
    )
    kernels = check(network, torch.randn(2, 3, 14, 14), processor)
    assert kernels.count("interleave") == 1
    assert "pointwise" not in kernels


def test_pictures_that_are_not_apart_are_refused() -> None:
    x, y = ImageType((1, 64, 4, 4), Layout(16)), ImageType((1, 16, 8, 8), Layout(16))
    for stride, wrong in (((2, 2), ImageType((1, 32, 8, 8), Layout(16))), ((2, 1), y), ((2, 2), ImageType(y.shape))):
        with pytest.raises(ValueError, match="put apart"):
            interleave(Interleave(x, wrong, stride), "main")
