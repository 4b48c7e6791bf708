"""The VTA compiler: what it makes computes what the quantised graph says, in any order that the tokens allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from vta_graphs import GraphBuilder, run_program

from targets.base import ModelError
from targets.vta.checker import check
from targets.vta.config import DEFAULT, PUBLISHED, VtaConfig
from targets.vta.counters import count
from targets.vta.evaluate import evaluate
from targets.vta.lower import lower, reason_not_to_place
from targets.vta.lower.slots import assign
from targets.vta.lower.tiling import Geometry, best, why_not
from targets.vta.program import MAX_SEGMENT
from targets.vta.qgraph import QGraph

BATCHED = PUBLISHED["4x8_i8w8a32_15_16_16_18"]
#: So little memory that even small layers are cut in every direction.
SMALL = VtaConfig(log_uop_buff_size=12, log_inp_buff_size=10, log_wgt_buff_size=14, log_acc_buff_size=12).check()
CONFIGS = {"default": DEFAULT, "batched": BATCHED, "small": SMALL}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[VtaConfig, QGraph, int]:
    """A few layers of every kind, with sizes that divide nothing."""
    config = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    seed = draw(st.integers(0, 2**32 - 1))
    build = GraphBuilder(np.random.default_rng(seed), config.block)
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    x = build.input((draw(st.integers(1, 3)), draw(st.integers(1, 40)), *size))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "conv", "residual", "depthwise", "grouped", "pool", "dense"]))
        h, w = build.shape(x)[2:]
        if kind == "pool":
            if min(h, w) < 2:
                continue
            kernel = draw(st.integers(2, min(3, h, w)))
            x = build.pool(x, kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2)))
            continue
        if kind == "dense":
            x = build.conv(x, draw(st.integers(1, 40)), (h, w))
            continue
        kernel = (draw(st.integers(1, min(5, h))), draw(st.integers(1, min(5, w))))
        if kind == "residual":
            odd = (draw(st.integers(0, 1)) * 2 + 1,) * 2
            x = build.conv(x, build.shape(x)[1], odd, padding=odd[0] // 2, residual=x)
            continue
        groups = {"conv": 1, "grouped": 2, "depthwise": build.shape(x)[1]}[kind]
        outputs = groups * draw(st.integers(1, 3)) if kind != "conv" else draw(st.integers(1, 40))
        if build.shape(x)[1] % groups:
            continue
        x = build.conv(
            x,
            outputs,
            kernel,
            stride=draw(st.integers(1, 3)),
            padding=draw(st.integers(0, min(kernel) - 1)),
            groups=groups,
            dilation=draw(st.integers(1, 2)),
        )
    if not build.nodes:
        x = build.conv(x, 8, (1, 1))
    return config, build.graph(x), seed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_a_program_computes_its_graph_in_every_order(case: tuple[VtaConfig, QGraph, int]) -> None:
    config, graph, seed = case
    assume(not any(reason_not_to_place(node, graph, config) for node in graph.nodes))
    program = lower(graph, config)
    assert check(program) == []
    rng = np.random.default_rng(seed)
    inputs = {name: rng.integers(-127, 128, graph.tensors[name].shape).astype(np.int8) for name in graph.inputs}
    wanted = evaluate(graph, inputs)
    for semantics, order in (("hw", "program"), ("fsim", "program"), ("hw", "random"), ("fsim", "random")):
        found, counters = run_program(program, inputs, semantics=semantics, order=order, seed=seed)
        assert counters == count(program.table, config)
        for name in graph.outputs:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=f"{name} ({semantics}, {order})")


def check_exact(graph: QGraph, config: VtaConfig) -> None:
    """The program of ``graph`` gives what the graph says, for random inputs."""
    rng = np.random.default_rng(1)
    inputs = {name: rng.integers(-127, 128, graph.tensors[name].shape).astype(np.int8) for name in graph.inputs}
    found, _ = run_program(lower(graph, config), inputs)
    wanted = evaluate(graph, inputs)
    for name in graph.outputs:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("configuration", sorted(CONFIGS))
def test_shifts_of_every_size_are_exact(configuration: str) -> None:
    config = CONFIGS[configuration]
    build = GraphBuilder(np.random.default_rng(7), config.block)
    x = build.input((1, 8, 5, 5))
    for shift in (-16, -3, 0, 1, 15, 16, 30):
        x = build.conv(x, 8, (1, 1), shift=shift)
    graph = build.graph(x)
    check_exact(graph, config)


def test_a_shift_for_each_block_of_channels() -> None:
    build = GraphBuilder(np.random.default_rng(3), DEFAULT.block)
    x = build.input((1, 32, 6, 6))
    shifts = np.repeat([5, 5, 9, 0, 12], 16).astype(np.int32)
    graph = build.graph(build.conv(x, 80, (3, 3), padding=1, shift=shifts))
    check_exact(graph, DEFAULT)


def test_a_layer_that_cannot_be_placed_is_named_with_the_reason() -> None:
    build = GraphBuilder(np.random.default_rng(3), DEFAULT.block)
    x = build.input((1, 16, 60, 60))
    graph = build.graph(build.conv(x, 16, (40, 40)))
    with pytest.raises(ModelError, match=r"layer 'conv0' \(conv2d\) cannot be placed.*40×40"):
        lower(graph, DEFAULT)


def test_constants_of_more_than_an_allocation_are_spread() -> None:
    build = GraphBuilder(np.random.default_rng(3), DEFAULT.block)
    x = build.input((1, 2048, 1, 1))
    for _ in range(9):
        x = build.conv(x, 2048, (1, 1))
    program = lower(build.graph(x), DEFAULT)
    assert len(program.segments) > 1
    assert all(segment.size <= MAX_SEGMENT for segment in program.segments)
    for buffer in program.buffers:
        assert any(
            s.address <= buffer.address and buffer.address + buffer.size <= s.address + s.size for s in program.segments
        )


# --- Slots --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=80), st.integers(2, 6))
def test_a_chunk_is_in_its_slot_whenever_it_is_asked_for(requests: list[int], slots: int) -> None:
    holds: dict[int, int] = {}
    previous = -1
    for key, place in zip(requests, assign(requests, slots), strict=True):
        assert 0 <= place.slot < max(slots, 1)
        if place.load:
            # Never over the one that is being worked on.
            assert place.slot != previous or holds.get(place.slot) == key
            holds[place.slot] = key
        assert holds[place.slot] == key
        previous = place.slot


def test_what_fits_is_loaded_once_and_a_stream_passes_through_a_ring() -> None:
    assert sum(place.load for place in assign([0, 1, 2] * 5, 3)) == 3
    assert [place.slot for place in assign(list(range(9)), 3)] == [0, 1, 2] * 3
    # A loop over four chunks and three slots: keeping some beats keeping the newest, which would load all 20.
    assert sum(place.load for place in assign([0, 1, 2, 3] * 5, 3)) < 16


# --- Tiling -------------------------------------------------------------------------------------


def geometry(ci: int, co: int, size: int, kernel: int = 3, stride: int = 1) -> Geometry:
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    pads = (pad, pad, pad, pad)
    return Geometry(
        1, ci, co, size, size, out, out, (kernel, kernel), (stride, stride), pads, (1, 1), bytes([1]) * (ci * co), False
    )


@pytest.mark.parametrize(
    ("shape", "input_loads"),
    [
        (geometry(4, 4, 56), 1.25),
        (geometry(4, 8, 56, stride=2), 1.1),
        (geometry(8, 8, 28), 1.25),
        (geometry(16, 16, 14), 2.0),
        (geometry(32, 32, 7), 1.0),
    ],
)
def test_weights_move_once_and_inputs_hardly_more(shape: Geometry, input_loads: float) -> None:
    """Every 3×3 convolution of ResNet-18: the bytes that no schedule can avoid, and the halos."""
    found = best(shape, DEFAULT)
    weights = shape.ci * shape.co * 9 * DEFAULT.wgt_bytes
    inputs = shape.ci * shape.h * shape.w * DEFAULT.inp_bytes
    assert weights + inputs <= found.bytes_moved <= weights + inputs * input_loads * 1.02 + 40_000


def test_a_reason_is_given_for_what_does_not_fit() -> None:
    assert why_not(geometry(1, 1, 56, kernel=51), DEFAULT)
    assert "65535" in why_not(geometry(1, 1, 300), DEFAULT)
    assert why_not(geometry(4, 4, 56), DEFAULT) == ""
