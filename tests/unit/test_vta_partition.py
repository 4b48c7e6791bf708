"""What of a network goes to the accelerator, as which nodes, and why the rest does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from relax_networks import Network, compiled, with_function
from tvm import relax

from targets.base import FleetError
from targets.vta.config import DEFAULT, PUBLISHED
from targets.vta.evaluate import evaluate_float
from targets.vta.graph import Conv, MaxPool
from targets.vta.host_module import CALIBRATE, calibration_module
from targets.vta.partition import REGION, Partitioned, PartitionOptions, partition
from targets.vta.regions import regions

ALL = PartitionOptions(first_conv=True, dense=True)


def checked(network: Network, *outputs: Any, options: PartitionOptions = ALL) -> Partitioned:
    """The partition of a network, after its float result was found to be that of the whole network."""
    module = network.module(*outputs)
    made = partition(module, DEFAULT, options)
    graphs = made.regions

    def region(number: int, inputs: list[Any]) -> list[Any]:
        graph = graphs[number]
        for name, array in zip(graph.inputs, inputs, strict=True):
            assert array.shape == graph.tensors[name]
        values = evaluate_float(graph, dict(zip(graph.inputs, inputs, strict=True)))
        return [values[name] for name in graph.outputs]

    run = with_function(CALIBRATE, calibration_module(made), [len(graph.inputs) for graph in graphs], region)
    inputs = network.samples()
    for found, expected in zip(run(inputs), compiled(module)(inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return made


def calls(made: Partitioned) -> list[Any]:
    return [
        binding.value
        for block in made.module["main"].body.blocks
        for binding in block.bindings
        if getattr(getattr(binding.value, "op", None), "name", "") == "relax.call_dps_packed"
    ]


def nodes(made: Partitioned) -> list[Conv | MaxPool]:
    (graph,) = made.regions
    return list(graph.nodes)


def reason(made: Partitioned, name: str) -> str:
    (note,) = [note for note in made.notes if note.startswith(f"{name} ")]
    return note.partition(" stays on the CPU: ")[2]


# --- Nodes --------------------------------------------------------------------------------------


def test_a_residual_block_is_three_convolutions() -> None:
    """The sum goes to the 3×3 convolution, not to the projection, whichever comes first."""
    for swapped in (False, True):
        net = Network((1, 16, 10, 10))
        x = net.relu(net.conv(net.inputs[0], 16, padding=1))
        y = net.conv(net.relu(net.conv(x, 24, padding=1, strides=2)), 24, padding=1)
        projection = net.conv(x, 24, kernel=1, strides=2)
        made = checked(net, net.relu(net.add(*((projection, y) if swapped else (y, projection)))))
        first, second, shortcut, last = nodes(made)
        assert isinstance(last, Conv) and last.residual == shortcut.output and last.relu
        assert last.input == second.output and last.weight.shape == (24, 24, 3, 3)
        assert isinstance(shortcut, Conv) and shortcut.input == first.output and not shortcut.relu
        assert made.regions[0].inputs == ("input-0",) and made.regions[0].outputs == (last.output,)
        assert made.notes == () and len(calls(made)) == 1


Step = Callable[[Network, Any], Any]


def constant(operator: str, *shape: int, left: bool = False, of: float | None = None) -> Step:
    def step(net: Network, x: Any) -> Any:
        values = net.draw(*shape) + 2 if of is None else np.full(shape, of, np.float32)
        pair = (relax.const(values.astype(np.float32)), x)
        return net.emit(getattr(relax.op, operator)(*(pair if left else pair[::-1])))

    return step


FOLDED: dict[str, list[Step]] = {
    "batch norm as it is decomposed": [
        constant("subtract", 1, 16, 1, 1),
        constant("divide", 1, 16, 1, 1),
        constant("multiply", 16, 1, 1),
        constant("add", 16, 1, 1, left=True),
    ],
    "one number for all channels": [constant("multiply", of=0.5), constant("add", 1, 1, 1, of=3)],
    "constants on the left": [constant("subtract", 16, 1, 1, left=True), constant("multiply", 1, 1, 1, left=True)],
    "relu as a clip": [lambda net, x: net.emit(relax.op.clip(x, 0, math.inf))],
    "relu as a maximum": [constant("maximum", of=0.0)],
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("before", ["layer", "lone"])
def test_what_follows_an_operator_becomes_part_of_it(name: str, before: str) -> None:
    net = Network((2, 8, 6, 6))
    x = x_before = net.conv(net.inputs[0], 16, padding=1)
    if before == "lone":  # what it follows has another reader, so it is a node of its own
        x_before = net.relu(x)
    for step in FOLDED[name]:
        x = step(net, x)
    made = checked(net, net.conv(x, 16), *([x_before] if before == "lone" else []))
    found = nodes(made)
    last = found[-2]
    assert isinstance(last, Conv) and last.relu == name.startswith("relu")
    assert len(found) == (2 if before == "layer" else 4)
    if before == "lone":
        assert last.weight.shape == (16, 1, 1, 1) and last.groups == 16
        assert last.operator == ("scale" if last.name.startswith("scale") else last.name.partition("-")[0])


def test_nothing_is_folded_behind_a_sum_or_a_relu() -> None:
    net = Network((1, 16, 6, 6))
    x = net.relu(net.conv(net.inputs[0], 16, padding=1))
    summed = net.add(net.conv(x, 16, padding=1), x)
    scaled = constant("multiply", 16, 1, 1)(net, summed)  # would scale the residual too
    shifted = constant("add", 16, 1, 1)(net, net.relu(scaled))
    made = checked(net, net.conv(shifted, 8))
    assert [node.operator for node in nodes(made)] == ["conv2d", "conv2d", "scale", "add", "conv2d"]


def test_a_bias_may_come_after_the_sum() -> None:
    net = Network((1, 16, 6, 6))
    x = net.conv(net.inputs[0], 16, padding=1)
    y = net.add(net.conv(net.relu(x), 16, padding=1, bias=False), x)
    made = checked(net, net.relu(net.add(y, net.draw(16, 1, 1))))
    assert [node.operator for node in nodes(made)] == ["conv2d", "relu", "conv2d"]


def test_sums_of_what_is_read_elsewhere_are_nodes_of_their_own() -> None:
    net = Network((1, 16, 6, 6))
    a = net.relu(net.conv(net.inputs[0], 16, padding=1))
    b = net.relu(net.conv(a, 16, padding=1))
    made = checked(net, net.conv(net.relu(net.add(a, b)), 8), b, net.conv(net.add(a, a), 8))
    sums = [node for node in nodes(made) if node.operator == "add"]
    assert len(sums) == 2 and all(isinstance(node, Conv) and node.groups == 16 for node in sums)
    assert sums[0].relu and {sums[0].input, sums[0].residual} == {"conv2d-0", "conv2d-1"}  # type: ignore[union-attr]
    assert sums[1].input == sums[1].residual == "conv2d-0"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "attributes",
    [
        {"groups": 4, "padding": 1},
        {"groups": 16, "padding": 1, "strides": 2},
        {"padding": (0, 1, 1, 0), "strides": (2, 1)},
        {"padding": 2, "dilation": (2, 1)},
        {"kernel": 5, "padding": 2},
    ],
)
def test_every_form_of_convolution(attributes: dict[str, Any]) -> None:
    net = Network((3, 16, 9, 11))
    made = checked(net, net.conv(net.inputs[0], 32, **attributes))
    (node,) = nodes(made)
    assert isinstance(node, Conv) and node.groups == attributes.get("groups", 1)
    assert made.regions[0].tensors[node.output][0] == 3


# --- Pools --------------------------------------------------------------------------------------


def pooled(pool: Step, *, relu: bool = True, behind: bool = True) -> Partitioned:
    net = Network((1, 16, 13, 13))
    x = net.conv(net.inputs[0], 16, padding=1)
    x = pool(net, net.relu(x) if relu else x)
    return checked(net, net.conv(x, 16, kernel=1) if behind else x)


def max_pool(**attributes: Any) -> Step:
    return lambda net, x: net.emit(relax.op.nn.max_pool2d(x, **attributes))


def avg_pool(**attributes: Any) -> Step:
    return lambda net, x: net.emit(relax.op.nn.avg_pool2d(x, **attributes))


def test_max_pools_that_are_exact() -> None:
    pool = nodes(pooled(max_pool(pool_size=3, strides=2, padding=1)))[1]
    assert isinstance(pool, MaxPool) and (pool.kernel, pool.stride, pool.padding) == ((3, 3), (2, 2), (1, 1, 1, 1))
    without_pads = nodes(pooled(max_pool(pool_size=3, strides=2), relu=False))[1]
    assert isinstance(without_pads, MaxPool)
    # The last window reaches two beyond the picture, without padding.
    ceiling = nodes(pooled(max_pool(pool_size=3, strides=2, padding=(0, 0, 0, 0), ceil_mode=True)))[1]
    assert isinstance(ceiling, MaxPool) and ceiling.padding == (0, 0, 0, 0)
    reaching = nodes(pooled(max_pool(pool_size=2, strides=2, ceil_mode=True)))[1]
    assert isinstance(reaching, MaxPool) and reaching.padding == (0, 0, 1, 1)


def test_a_max_pool_of_pads_and_negative_values_stays() -> None:
    made = pooled(max_pool(pool_size=3, strides=2, padding=1), relu=False)
    assert "pads with zeros" in reason(made, "max_pool2d-0") and len(made.regions) == 2
    made = pooled(max_pool(pool_size=2, strides=2, ceil_mode=True), relu=False)
    assert "pads with zeros" in reason(made, "max_pool2d-0")


def test_a_pool_goes_only_where_both_sides_are() -> None:
    pool = max_pool(pool_size=3, strides=2, padding=1)
    assert reason(pooled(pool, behind=False), "max_pool2d-0") == "what comes after it is on the CPU"
    net = Network((1, 16, 13, 13))
    x = net.emit(relax.op.sigmoid(net.inputs[0]))
    made = checked(net, net.conv(pool(net, net.relu(x)), 8))
    assert reason(made, "max_pool2d-0") == "what comes before it is on the CPU"
    # The pool's leaving takes the ReLU along: no layer is next to it any more.
    assert made.regions[0].inputs == ("max_pool2d-0",)


def test_averages_of_a_power_of_two_are_convolutions() -> None:
    pool = nodes(pooled(avg_pool(pool_size=2, strides=2)))[1]
    assert isinstance(pool, Conv) and pool.operator == "avg_pool2d" and pool.groups == 16
    np.testing.assert_array_equal(pool.weight, np.full((16, 1, 2, 2), 0.25))
    included = avg_pool(pool_size=2, strides=2, padding=(1, 1, 1, 1), count_include_pad=True)
    padded = nodes(pooled(included))[1]
    assert isinstance(padded, Conv) and padded.padding == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        (avg_pool(pool_size=3, strides=2), "the average of 9 values is not exact in integers"),
        (avg_pool(pool_size=2, strides=2, padding=1), "the accelerator does not compute this form of avg_pool2d"),
        (avg_pool(pool_size=2, strides=2, ceil_mode=True), "the accelerator does not compute this form of avg_pool2d"),
        (
            lambda net, x: net.emit(relax.op.mean(x, [2, 3], keepdims=True)),
            "the average of 169 values is not exact in integers",
        ),
    ],
)
def test_other_averages_stay(pool: Step, why: str) -> None:
    assert reason(pooled(pool), "avg_pool2d-0") == why


# --- Dense layers -------------------------------------------------------------------------------


def classifier(size: int, options: PartitionOptions) -> Partitioned:
    net = Network((2, 8, 8, 8))
    x = net.relu(net.conv(net.inputs[0], 16, padding=1, strides=8 // size))
    mean = net.emit(relax.op.mean(x, [2, 3], keepdims=False))
    flat = net.emit(relax.op.reshape(x, (2, 16 * size * size)))
    scores = net.relu(net.dense(flat, 20))
    return checked(net, net.dense(scores, 5), mean, options=options)


def test_dense_layers_are_convolutions_when_asked_for() -> None:
    made = classifier(4, ALL)
    _, first, second = [node for node in nodes(made) if node.operator != "avg_pool2d"]
    assert isinstance(first, Conv) and first.weight.shape == (20, 16, 4, 4) and first.relu
    assert isinstance(second, Conv) and second.weight.shape == (5, 20, 1, 1) and second.operator == "dense"
    assert made.regions[0].tensors[second.output] == (2, 5, 1, 1)
    assert reason(made, "avg_pool2d-0") == "what comes after it is on the CPU"


def test_dense_layers_stay_in_float_by_default() -> None:
    made = classifier(2, PartitionOptions(first_conv=True))
    assert len(nodes(made)) == 1
    assert reason(made, "dense-0") == reason(made, "dense-1") == "dense layers stay in float (option dense)"


def test_a_dense_layer_behind_a_global_average() -> None:
    net = Network((1, 8, 8, 8))
    x = net.relu(net.conv(net.inputs[0], 16, padding=1))
    mean = net.emit(relax.op.mean(x, [2, 3], keepdims=True))
    made = checked(net, net.dense(net.emit(relax.op.reshape(mean, (1, 16))), 10))
    assert [node.operator for node in nodes(made)] == ["conv2d", "avg_pool2d", "dense"]


# --- Regions ------------------------------------------------------------------------------------


def test_the_first_convolution_stays_by_default() -> None:
    net = Network((1, 3, 8, 8), (1, 8, 8, 8))
    scaled = constant("divide", 3, 1, 1)(net, net.inputs[0])
    first = net.relu(net.conv(scaled, 8, padding=1))
    also_first = net.conv(net.inputs[1], 8, padding=1)
    made = checked(net, net.conv(net.add(first, also_first), 8), options=PartitionOptions())
    assert "first_conv" in reason(made, "conv2d-0") and "first_conv" in reason(made, "conv2d-1")
    assert len(nodes(made)) == 1
    # On the accelerator the picture's scaling stays in float, for it costs nothing there.
    made = checked(net, net.conv(net.add(first, also_first), 8))
    assert reason(made, "scale-0") == "what comes before it is on the CPU"
    assert [node.operator for node in nodes(made)] == ["conv2d"] * 3


def test_regions_are_convex() -> None:
    """The gate is computed on the CPU, from the first region, for the second."""
    net = Network((1, 16, 6, 6))
    x = net.relu(net.conv(net.inputs[0], 16, padding=1))
    gate = net.emit(relax.op.sigmoid(net.conv(x, 16, kernel=1)))
    y = net.emit(relax.op.multiply(net.conv(x, 16, padding=1), gate))
    made = checked(net, net.conv(y, 8), x)
    first, second = made.regions
    assert [node.name for node in first.nodes] == ["conv2d-0", "conv2d-1", "conv2d-2"]
    assert first.outputs == ("conv2d-0", "conv2d-1", "conv2d-2") and second.inputs == ("multiply-0",)
    assert reason(made, "sigmoid-0") == "the accelerator does not compute sigmoid"
    assert reason(made, "multiply-0") == "the accelerator does not compute this form of multiply"
    net = Network((1, 16, 6, 6))
    x = net.relu(net.conv(net.inputs[0], 16, padding=1))
    around = net.add(net.conv(net.emit(relax.op.tanh(x)), 16, padding=1), x)
    made = checked(net, around)
    assert [graph.inputs for graph in made.regions] == [("input-0",), ("tanh-0", "conv2d-0")]


def test_a_scale_at_the_entrance_goes_along_only_if_its_input_does() -> None:
    for shortcut in (True, False):
        net = Network((1, 16, 6, 6))
        x = max_pool(pool_size=3, padding=1)(net, net.relu(net.conv(net.inputs[0], 16, padding=1)))
        active = net.relu(constant("multiply", 16, 1, 1)(net, x))
        residual = x if shortcut else net.conv(active, 16, kernel=1)
        y = net.add(net.conv(active, 16, padding=1), residual)
        made = checked(net, y, options=PartitionOptions())
        assert made.regions[0].inputs == (("max_pool2d-0",) if shortcut else ("scale-0",))


def test_what_only_scales_is_no_region() -> None:
    net = Network((1, 16, 6, 6))
    x = net.relu(constant("multiply", 16, 1, 1)(net, net.inputs[0]))
    made = checked(net, x)
    assert made.regions == () and "no layer next to it" in reason(made, "scale-0")


def test_relu6_stays() -> None:
    net = Network((1, 16, 6, 6))
    x = net.emit(relax.op.clip(net.conv(net.inputs[0], 16), 0, 6))
    made = checked(net, net.conv(x, 8))
    assert len(made.regions) == 2 and reason(made, "clip-0") == "a clip to 0..6 is not exact in integers"


def test_everything_between_two_pools() -> None:
    net = Network((1, 8, 16, 16))
    x = max_pool(pool_size=2, strides=2)(net, net.relu(net.conv(net.inputs[0], 16, padding=1)))
    y = net.relu(net.conv(net.relu(net.conv(x, 16, padding=1)), 16, padding=1))
    mean = net.emit(relax.op.mean(y, [2, 3], keepdims=True))
    z = net.conv(mean, 8, kernel=1)
    for names in (("max_pool2d", "mean"), ("nn.max_pool2d", "nn.global_avg_pool2d")):
        made = checked(net, z, options=PartitionOptions(first_conv=True, pools=names))
        assert [node.name for node in nodes(made)] == ["conv2d-1", "conv2d-2"]
        assert reason(made, "conv2d-0") == reason(made, "conv2d-3") == "it is outside of the pools that were named"
    for names, missing in ((("max_pool3d", "mean"), "no max_pool3d"), (("mean", "max_pool2d"), "after the first mean")):
        with pytest.raises(FleetError, match=missing) as caught:
            partition(net.module(z), DEFAULT, PartitionOptions(pools=names))
        assert caught.value.code == "bad-option" and "conv2d" in caught.value.hint


# --- What cannot be placed ----------------------------------------------------------------------


def placed(convolution: Step, shape: tuple[int, ...] = (1, 16, 60, 60)) -> Partitioned:
    net = Network(shape)
    return partition(net.module(convolution(net, net.inputs[0])), DEFAULT, ALL)


@pytest.mark.parametrize(
    ("convolution", "why"),
    [
        (lambda net, x: net.conv(x, 16, kernel=35, padding=17), "padding of 17; a load adds at most 15"),
        (lambda net, x: net.conv(x, 16, kernel=1, padding=1), "padding as large as the kernel"),
        (lambda net, x: net.conv(x, 16, kernel=40), "a kernel of 40×40; WGT holds 1024 positions"),
        (lambda net, x: net.conv(x, 16, dilation=24), "a kernel that reaches over 49×49 pixels; INP holds 2048"),
    ],
)
def test_a_convolution_that_does_not_fit_stays(convolution: Step, why: str) -> None:
    made = placed(convolution)
    assert made.regions == () and reason(made, "conv2d-0") == why


def test_weights_that_are_no_numbers_stay() -> None:
    weight = np.zeros((16, 16, 1, 1), np.float32)
    weight[0, 0] = np.nan
    made = placed(lambda net, x: net.emit(relax.op.nn.conv2d(x, relax.const(weight))))
    assert reason(made, "conv2d-0") == "its weights are not finite"


def test_sums_that_are_too_long_stay() -> None:
    made = placed(lambda net, x: net.dense(x, 16), (1, 40_000))
    assert reason(made, "dense-0") == "sums of 40000 products could exceed the accumulator"


def test_weights_that_are_too_many_stay() -> None:
    weight = relax.const(np.zeros((20_000, 2048), np.float32))
    made = placed(lambda net, x: net.emit(relax.op.matmul(x, weight)), (1, 20_000))
    assert reason(made, "dense-0") == f"weights of more than {32 << 20} bytes"


def test_pictures_that_are_too_large_stay() -> None:
    made = placed(lambda net, x: net.conv(x, 16, kernel=1), (1, 16, 1500, 1500))
    assert reason(made, "conv2d-0") == f"a tensor of more than {32 << 20} bytes"


def test_weights_that_are_computed_stay() -> None:
    net = Network((1, 16, 6, 6), (8, 16, 1, 1))
    made = checked(net, net.emit(relax.op.nn.conv2d(*net.inputs)))
    assert made.regions == () and "this form of conv2d" in reason(made, "conv2d-0")


def test_a_network_with_branches_stays_as_it_is() -> None:
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    inner = relax.Var("y", relax.TensorType((1, 4), "float32"))
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(inner, relax.op.nn.relu(x))])], inner)
    main = relax.Function([x], body, inner.ty).with_attr("global_symbol", "main")
    module = relax.transform.Normalize()(tvm.IRModule({"main": main}))
    made = partition(module, DEFAULT)
    assert made.module is module and made.regions == () and "branches" in made.notes[0]


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=lambda config: config.name)
def test_every_published_configuration(config: Any) -> None:
    net = Network((4, 16, 8, 8))
    made = partition(net.module(net.conv(net.inputs[0], 20)), config, ALL)
    assert len(made.regions) == 1


def test_the_call_of_a_region_says_what_goes_in_and_out() -> None:
    net = Network((1, 16, 6, 6), (1, 16, 6, 6))
    x = net.add(net.conv(net.inputs[0], 16, padding=1), net.inputs[1])
    made = checked(net, net.relu(x), net.conv(x, 8))
    (call,) = calls(made)
    assert call.args[0].global_symbol == REGION
    number, *inputs = call.args[1].fields
    assert int(number.value) == 0 and len(inputs) == 2
    shapes = [tuple(int(size) for size in field.shape) for field in call.ty.fields]
    assert shapes == [made.regions[0].tensors[name] for name in made.regions[0].outputs]


# --- Properties ---------------------------------------------------------------------------------


@st.composite
def units(draw: st.DrawFn) -> tuple[list[list[int]], list[bool]]:
    count = draw(st.integers(1, 14))
    needs = [sorted(draw(st.sets(st.integers(0, unit - 1), max_size=3))) if unit else [] for unit in range(count)]
    return needs, draw(st.lists(st.booleans(), min_size=count, max_size=count))


@given(units())
def test_regions_can_be_computed_in_order_and_are_as_large_as_can_be(case: tuple[list[list[int]], list[bool]]) -> None:
    needs, allowed = case
    groups = regions(needs, allowed)
    assert sorted(unit for group in groups for unit in group) == list(range(len(needs)))
    assert in_order(groups, needs)
    position = {unit: number for number, group in enumerate(groups) for unit in group}
    for group in groups:
        assert len(group) == 1 or all(allowed[unit] for unit in group)
    # No two that are neighbours could be one as well.
    for unit, needed in enumerate(needs):
        for each in needed:
            a, b = position[each], position[unit]
            if a != b and allowed[unit] and allowed[each]:
                rest = [group for number, group in enumerate(groups) if number not in (a, b)]
                assert not orderable([*rest, groups[a] + groups[b]], needs)


def in_order(groups: list[list[int]], needs: list[list[int]]) -> bool:
    done: set[int] = set()
    for group in groups:
        if any(each not in done and each not in group for unit in group for each in needs[unit]):
            return False
        done.update(group)
    return True


def orderable(groups: list[list[int]], needs: list[list[int]]) -> bool:
    waiting, done = list(groups), set[int]()
    while waiting:
        ready = [group for group in waiting if all(n in done or n in group for unit in group for n in needs[unit])]
        if not ready:
            return False
        done.update(unit for group in ready for unit in group)
        waiting = [group for group in waiting if group not in ready]
    return True


@given(st.lists(st.tuples(st.sampled_from("cdnrsamtpv"), st.integers(0, 99), st.integers(0, 99)), max_size=9))
@settings(max_examples=15, deadline=None)
def test_a_partitioned_network_computes_what_the_network_does(plan: list[tuple[str, int, int]]) -> None:
    net = Network((2, 8, 6, 6))
    values = [net.conv(net.inputs[0], 8, padding=1)]
    steps: dict[str, Callable[[Any, Any], Any]] = {
        "c": lambda x, _: net.conv(x, 8, padding=1),
        "d": lambda x, _: net.conv(x, 8, padding=1, groups=8),
        "n": lambda x, _: net.conv(x, 8, kernel=1, bias=False),
        "r": lambda x, _: net.relu(x),
        "s": lambda x, _: constant("multiply", 8, 1, 1, of=0.5)(net, constant("subtract", 8, 1, 1)(net, x)),
        "a": lambda x, y: net.add(x, y),
        "m": lambda x, _: max_pool(pool_size=3, padding=1)(net, x),
        "t": lambda x, _: net.emit(relax.op.tanh(x)),
        "p": lambda x, _: avg_pool(pool_size=3, padding=1)(net, x),
        "v": lambda x, y: net.emit(relax.op.multiply(x, y)),
    }
    for step, first, second in plan:
        values.append(steps[step](values[first % len(values)], values[second % len(values)]))
    made = checked(net, net.emit(relax.op.tanh(values[-1])), values[len(values) // 2])
    names = [node.name for graph in made.regions for node in graph.nodes]
    assert len(names) == len(set(names))
    for graph in made.regions:
        known = set(graph.inputs)
        for node in graph.nodes:
            assert node.input in known and (isinstance(node, MaxPool) or node.residual in {"", *known})
            known.add(node.output)
        assert known == set(graph.tensors) and set(graph.outputs) <= known
