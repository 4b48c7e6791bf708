"""Matrix products with constant weights against torch: any size, any tile, every vector width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from targets.cpu.kernels.dense import Dense, DenseTile, dense, pack, plan
from targets.cpu.kernels.matmul import MatMul, matmul
from targets.cpu.kernels.program import NOTHING, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType
from targets.cpu.machine import X86_MACHINE
from targets.cpu.processors import ARM64, ARMV7, X86

PROCESSORS = (*X86, *ARM64, *ARMV7)
TARGET = {"kind": "llvm", "mcpu": X86_MACHINE.processor("host").mcpu}


def with_everything(rows: int, outputs: int) -> Program:
    """Bias, residual sum, ReLU6."""
    operands = (
        OperandType("channel", ImageType((1, outputs, 1, 1))),
        OperandType("image", ImageType((rows, outputs, 1, 1))),
    )
    steps = (
        Step("add", (Result(0), Operand(0))),
        Step("add", (Result(1), Operand(1))),
        Step("maximum", (Result(2), 0.0)),
        Step("minimum", (Result(3), 6.0)),
    )
    return Program(steps, operands)


def difference(spec: Dense, transposed: bool = False) -> float:
    """The largest difference between what the kernel and what torch computes of noise."""
    noise = np.random.default_rng(spec.rows + spec.inputs + spec.outputs)
    x, w, bias, residual = (
        noise.standard_normal(shape).astype("float32")
        for shape in ((spec.rows, spec.inputs), (spec.inputs, spec.outputs), spec.outputs, (spec.rows, spec.outputs))
    )
    w /= np.sqrt(spec.inputs)
    operands = [bias, residual] if spec.program.operands else []
    packed = pack(np.ascontiguousarray(w.T) if transposed else w, spec, transposed)
    assert packed.shape == spec.packed
    y = tvm.runtime.tensor(np.full((spec.rows, spec.outputs), np.nan, "float32"))
    library: Any = tvm.compile(tvm.IRModule({"main": dense(spec, "main")}), target=TARGET)
    library["main"](*map(tvm.runtime.tensor, (x, packed, *operands)), y)
    expected = torch.from_numpy(x).double() @ torch.from_numpy(w).double()
    if operands:
        expected = (expected + torch.from_numpy(bias) + torch.from_numpy(residual)).clamp(0, 6)
    return float(np.abs(y.numpy() - expected.numpy()).max())


@st.composite
def specs(draw: st.DrawFn) -> Dense:
    rows, inputs, outputs = (draw(st.integers(1, most)) for most in (40, 90, 90))
    lanes = draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if n <= outputs]))
    tile_rows = draw(st.integers(1, min(rows, 7)))
    tile = DenseTile(
        rows=tile_rows,
        blocks=draw(st.integers(1, 4)),
        sums=draw(st.integers(1, 5)),
        chunk=tile_rows * draw(st.integers(1, 5)),
        depth=draw(st.integers(1, inputs)),
        shares=draw(st.integers(1, 3)),
    )
    # More parts than a plan would ever make are a long program only.
    tile = tile if inputs // tile.depth <= 4 else replace(tile, depth=inputs)
    program = draw(st.sampled_from((NOTHING, with_everything(rows, outputs))))
    return Dense(rows, inputs, outputs, tile, lanes, program, by_lane=draw(st.sampled_from(["", "fmla"])))


@settings(max_examples=40, deadline=None)
@given(spec=specs(), transposed=st.booleans())
def test_any_tile_of_any_product(spec: Dense, transposed: bool) -> None:
    assert difference(spec, transposed) < 1e-5


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 512, 1000), (1, 64, 1), (3, 2048, 10), (31, 4000, 1), (197, 300, 130), (300, 3000, 40)],
)
def test_planned_products(rows: int, inputs: int, outputs: int, lanes: int) -> None:
    """On this host every width of vector; a small cache so that panels are cut too."""
    registers = 32 if lanes == 16 else 16
    tile, lanes = plan(rows, inputs, outputs, lanes=lanes, registers=registers, l1_bytes=8 << 10, l2_bytes=128 << 10)
    assert difference(Dense(rows, inputs, outputs, tile, lanes, with_everything(rows, outputs))) < 1e-5


@given(
    rows=st.integers(1, 5000),
    inputs=st.integers(1, 30_000),
    outputs=st.integers(1, 5000),
    processor=st.sampled_from(PROCESSORS),
    by_lane=st.sampled_from(["", "fmla", "vmla"]),
)
# So long rows for so few outputs that no second-level cache holds a copy of two tiles.
@example(rows=31, inputs=3964, outputs=1, processor=ARM64[-1], by_lane="")
@example(rows=40, inputs=30_000, outputs=1, processor=ARMV7[0], by_lane="vmla")
def test_plans_fit_the_processor(rows: int, inputs: int, outputs: int, processor: Any, by_lane: Any) -> None:
    tile, lanes = plan(
        rows,
        inputs,
        outputs,
        lanes=processor.lanes,
        registers=processor.registers,
        l1_bytes=processor.l1_bytes,
        l2_bytes=processor.l2_bytes,
        by_lane=by_lane,
    )
    spec = Dense(rows, inputs, outputs, tile, lanes)
    assert lanes <= outputs and tile.rows <= rows and tile.chunk % tile.rows == 0 and 1 <= tile.depth <= inputs
    assert tile.rows * tile.blocks * tile.sums + min(tile.rows, tile.blocks) < processor.registers
    if tile.chunk > tile.rows:
        # A panel of weights and what it is multiplied with stay in the first cache, or as few inputs as there can be.
        panel = 4 * tile.depth * (tile.blocks * lanes + tile.rows)
        assert panel <= processor.l1_bytes or tile.depth <= lanes
    # Weights that were packed are hardly more than weights.
    assert spec.groups * tile.blocks * lanes <= outputs + tile.blocks * lanes


def test_nothing_spills() -> None:
    """The sums are registers: a loop that kept them in memory would be several times as slow."""
    rows, inputs, outputs = 200, 300, 512
    tile, lanes = plan(rows, inputs, outputs, lanes=16, registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20)
    spec = Dense(rows, inputs, outputs, tile, lanes)
    library: Any = tvm.compile(
        tvm.IRModule({"main": dense(spec, "main")}), target={"kind": "llvm", "mcpu": "x86-64-v4"}
    )
    assembly = library.mod.inspect_source("asm").splitlines()
    products = [line for line in assembly if "vfmadd" in line]
    assert len(products) >= tile.rows * tile.blocks
    spilled = [line for line in assembly if "zmm" in line and ("(%rsp" in line or "(%rbp" in line)]
    assert not spilled, spilled[:5]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), batch=st.integers(1, 3), transposed=st.booleans(), lanes=st.sampled_from((1, 4, 8, 16)))
def test_products_of_activations(data: st.DataObject, batch: int, transposed: bool, lanes: int) -> None:
    rows, inputs = (data.draw(st.integers(1, 40)) for _ in range(2))
    outputs = data.draw(st.integers(lanes, 90))
    chunk = data.draw(st.integers(1, rows))
    tile = (data.draw(st.integers(1, min(chunk, 6))), data.draw(st.integers(1, 4)))
    a, b, y = (2, batch, rows, inputs), (2, batch, inputs, outputs), (2, batch, rows, outputs)
    given_b = (*b[:2], outputs, inputs) if transposed else b
    spec = MatMul(2 * batch, rows, inputs, outputs, a, given_b, y, tile, chunk, lanes, transposed)
    noise = np.random.default_rng(rows)
    left, right = (noise.standard_normal(shape).astype("float32") for shape in (a, given_b))
    result = tvm.runtime.tensor(np.full(y, np.nan, "float32"))
    library: Any = tvm.compile(tvm.IRModule({"main": matmul(spec, "main")}), target=TARGET)
    library["main"](tvm.runtime.tensor(left), tvm.runtime.tensor(right), result)
    expected = left.astype("float64") @ (right.swapaxes(-1, -2) if transposed else right)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-4)
