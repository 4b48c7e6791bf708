"""Elementary functions of float32 vectors, written out: what a processor has no instruction for is a call a lane else.

Largest errors: 2 units in the last place for ``exp`` and ``sigmoid`` (whose subnormal results may be 0), 6 for ``tanh``
and ``erf``, which is 4e-7 of the value. Infinities give the limits, NaN gives NaN. The coefficients are least-maximum
fits of the relative error, made in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import rounded, splat

Expr = Any

_LOG2_E = 1.44269504
#: ln 2 in two parts, so that a whole number of the first is exact.
_LN2 = (0.693359375, -2.12194440e-4)
#: (eʳ - 1 - r) / r² on |r| ≤ ln 2 / 2.
_EXP = (0.4999999344, 0.1666652047, 0.04166838986, 0.008368736141, 0.001381456126)
#: Beyond these the result is 0 or infinity in float32.
_EXP_RANGE = (-104.0, 89.0)
#: tanh x / x as a fraction of polynomials in x², up to where tanh x is 1 in float32.
_TANH_LIMIT = 9.02
_TANH = (
    (0.9999999790, 0.1337971394, 3.494029846e-3, 2.058340543e-5, 1.331897068e-8),
    (1.0, 0.4671302918, 2.587105517e-2, 3.283085202e-4, 7.761977161e-7),
)
#: The same for erf x.
_ERF_LIMIT = 3.92
_ERF = (
    (1.128379146, 0.1904067802, 5.274876700e-2, 3.765631363e-3, 2.848832135e-4, 2.050086798e-6),
    (1.0, 0.5020763563, 0.1141092436, 1.496924489e-2, 1.162539336e-3, 3.809173604e-5),
)


def largest(a: Expr, b: Expr) -> Expr:
    """The larger one; NaN where ``a`` is."""
    # `max` is a comparison and a choice: where nothing compares it is the second.
    return tirx.max(b, a)


def smallest(a: Expr, b: Expr) -> Expr:
    """The smaller one; NaN where ``a`` is."""
    return tirx.min(b, a)


def exp(x: Expr, lanes: int) -> Expr:
    """2ⁿ · eʳ with x = n · ln 2 + r; 2ⁿ is two factors, so that subnormal results and infinity come out right."""
    low, high = (splat(limit, lanes) for limit in _EXP_RANGE)
    x = T.bind(smallest(largest(x, low), high))
    whole = T.bind(rounded(x * splat(_LOG2_E, lanes), lanes))
    n = T.bind(tirx.Cast(_vector("float32", lanes), whole))
    rest = T.bind(x - n * splat(_LN2[0], lanes) - n * splat(_LN2[1], lanes))
    value = rest * rest * _polynomial(rest, _EXP, lanes) + rest + splat(1.0, lanes)
    half = T.bind(whole >> splat(1, lanes, "int32"))
    return value * _power_of_two(half, lanes) * _power_of_two(whole - half, lanes)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e⁻ˣ)."""
    one = splat(1.0, lanes)
    return one / (one + exp(negative(x, lanes), lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """The hyperbolic tangent, within [-1, 1]."""
    return _odd(x, _TANH_LIMIT, *_TANH, lanes)


def erf(x: Expr, lanes: int) -> Expr:
    """The error function, within [-1, 1]."""
    return _odd(x, _ERF_LIMIT, *_ERF, lanes)


def sqrt(x: Expr, lanes: int) -> Expr:
    """The square root; NaN below zero."""
    return tirx.sqrt(x)


def rsqrt(x: Expr, lanes: int) -> Expr:
    """1 / √x, both rounded."""
    return splat(1.0, lanes) / tirx.sqrt(x)


def negative(x: Expr, lanes: int) -> Expr:
    """-x, also of zero."""
    return x * splat(-1.0, lanes)


def absolute(x: Expr, lanes: int) -> Expr:
    """x without its sign."""
    bits = tirx.reinterpret(_vector("int32", lanes), x) & splat(0x7FFFFFFF, lanes, "int32")
    return tirx.reinterpret(_vector("float32", lanes), bits)


def _odd(x: Expr, limit: float, numerator: Sequence[float], denominator: Sequence[float], lanes: int) -> Expr:
    """x · P(x²) / Q(x²), with x held within the limit and the result within 1."""
    x = T.bind(_within(x, limit, lanes))
    square = T.bind(x * x)
    value = x * _polynomial(square, numerator, lanes) / _polynomial(square, denominator, lanes)
    return _within(T.bind(value), 1.0, lanes)


def _within(x: Expr, limit: float, lanes: int) -> Expr:
    return smallest(largest(x, splat(-limit, lanes)), splat(limit, lanes))


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    value = splat(coefficients[-1], lanes)
    for coefficient in coefficients[-2::-1]:
        value = value * x + splat(coefficient, lanes)
    return value


def _power_of_two(exponent: Expr, lanes: int) -> Expr:
    """2 to the power of an int32 from -126 to 127, from its bits."""
    bits = (exponent + splat(127, lanes, "int32")) << splat(23, lanes, "int32")
    return tirx.reinterpret(_vector("float32", lanes), bits)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
