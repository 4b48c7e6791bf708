"""Operators of pointwise programs: errors in units of the last place, infinities, NaN, and the code they become."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tvm
from blocked_pictures import LANES, noise, run

from targets.cpu.compile import tvm_target
from targets.cpu.kernels.pointwise import Pointwise, pointwise
from targets.cpu.kernels.program import OPERATORS, Operand, OperandType, Program, Result, Step
from targets.cpu.layout import ImageType, Layout
from targets.cpu.machine import ARM64_MACHINE, ARMV7_MACHINE, X86_MACHINE, Machine

Floats = npt.NDArray[np.float32]

#: Reference in double precision, and the error that is allowed where the result is a normal number.
FUNCTIONS: dict[str, tuple[Any, int]] = {
    "exp": (torch.exp, 2),
    "sigmoid": (torch.sigmoid, 3),
    "tanh": (torch.tanh, 7),
    "erf": (torch.erf, 7),
    "sqrt": (torch.sqrt, 0),
    "rsqrt": (torch.rsqrt, 1),
    "negative": (torch.neg, 0),
    "absolute": (torch.abs, 0),
    "round": (torch.round, 0),
}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 88.7, 88.73, -87.3, -87.4, -103.0, -105.0, 9.0, -9.0, 1e-30, -1e30]


def arguments() -> Floats:
    """Numbers of every size, and those around which functions change what they do."""
    rng = np.random.default_rng(3)
    sizes = np.ldexp(rng.uniform(-1, 1, 30_000), rng.integers(-60, 60, 30_000))
    values = np.concatenate([rng.normal(0, 3, 60_000), rng.normal(0, 40, 8_057), sizes, SPECIAL])
    return values.astype(np.float32)


def order(values: Floats) -> npt.NDArray[np.int64]:
    """Numbers that neighbours have neighbouring ones of."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def applied(program: Program, lanes: int, values: Floats, *operands: Floats) -> Floats:
    """What a program makes of as many numbers as blocks of 16 are full of."""
    image = ImageType((1, lanes, 1, values.size // lanes), Layout(lanes))
    of = Program(program.steps, tuple(OperandType("image", image) for _ in operands))
    inputs = (array.reshape(image.physical) for array in (values, *operands))
    got = run(pointwise(Pointwise(image, image, of), "main"), *inputs, into=image)
    return got.transpose(0, 2, 3, 1).reshape(-1)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_within_its_error(name: str, lanes: int) -> None:
    function, allowed = FUNCTIONS[name]
    values = arguments()
    if name == "round":
        values = values[~(np.abs(values) >= 2**22) & ~np.isnan(values)]
    values = values[: values.size // 16 * 16]
    got = applied(Program((Step(name, (Result(0),)),)), lanes, values)
    want = function(torch.from_numpy(values).double()).float().numpy()
    assert (np.isnan(got) == np.isnan(want)).all()
    tiny = np.abs(want) < np.finfo(np.float32).tiny
    assert (np.abs(got[tiny]) <= 1e-37).all()
    number = ~np.isnan(want) & ~tiny
    assert np.abs(order(got[number]) - order(want[number])).max() <= allowed
    if name in ("tanh", "erf", "sigmoid"):
        assert np.nanmax(np.abs(got)) <= 1


def test_every_operator_is_tested() -> None:
    arithmetic = {"add", "subtract", "multiply", "divide", "maximum", "minimum", "power"}
    assert set(OPERATORS) == arithmetic | set(FUNCTIONS)


@pytest.mark.parametrize("exponent", [2.0, 0.5, -0.5])
def test_powers(exponent: float) -> None:
    values = np.abs(noise((1, 1, 1, 160))).reshape(-1)
    got = applied(Program((Step("power", (Result(0), exponent)),)), 16, values)
    np.testing.assert_allclose(got, values**exponent, rtol=1e-6)


def test_other_powers_are_refused() -> None:
    with pytest.raises(ValueError, match="a power is one of"):
        applied(Program((Step("power", (Result(0), 3.0)),)), 16, np.zeros(16, np.float32))


def test_arithmetic() -> None:
    a, b = noise((2, 1, 1, 160)).reshape(2, -1)
    for name, want in (
        ("add", a + b),
        ("subtract", a - b),
        ("multiply", a * b),
        ("divide", a / b),
        ("maximum", np.maximum(a, b)),
        ("minimum", np.minimum(a, b)),
    ):
        program = Program((Step(name, (Result(0), Operand(0))),))
        np.testing.assert_allclose(applied(program, 8, a, b), want, rtol=3e-7)


@pytest.mark.parametrize("lanes", LANES)
def test_a_nan_passes_activations(lanes: int) -> None:
    values = np.full(16, np.nan, np.float32)
    for step in (
        Step("maximum", (Result(0), 0.0)),
        Step("maximum", (0.0, Result(0))),
        Step("minimum", (Result(0), 6.0)),
        Step("minimum", (6.0, Result(0))),
    ):
        assert np.isnan(applied(Program((step,)), lanes, values)).all()
    # Of two that vary it is the first one's.
    ones = np.ones(16, np.float32)
    assert np.isnan(applied(Program((Step("maximum", (Result(0), Operand(0))),)), lanes, values, ones)).all()
    assert (applied(Program((Step("maximum", (Operand(0), Result(0))),)), lanes, values, ones) == 1).all()


def test_a_composed_activation() -> None:
    values = (4 * noise((1, 1, 1, 320))).reshape(-1)
    gelu = (
        Step("multiply", (Result(0), 0.5**0.5)),
        Step("erf", (Result(1),)),
        Step("add", (Result(2), 1.0)),
        Step("multiply", (Result(0), Result(3))),
        Step("multiply", (Result(4), 0.5)),
    )
    want = torch.nn.functional.gelu(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(applied(Program(gelu), 16, values), want, rtol=1e-5, atol=1e-6)
    silu = (Step("sigmoid", (Result(0),)), Step("multiply", (Result(0), Result(1))))
    want = torch.nn.functional.silu(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(applied(Program(silu), 16, values), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("machine", "name", "calls"),
    [
        (X86_MACHINE, "x86-64-v4", r"\bcall\w*\s+(\w+f)\b"),
        (X86_MACHINE, "x86-64-v3", r"\bcall\w*\s+(\w+f)\b"),
        (X86_MACHINE, "x86-64", r"\bcall\w*\s+(\w+f)\b"),
        (ARM64_MACHINE, "cortex-a72", r"\bbl\s+(\w+f)\b"),
        (ARMV7_MACHINE, "cortex-a9", r"\bbl\s+(\w+f)\b"),
    ],
)
def test_no_function_is_a_call_into_the_c_library(machine: Machine, name: str, calls: str) -> None:
    processor = machine.processors[name]
    image = ImageType((1, processor.lanes, 4, 4), Layout(processor.lanes))
    functions = {
        f"kernel_{op}": pointwise(Pointwise(image, image, Program((Step(op, (Result(0),)),))), f"kernel_{op}")
        for op in FUNCTIONS
    }
    library: Any = tvm.compile(tvm.IRModule(functions), target=tvm_target(machine, processor))
    assembly = getattr(library, "mod", library).inspect_source("asm")
    assert "kernel_exp" in assembly
    assert re.findall(calls, assembly) == []
