"""Pointwise programs: what is done to a value between the registers it was computed in and the store.

A bias, a residual sum and an activation cost a pass over memory each when they are kernels of their own, and nothing
when they are applied on the way out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels import functions
from targets.cpu.kernels.images import Image, argument, ramp, rounded, splat
from targets.cpu.layout import ImageType

Expr = Any


@dataclass(frozen=True, slots=True)
class Result:
    """The value of step ``index - 1``; index 0 is what the kernel itself computed."""

    index: int


@dataclass(frozen=True, slots=True)
class Operand:
    """Something else that a program reads, by its place in :attr:`Program.operands`."""

    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """``op`` of :data:`OPERATORS` applied to results, operands and numbers."""

    op: str
    args: tuple[Result | Operand | float, ...]


@dataclass(frozen=True, slots=True)
class OperandType:
    """``channel``: one number a channel, whole blocks of them; ``image``: the result's shape; ``gate``: N, C, 1, 1."""

    kind: Literal["channel", "image", "gate"]
    type: ImageType


@dataclass(frozen=True, slots=True)
class Program:
    """Steps in order; the last one's value (or the kernel's own, when there are none) is stored."""

    steps: tuple[Step, ...] = ()
    operands: tuple[OperandType, ...] = ()


NOTHING = Program()


Operator = Callable[[Sequence[Expr], int], Expr]


def _unary(function: Callable[[Expr, int], Expr]) -> Operator:
    return lambda args, lanes: function(args[0], lanes)


def _binary(function: Callable[[Expr, Expr], Expr]) -> Operator:
    return lambda args, _lanes: function(args[0], args[1])


def _extreme(function: Callable[[Expr, Expr], Expr]) -> Operator:
    """A NaN of the first argument passes, or of the second if the first is a number: as frameworks have it for one
    argument. Of two that vary the second one's NaN is lost, which costs nothing."""
    return lambda args, _lanes: function(args[1], args[0]) if _number(args[0]) is not None else function(*args)


def _power(args: Sequence[Expr], lanes: int) -> Expr:
    value, exponent = args[0], _number(args[1])
    if exponent not in POWERS:
        raise ValueError(f"a power is one of {', '.join(map(str, POWERS))}")
    if exponent == 2.0:
        value = T.bind(value)
        return value * value
    return functions.sqrt(value, lanes) if exponent == 0.5 else functions.rsqrt(value, lanes)


def _number(value: Expr) -> float | None:
    """What a constant holds in every lane."""
    value = value.value if isinstance(value, tirx.Broadcast) else value
    return float(value.value) if isinstance(value, tirx.FloatImm) else None


def _round(args: Sequence[Expr], lanes: int) -> Expr:
    return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", rounded(args[0], lanes))


#: Exponents that ``power`` knows; they are numbers of the program.
POWERS = (2.0, 0.5, -0.5)

#: Name of each operator with how it is written for vectors of so many lanes.
OPERATORS: dict[str, Operator] = {
    "add": _binary(lambda a, b: a + b),
    "subtract": _binary(lambda a, b: a - b),
    "multiply": _binary(lambda a, b: a * b),
    "divide": _binary(lambda a, b: a / b),
    "maximum": _extreme(functions.largest),
    "minimum": _extreme(functions.smallest),
    "power": _power,
    "round": _round,
    "negative": _unary(functions.negative),
    "absolute": _unary(functions.absolute),
    "exp": _unary(functions.exp),
    "sigmoid": _unary(functions.sigmoid),
    "tanh": _unary(functions.tanh),
    "erf": _unary(functions.erf),
    "sqrt": _unary(functions.sqrt),
    "rsqrt": _unary(functions.rsqrt),
}


def evaluate(program: Program, value: Expr, lanes: int, operand: Callable[[int], Expr]) -> Expr:
    """What is stored for ``value``, a vector of ``lanes``; ``operand`` loads that of an index for the same place."""
    uses = Counter(arg.index for step in program.steps for arg in step.args if isinstance(arg, Result))
    results: list[Expr] = []

    def keep(result: Expr) -> None:
        # What is read twice is computed once.
        results.append(T.bind(result) if uses[len(results)] > 1 else result)

    def read(arg: Result | Operand | float) -> Expr:
        if isinstance(arg, Result):
            return results[arg.index]
        return operand(arg.index) if isinstance(arg, Operand) else splat(float(arg), lanes)

    keep(value)
    for step in program.steps:
        keep(OPERATORS[step.op]([read(arg) for arg in step.args], lanes))
    return results[-1]


class Bound:
    """A program with its operands declared as arguments of the kernel that is being built."""

    def __init__(self, program: Program, name: str = "operand") -> None:
        self._program = program
        self._operands: list[Any] = [
            argument(f"{name}{index}", (operand.type.blocks * operand.type.layout.block,))
            if operand.kind == "channel"
            else Image.argument(f"{name}{index}", operand.type)
            for index, operand in enumerate(program.operands)
        ]

    def __call__(self, value: Expr, lanes: int, n: Expr, block: Expr, y: Expr, x: Expr) -> Expr:
        """What is stored for ``value``, a vector of the ``lanes`` channels of ``block`` at one pixel."""

        def operand(index: int) -> Expr:
            source, kind = self._operands[index], self._program.operands[index].kind
            if kind == "channel":
                return source[ramp(block * lanes, lanes)]
            return source.floats(n, block, 0, 0) if kind == "gate" else source.floats(n, block, y, x)

        return evaluate(self._program, value, lanes, operand)
