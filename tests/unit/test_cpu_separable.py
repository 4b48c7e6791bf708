"""A depthwise convolution with the 1×1 convolution after it, as one kernel: beside torch, and where it is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from blocked_pictures import LANES, borders, noise, packed, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from tvm.relax.frontend.torch import from_exported_program

from targets.cpu import choose, passes, separable
from targets.cpu.fuse import fuse
from targets.cpu.graph import Convolution, Graph, Layer, Separable
from targets.cpu.kernels import depthwise, direct
from targets.cpu.kernels import separable as kernels
from targets.cpu.kernels.depthwise import Depthwise
from targets.cpu.kernels.direct import DirectConv, Tile, Window, strip_count
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout
from targets.cpu.processors import X86, Processor
from targets.cpu.read import read

pairs = st.tuples(st.integers(1, 3), st.integers(1, 2))


def numbers(channels: int, lanes: int) -> OperandType:
    return OperandType("channel", ImageType((1, channels, 1, 1), Layout(lanes)))


@st.composite
def specs(draw: st.DrawFn) -> kernels.Separable:
    lanes = draw(st.sampled_from(LANES))
    batch, inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 40)), draw(st.integers(1, 70))
    size = draw(st.tuples(st.integers(1, 24), st.integers(1, 18)))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, dilation = draw(pairs), draw(pairs)
    top, left, bottom, right = (draw(st.integers(0, most)) for most in (*kernel, *kernel))
    reach = [(kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)]
    padded = (size[0] + top + bottom, size[1] + left + right)
    assume(all(padded[i] >= reach[i] for i in (0, 1)))
    height, width = ((padded[i] - reach[i]) // stride[i] + 1 for i in (0, 1))
    more = draw(st.integers(0, 1))
    x = ImageType((batch, inputs, *size), Layout(lanes, top + more, left, bottom, right + more))
    between = ImageType((batch, inputs, height, width), Layout(lanes))
    y = ImageType((batch, outputs, height, width), draw(borders(lanes, 2)))
    bias = Step("add", (Result(0), Operand(0)))
    # Bias, ReLU6; bias, residual sum, ReLU.
    own = Program(
        (bias, Step("maximum", (Result(1), 0.0)), Step("minimum", (Result(2), 6.0))), (numbers(inputs, lanes),)
    )
    steps = (bias, Step("add", (Result(1), Operand(1))), Step("maximum", (Result(2), 0.0)))
    program = Program(steps, (numbers(outputs, lanes), OperandType("image", y)))
    rows, columns = draw(st.integers(1, min(height, 3))), draw(st.integers(1, min(width, 6)))
    blocks = draw(st.sampled_from([n for n in range(1, 5) if y.blocks % n == 0]))
    tile = Tile(blocks, rows, columns, strip=draw(st.integers(1, -(-height // rows))))
    window = Window(kernel, stride, dilation, (top, left, bottom, right))
    own, program = draw(st.sampled_from([(own, program), (NOTHING, program), (own, NOTHING), (NOTHING, NOTHING)]))
    return kernels.Separable(
        Depthwise(x, between, window, 1, draw(st.integers(1, min(width, 8))), own),
        DirectConv(between, y, Window((1, 1)), tile, program, by_lane=draw(st.sampled_from(["", "fmla"]))),  # type: ignore[arg-type]
    )


def check(spec: kernels.Separable, over: bool = False) -> None:
    first, last = spec.depthwise, spec.pointwise
    window, inputs, outputs = first.window, first.x.shape[1], last.y.shape[1]
    values, residual = noise(first.x.shape), noise(last.y.shape, 1)
    weights, pointwise = noise((inputs, 1, *window.kernel), 2), noise((outputs, inputs, 1, 1), 3)
    biases = [noise((1, channels, 1, 1), 4 + channels) for channels in (inputs, outputs)]
    top, left, bottom, right = window.padding
    x = functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    want = functional.conv2d(x, torch.from_numpy(weights), None, window.stride, 0, window.dilation, inputs)
    lanes = last.y.layout.block
    whole = [packed(bias, ImageType(bias.shape, Layout(lanes))).reshape(-1) for bias in biases]
    arguments = [packed(values, first.x), depthwise.pack(weights, first)]
    if first.program.steps:
        want = (want + torch.from_numpy(biases[0])).clamp(0, 6)
        arguments.append(whole[0])
    want = functional.conv2d(want, torch.from_numpy(pointwise))
    arguments.append(direct.pack(pointwise, last))
    if last.program.steps:
        want = torch.relu(want + torch.from_numpy(biases[1]) + torch.from_numpy(residual))
        arguments += [whole[1], packed(residual, last.y, np.nan)]
    got = run(kernels.separable(spec, "main"), *arguments, into=last.y, over=len(arguments) - 1 if over else None)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_any_pair_of_convolutions_is_as_in_torch(spec: kernels.Separable) -> None:
    check(spec)


@settings(max_examples=25, deadline=None)
@given(specs().filter(lambda spec: spec.pointwise.program.steps))
def test_a_sum_is_written_over_what_it_adds_to(spec: kernels.Separable) -> None:
    check(spec, over=True)


def test_what_does_not_fit_together_is_refused() -> None:
    image = ImageType((1, 8, 6, 6), Layout(8))
    first = Depthwise(image, image, Window((1, 1)), 1, 2)
    last = DirectConv(image, image, Window((1, 1)), Tile(1, 2, 2))
    kernels.separable(kernels.Separable(first, last), "main")
    with pytest.raises(ValueError, match="does not give rows"):
        kernels.separable(kernels.Separable(replace(first, rows=2), last), "main")
    with pytest.raises(ValueError, match="does not give rows"):
        kernels.separable(kernels.Separable(first, replace(last, x=replace(image, shape=(1, 8, 6, 7)))), "main")
    with pytest.raises(ValueError, match="more than a pixel"):
        kernels.separable(kernels.Separable(first, replace(last, window=Window((3, 3)))), "main")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(X86),
    st.integers(1, 3),
    st.integers(1, 600),
    st.integers(1, 600),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
)
def test_strips_divide_the_rows(
    processor: Processor, batch: int, inputs: int, outputs: int, size: tuple[int, int]
) -> None:
    layout = Layout(processor.lanes)
    x, y = ImageType((batch, inputs, *size), layout), ImageType((batch, outputs, *size), layout)
    whole = DirectConv(x, y, Window((1, 1)), choose.tile(x, y, Window((1, 1)), 1, processor))
    spec = separable.in_strips(whole, processor)
    cuts = -(-size[0] // spec.tile.rows)
    assert cuts == spec.tile.strip * strip_count(spec) and spec.tile.depth == 0
    scratch = spec.tile.strip * spec.tile.rows * size[1] * x.blocks * processor.lanes * 4
    assert spec.tile.strip == 1 or scratch <= processor.l2_bytes // 2


class Blocks(nn.Module):
    """An inverted residual, a depthwise convolution that two read, one that adds a picture, and a pair of 7 rows."""

    def __init__(self) -> None:
        super().__init__()

        def depthwise_(stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(32, 32, 3, stride, 1, groups=32)

        self.stem, self.first, self.project = nn.Conv2d(3, 32, 3, 2, 1), depthwise_(), nn.Conv2d(32, 32, 1)
        self.twice, self.left, self.right = depthwise_(), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.adds, self.after = depthwise_(), nn.Conv2d(32, 48, 1)
        self.small, self.last = nn.Conv2d(48, 48, 5, 4, 2, groups=48), nn.Conv2d(48, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem(x))
        x = x + self.project(functional.hardswish(self.first(x)))
        y = self.twice(x)
        x = self.left(y) * torch.sigmoid(self.right(y))
        x = self.after(functional.relu(self.adds(x) + y))
        return self.last(functional.relu(self.small(x)))


def joined(network: nn.Module, size: int, processor: Processor) -> Graph:
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, size, size),)).run_decompositions()
    module = from_exported_program(program, run_ep_decomposition=False, unwrap_unit_return_tuple=True)
    graph = read(passes.simplify()(module)["main"])
    fuse(graph)
    separable.join(graph, processor)
    return graph


def test_pairs_that_nobody_reads_between_are_joined() -> None:
    processor = next(p for p in X86 if p.name == "sapphirerapids")
    works = [node.work for node in joined(Blocks(), 56, processor).nodes if isinstance(node, Layer)]
    assert [type(work) for work in works] == [Convolution, Separable, *[Convolution] * 7]
    # Fourteen rows are no even shares for four threads.
    uneven = [node.work for node in joined(Blocks(), 28, replace(processor, cores=4)).nodes if isinstance(node, Layer)]
    assert not any(isinstance(work, Separable) for work in uneven)
