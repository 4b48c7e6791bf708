"""Quantisation: exact evaluation, exponents, the guarantees of the integer graph, bad calibration sets."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.base import FleetError, ModelError
from targets.vta.evaluate import EXACT_TERMS, evaluate, evaluate_float, to_floats, to_integers
from targets.vta.graph import Conv, Graph, MaxPool
from targets.vta.histogram import Histogram, covering
from targets.vta.qgraph import QConv, QGraph, QMaxPool, QTensor
from targets.vta.quantise import QuantiseOptions, quantise


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_conv(name, source, shape, out_channels, seed, kernel=3, scale=1.0, **options) -> Conv:
    """A convolution that keeps pictures' size and values' magnitude, up to ``scale``."""
    fan_in = shape[1] // options.get("groups", 1) * kernel * kernel
    weight = rng(seed).normal(0, scale / np.sqrt(fan_in), (out_channels, fan_in // kernel**2, kernel, kernel))
    bias = rng(seed + 1).normal(0, scale / 10, out_channels)
    options.setdefault("padding", (kernel // 2,) * 4)
    return Conv(name, source, name, weight.astype(np.float32), bias.astype(np.float32), **options)


def chain(*nodes, shape=(1, 16, 8, 8)) -> Graph:
    """A graph of ``nodes`` over one input ``x``; shapes follow from evaluating it."""
    graph = Graph("net", {"x": shape}, nodes, ("x",), (nodes[-1].output,))
    values = evaluate_float(graph, {"x": np.zeros(shape, np.float32)})
    return replace(graph, tensors={name: value.shape for name, value in values.items()})


def pictures(graph: Graph, count: int, seed: int = 0, scale: float = 1.0):
    shape = graph.tensors["x"]
    return [{"x": rng(seed + i).normal(0, scale, shape).astype(np.float32)} for i in range(count)]


# -- exact evaluation ------------------------------------------------------------------------------------------------


def slow_conv(node: QConv, x, residual):
    """The docstring of :mod:`targets.vta.qgraph`, value by value, in Python's integers."""
    n, _, h, w = x.shape
    o, per_group, kh, kw = node.weight.shape
    top, left, bottom, right = node.padding
    (sh, sw), (dh, dw) = node.stride, node.dilation
    rows = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (w + left + right - dw * (kw - 1) - 1) // sw + 1

    def shifted(value, amount):
        return (value + (1 << (amount - 1))) >> amount if amount > 0 else value << -amount

    result = np.zeros((n, o, rows, columns), np.int8)
    for b, k, i, j in np.ndindex(*result.shape):
        total = int(node.bias[k])
        first = k // (o // node.groups) * per_group
        for ic, di, dj in np.ndindex(per_group, kh, kw):
            y, z = i * sh + di * dh - top, j * sw + dj * dw - left
            if 0 <= y < h and 0 <= z < w:
                total += int(x[b, first + ic, y, z]) * int(node.weight[k, ic, di, dj])
        total = shifted(total, int(node.shift[k]))
        if residual is not None:
            total = shifted(total + (int(residual[b, k, i, j]) << node.residual_shift), node.final_shift)
        result[b, k, i, j] = min(max(total, 0 if node.relu else -127), 127)
    return result


@st.composite
def integer_layers(draw):
    small = st.integers(1, 3)
    groups, per_group, out_per_group = draw(small), draw(small), draw(small)
    kernel, stride, dilation = (draw(st.tuples(small, small)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    height = draw(st.integers(dilation[0] * (kernel[0] - 1) + 1, 9))
    width = draw(st.integers(dilation[1] * (kernel[1] - 1) + 1, 9))
    random = rng(draw(st.integers(0, 2**32 - 1)))
    o = groups * out_per_group
    with_residual = draw(st.booleans())
    final_shift = draw(st.integers(0, 12)) if with_residual else 0
    node = QConv(
        "c",
        "x",
        "y",
        random.integers(-127, 128, (o, per_group, *kernel)).astype(np.int8),
        random.integers(-(2**15), 2**15, o).astype(np.int32),
        random.integers(0 if final_shift else -5, 12, o).astype(np.int32),
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        "r" if with_residual else "",
        draw(st.integers(0, 6)) if with_residual else 0,
        final_shift,
    )
    x = random.integers(-127, 128, (draw(st.integers(1, 2)), groups * per_group, height, width)).astype(np.int8)
    return node, x, random


@settings(max_examples=60, deadline=None)
@given(integer_layers())
def test_evaluating_a_layer_is_what_the_integer_graph_defines(layer):
    node, x, random = layer
    plain = slow_conv(replace(node, residual=""), x, None)
    residual = random.integers(-127, 128, plain.shape).astype(np.int8)
    graph = QGraph(
        "net",
        {"x": QTensor("x", x.shape, 0), "r": QTensor("r", plain.shape, 0), "y": QTensor("y", plain.shape, 0)},
        (node,),
        ("x", "r"),
        ("y",),
    )
    result = evaluate(graph, {"x": x, "r": residual})["y"]
    assert result.dtype == np.int8
    np.testing.assert_array_equal(result, slow_conv(node, x, residual if node.residual else None))


def test_a_sum_longer_than_float32_holds_is_exact():
    channels = 5 * EXACT_TERMS + 4
    x = np.full((1, channels, 1, 1), 127, np.int8)
    weight = np.full((1, channels, 1, 1), 127, np.int8)
    weight[0, -1] = 126  # an odd sum, which float32 cannot represent at this size
    exact = 127 * 127 * (channels - 1) + 127 * 126
    assert exact > 2**24
    assert int(np.float32(exact)) != exact
    # The bias takes all but the last few units away, so an error of 1 shows.
    node = QConv("c", "x", "y", weight, np.array([7 - exact], np.int32), np.zeros(1, np.int32))
    tensors = {"x": QTensor("x", x.shape, 0), "y": QTensor("y", (1, 1, 1, 1), 0)}
    assert evaluate(QGraph("net", tensors, (node,), ("x",), ("y",)), {"x": x})["y"].item() == 7


def test_the_float_graph_agrees_with_the_integer_graph_where_nothing_is_rounded():
    weight = rng(0).integers(-2, 3, (4, 2, 3, 3))
    bias = rng(1).integers(-9, 10, 4)
    x = rng(2).integers(-2, 3, (2, 4, 9, 7))
    common = {"stride": (2, 1), "padding": (1, 0, 2, 1), "groups": 2, "relu": True}
    pool = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 1, 1)}
    graph = chain(
        Conv("c", "x", "c", weight.astype(np.float32), bias.astype(np.float32), **common),
        MaxPool("p", "c", "p", **pool),
        shape=x.shape,
    )
    qgraph = QGraph(
        "net",
        {name: QTensor(name, shape, 0) for name, shape in graph.tensors.items()},
        (
            QConv("c", "x", "c", weight.astype(np.int8), bias.astype(np.int32), np.zeros(4, np.int32), **common),
            QMaxPool("p", "c", "p", **pool),
        ),
        ("x",),
        ("p",),
    )
    floats = evaluate_float(graph, {"x": x.astype(np.float32)})
    integers = evaluate(qgraph, {"x": x.astype(np.int8)})
    assert len(np.unique(integers["p"])) > 10
    for name in graph.tensors:
        np.testing.assert_array_equal(integers[name], floats[name])


def test_max_pool_counts_pads_as_zero():
    graph = chain(MaxPool("p", "x", "p", (2, 2), (2, 2), (1, 0, 0, 1)), shape=(1, 1, 3, 3))
    x = -np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    np.testing.assert_array_equal(evaluate_float(graph, {"x": x})["p"][0, 0], [[0, 0], [-4, 0]])


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"x": np.zeros((1, 16, 8, 9), np.int8)},
        {"x": np.zeros((1, 16, 8, 8), np.uint8)},
        {"x": np.zeros((1, 16, 8, 8), np.int8), "y": np.zeros(1, np.int8)},
    ],
)
def test_evaluating_refuses_other_inputs(wrong):
    qgraph, _ = quantise(graph := chain(random_conv("c", "x", (1, 16), 16, 0)), pictures(graph, 1))
    with pytest.raises(ValueError, match="x"):
        evaluate(qgraph, wrong)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_values_round_half_up_and_saturate_symmetrically():
    x = np.array([0.25, -0.25, 0.24, -0.26, 0.75, -0.75, 1e9, -1e9], np.float32)
    assert to_integers(x, -1).tolist() == [1, 0, 0, -1, 2, -1, 127, -127]


@given(st.integers(-100, 100), st.integers(0, 2**32 - 1))
def test_integers_survive_the_way_to_float_and_back(exponent, seed):
    q = rng(seed).integers(-127, 128, 50).astype(np.int8)
    np.testing.assert_array_equal(to_integers(to_floats(q, exponent), exponent), q)


@given(st.floats(1e-25, 1e25))
def test_the_covering_exponent_is_the_smallest_that_does_not_saturate(peak):
    exponent = covering(peak)
    assert peak / 2.0**exponent <= 127.5
    assert peak / 2.0 ** (exponent - 1) > 127.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-12, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=4))
def test_a_histogram_knows_what_each_exponent_costs(parts):
    histogram, values = Histogram(), []
    for log_scale, seed in parts:
        values.append(rng(seed).normal(0, 2.0**log_scale, 5000).astype(np.float32))
        values[-1][::2] = 0  # as after a ReLU
        histogram.add(values[-1])
    x = np.concatenate(values)
    assert histogram.peak == np.abs(x).max()
    top = covering(histogram.peak)
    for exponent in range(top - 5, top + 1):
        exact = float(np.sum((x.astype(np.float64) - to_floats(to_integers(x, exponent), exponent)) ** 2))
        assert histogram.error(exponent) == pytest.approx(exact, rel=0.1)


# -- what quantising guarantees --------------------------------------------------------------------------------------


def reach(node: QConv) -> int:
    """The largest magnitude anywhere in a layer's epilogue, whatever its input, with all rounding added at first."""
    shift = node.shift.astype(np.int64)
    right = np.maximum(shift, 0)
    rounding = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
    if node.final_shift:
        rounding = rounding + ((1 << (node.final_shift - 1)) << right)
    sums = 127 * np.abs(node.weight.astype(np.int64)).reshape(len(shift), -1).sum(1) + np.abs(
        node.bias.astype(np.int64)
    )
    accumulated = (sums + rounding) << np.maximum(-shift, 0)
    summed = (accumulated >> right) + (127 << node.residual_shift if node.residual else 0)
    return int(max(accumulated.max(), summed.max()))


def assert_representable(graph: Graph, qgraph: QGraph, block: int) -> None:
    """Everything that the docstrings of the integer graph promise, and that scales agree with one another."""
    exponent = {name: tensor.exponent for name, tensor in qgraph.tensors.items()}
    assert {name: tensor.shape for name, tensor in qgraph.tensors.items()} == graph.tensors
    for source, node in zip(graph.nodes, qgraph.nodes, strict=True):
        assert (source.name, source.input, source.output) == (node.name, node.input, node.output)
        if isinstance(node, QMaxPool):
            assert exponent[node.input] == exponent[node.output]
            continue
        assert node.weight.dtype == np.int8
        assert node.weight.shape == source.weight.shape
        assert node.bias.dtype == node.shift.dtype == np.int32
        assert np.abs(node.weight.astype(int)).max() <= 127
        assert -16 <= node.shift.min() <= node.shift.max() <= 30
        for start in range(0, len(node.shift), block):
            assert len(set(node.shift[start : start + block].tolist())) == 1
        assert 0 <= node.residual_shift <= 6
        assert 0 <= node.final_shift <= 30
        if not node.residual:
            assert node.residual_shift == node.final_shift == 0
        else:
            assert exponent[node.residual] - node.residual_shift == exponent[node.output] - node.final_shift
        assert not node.final_shift or node.shift.min() >= 0
        assert reach(node) <= 2**30
        # Weights stand for the network's at the exponent that input, shift and output imply.
        implied = exponent[node.output] - node.final_shift - node.shift - exponent[node.input]
        step = 2.0 ** implied.astype(float)[:, None, None, None]
        inside = np.abs(source.weight) <= 127 * step
        assert np.all(
            np.abs(node.weight * step - source.weight)[inside] <= 0.5 * np.broadcast_to(step, inside.shape)[inside]
        )
        unit = step[:, 0, 0, 0] * 2.0 ** exponent[node.input]
        assert np.all(np.abs(node.bias * unit - source.bias) <= 0.5 * unit)


@st.composite
def float_graphs(draw):
    """Small networks with residual sums and a pool, whose scales have nothing to do with one another."""

    def scale():
        return 2.0 ** draw(st.floats(-20, 4))

    def extra(conv):
        """Channels that are zero, and biases that dwarf what they are added to."""
        if draw(st.booleans()):
            conv.weight[: draw(st.integers(1, 8))] = 0
        if draw(st.booleans()):
            conv.bias[:] *= np.float32(2.0 ** draw(st.integers(-10, 12)))
        return conv

    seed, shape = draw(st.integers(0, 2**16)), (draw(st.integers(1, 2)), 6, 5, 5)
    nodes = [extra(random_conv("a", "x", shape, 6, seed, scale=scale(), relu=draw(st.booleans())))]
    nodes.append(extra(random_conv("b", "a", shape, 6, seed + 2, kernel=1, scale=scale(), residual="x")))
    nodes.append(MaxPool("p", "b", "p", (2, 2), (1, 1), (1, 1, 0, 0)))
    residual = draw(st.sampled_from(["", "a", "b"]))
    nodes.append(extra(random_conv("c", "p", shape, 6, seed + 4, groups=2, scale=scale(), residual=residual)))
    return chain(*nodes, shape=shape), scale()


@settings(max_examples=60, deadline=None)
@given(float_graphs(), st.sampled_from(["mse", "minmax"]), st.sampled_from(["tensor", "block"]))
def test_whatever_the_scales_the_integer_graph_can_be_computed(case, activations, weights):
    graph, scale = case
    samples = pictures(graph, 2, scale=scale)
    qgraph, report = quantise(graph, samples, QuantiseOptions(activations, weights, block=4, report_samples=1))
    assert_representable(graph, qgraph, 4 if weights == "block" else 6)
    json.dumps(report.to_json(), allow_nan=False)
    integers = evaluate(qgraph, {"x": to_integers(samples[0]["x"], qgraph.tensors["x"].exponent)})
    assert all(np.abs(value.astype(int)).max() <= 127 for value in integers.values())


def block_net(scale: float = 1.0) -> Graph:
    """Two residual blocks of 32 channels, the second one with a convolution in its shortcut."""
    shape = (2, 32, 12, 12)
    return chain(
        random_conv("a1", "x", shape, 32, 1, relu=True, scale=scale),
        random_conv("a2", "a1", shape, 32, 2, residual="x", relu=True),
        random_conv("b0", "a2", shape, 48, 3, kernel=1, stride=(2, 2)),
        random_conv("b1", "a2", shape, 48, 4, stride=(2, 2), relu=True),
        random_conv("b2", "b1", (2, 48), 48, 5, residual="b0", relu=True),
        shape=shape,
    )


@pytest.mark.parametrize("activations", ["mse", "minmax"])
@pytest.mark.parametrize("weights", ["tensor", "block"])
def test_a_network_stays_close_to_float(activations, weights):
    graph = block_net()
    qgraph, report = quantise(graph, pictures(graph, 3), QuantiseOptions(activations, weights))
    assert_representable(graph, qgraph, 16 if weights == "block" else 48)
    assert report.samples == 3
    assert report.outputs["b2"] > 22
    assert all(layer.snr_db > 27 for layer in report.layers)
    # A tensor also carries the noise of the layers before it.
    tensors = {tensor.name: tensor for tensor in report.tensors}
    assert all(tensors[layer.output].snr_db <= layer.snr_db + 0.5 for layer in report.layers)
    assert all(0 <= tensor.saturated < 0.05 for tensor in report.tensors)
    if activations == "minmax":
        assert not any(tensor.saturated for tensor in report.tensors)


def test_the_report_says_what_the_graph_does():
    graph = block_net()
    samples = pictures(graph, 2)
    qgraph, report = quantise(graph, samples)
    signal = noise = 0.0
    for sample in samples:
        expected = evaluate_float(graph, sample)["b2"]
        integers = evaluate(qgraph, {"x": to_integers(sample["x"], qgraph.tensors["x"].exponent)})["b2"]
        signal += float(np.sum(expected.astype(float) ** 2))
        noise += float(np.sum((expected.astype(float) - to_floats(integers, qgraph.tensors["b2"].exponent)) ** 2))
    assert report.outputs["b2"] == pytest.approx(10 * np.log10(signal / noise))
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["a1", "a2", "b0", "b1", "b2"]
    assert f"{report.outputs['b2']:.1f} dB" in lines[6]


def test_rare_large_values_cost_less_with_mse():
    graph = chain(random_conv("c", "x", (1, 16), 16, 0), shape=(1, 16, 16, 16))
    samples = pictures(graph, 2)
    samples[1]["x"][0, 0, 0, 0] = 20.0
    covered, before = quantise(graph, samples, QuantiseOptions("minmax"))
    clipped, after = quantise(graph, samples, QuantiseOptions("mse"))
    assert covered.tensors["x"].exponent == covering(20.0)
    assert clipped.tensors["x"].exponent < covered.tensors["x"].exponent
    assert after.tensors[0].name == "x"
    assert after.tensors[0].saturated == 1 / 8192 > before.tensors[0].saturated == 0
    assert after.tensors[0].snr_db > before.tensors[0].snr_db


def test_blocks_of_different_size_get_exponents_of_their_own():
    conv = random_conv("c", "x", (1, 16), 32, 0)
    conv.weight[:16] = conv.weight[16:] / 32
    conv.bias[:] = 0
    graph = chain(conv)
    samples = pictures(graph, 2)
    tensor, _ = quantise(graph, samples, QuantiseOptions(weights="tensor"))
    block, _ = quantise(graph, samples, QuantiseOptions(weights="block", block=16))
    assert len(set(tensor.nodes[0].shift.tolist())) == 1
    assert block.nodes[0].shift[0] == block.nodes[0].shift[16] + 5
    assert (
        np.abs(block.nodes[0].weight[:16].astype(int)).max()
        >= 64
        > np.abs(tensor.nodes[0].weight[:16].astype(int)).max()
    )


@pytest.mark.parametrize("window", [1, 2, 4])
def test_means_over_powers_of_two_have_exact_weights(window):
    weight = np.zeros((4, 4, window, window), np.float32)
    weight[range(4), range(4)] = 1 / window**2
    pool = Conv("p", "x", "p", weight, np.zeros(4, np.float32), (window, window), operator="avg_pool2d")
    graph = chain(pool, shape=(1, 4, 8, 8))
    q = rng(0).integers(-127, 128, (1, 4, 8, 8)).astype(np.int8)
    qgraph, report = quantise(graph, [{"x": to_floats(q, -3)}], QuantiseOptions("minmax"))
    means = q.reshape(1, 4, 8 // window, window, 8 // window, window).mean((3, 5)) * 2.0**-3
    result = evaluate(qgraph, {"x": to_integers(to_floats(q, -3), qgraph.tensors["x"].exponent)})["p"]
    assert qgraph.tensors["x"].exponent == -3
    np.testing.assert_array_equal(result, to_integers(means.astype(np.float32), qgraph.tensors["p"].exponent))
    assert report.layers[0].operator == "avg_pool2d"


@pytest.mark.parametrize(("scale", "final"), [(1.0, False), (1 / 16, True)])
def test_a_sum_is_rounded_once_when_the_output_is_as_fine_as_the_residual(scale, final):
    """A convolution that gives its input back, added to itself and to something of another size."""
    weight = np.zeros((16, 16, 1, 1), np.float32)
    weight[range(16), range(16)] = 1
    first = Conv("r", "x", "r", weight * np.float32(scale), np.zeros(16, np.float32))
    graph = chain(first, Conv("y", "x", "y", weight, np.zeros(16, np.float32), residual="r"))
    qgraph, report = quantise(graph, pictures(graph, 2), QuantiseOptions("minmax"))
    node = qgraph.nodes[1]
    exponents = {name: tensor.exponent for name, tensor in qgraph.tensors.items()}
    assert (exponents["y"] > exponents["r"]) is (node.final_shift > 0)
    assert node.final_shift > 0 or not final
    # Whichever way, no more than half a step of the output, and what the residual itself lost, is lost.
    assert report.layers[1].snr_db is None or report.layers[1].snr_db > 30
    assert_representable(graph, qgraph, 16)


def test_a_tensor_that_is_always_zero_is_reported():
    conv = random_conv("a", "x", (1, 16), 16, 0, relu=True)
    conv.bias[:] = -1000
    graph = chain(conv, random_conv("b", "a", (1, 16), 16, 2))
    _, report = quantise(graph, pictures(graph, 2))
    assert report.silent == ("a",)
    assert "'a' was zero in every sample" in str(report)
    assert {tensor.name: tensor.snr_db for tensor in report.tensors}["a"] is None


def test_weights_that_are_all_zero_leave_the_bias():
    conv = random_conv("c", "x", (1, 16), 16, 0)
    conv.weight[:] = 0
    graph = chain(conv)
    qgraph, _ = quantise(graph, pictures(graph, 1))
    exponent, shift = qgraph.tensors["c"].exponent, qgraph.nodes[0].shift[0]
    result = to_floats(evaluate(qgraph, {"x": np.full((1, 16, 8, 8), 99, np.int8)})["c"], exponent)
    # Rounded as a bias, and once more as a value.
    lost = 2.0 ** (exponent - 1) + 2.0 ** (exponent - shift - 1)
    assert np.abs(result - conv.bias[:, None, None]).max() <= lost


def test_a_sum_of_too_many_products_gets_coarser_weights():
    channels = 50_000
    conv = Conv("c", "x", "c", np.ones((1, channels, 1, 1), np.float32), np.zeros(1, np.float32))
    graph = chain(conv, shape=(1, channels, 1, 1))
    qgraph, report = quantise(graph, [{"x": np.ones((1, channels, 1, 1), np.float32)}])
    assert reach(qgraph.nodes[0]) <= 2**30
    assert report.outputs["c"] is None or report.outputs["c"] > 40


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_layer_whose_numbers_do_not_fit_is_named():
    weight = np.full((16, 16, 1, 1), 1e4, np.float32)
    conv = Conv("huge", "x", "y", weight, np.zeros(16, np.float32), residual="x")
    graph = chain(conv)
    with pytest.raises(ModelError, match="'huge'"):
        quantise(graph, pictures(graph, 1))


def test_weights_that_are_not_finite_are_named():
    conv = random_conv("c", "x", (1, 16), 16, 0)
    graph = chain(conv)
    conv.bias[3] = np.nan
    with pytest.raises(ModelError, match="'c'"):
        quantise(graph, pictures(graph, 1))


def with_nan():
    x = np.zeros((1, 16, 8, 8), np.float32)
    x[0, 3, 2, 1] = np.nan
    return {"x": x}


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "not one sample"),
        ([{"x": np.zeros((1, 16, 8, 9), np.float32)}], r"sample 0: 'x' has the shape \(1, 16, 8, 9\)"),
        ([{"x": np.zeros((2, 16, 8, 8), np.float32)}], "shape"),
        ([{"x": np.zeros((1, 16, 8, 8))}], "float64, not an array of float32"),
        ([{"x": [[1.0]]}], "list, not an array"),
        ([{"y": np.zeros((1, 16, 8, 8), np.float32)}], r"sample 0 has \['y'\]"),
        ([{"x": np.zeros((1, 16, 8, 8), np.float32)}, {}], "sample 1"),
        ([with_nan()], "not finite"),
        ([{"x": np.full((1, 16, 8, 8), 3e38, np.float32)}], "'c' of the network is not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_samples_that_do_not_fit_are_refused(samples, words):
    graph = chain(random_conv("c", "x", (1, 16), 16, 0, scale=100.0))
    with pytest.raises(FleetError, match=words) as caught:
        quantise(graph, samples)
    assert caught.value.code == "bad-calibration"
    assert caught.value.hint


def test_samples_are_read_once_and_all_of_them_count():
    graph = chain(random_conv("c", "x", (1, 16), 16, 0))
    samples = pictures(graph, 6)
    samples[5]["x"][0, 0, 0, 0] = 500.0
    qgraph, report = quantise(graph, iter(samples), QuantiseOptions("minmax", report_samples=2))
    assert qgraph.tensors["x"].exponent == covering(500.0)
    assert report.samples == 2


def test_samples_are_not_kept_beyond_what_the_report_needs():
    graph = chain(random_conv("c", "x", (1, 16), 16, 0))
    given_out: list[weakref.ref[np.ndarray]] = []
    alive = []

    def stream():
        for sample in pictures(graph, 12):
            fresh = sample["x"].copy()
            given_out.append(weakref.ref(fresh))
            yield {"x": fresh}
            del fresh
            alive.append(sum(reference() is not None for reference in given_out))

    quantise(graph, stream(), QuantiseOptions(report_samples=2))
    assert len(alive) == 12
    assert max(alive) <= 2 + 1  # and the one at hand
