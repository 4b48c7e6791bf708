"""How processors multiply small integers: one instruction multiplies a few channels and adds them to 32-bit sums.

The channels that one lane multiplies are a word: activations are read a word at a time and broadcast, weights lie as
the words of a vector's output channels. All products are exact: none of the instructions used here saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

Expr = Any
#: (sums, weights, word) → sums + products, for so many lanes; the word is the activations' element type × `word`.
Multiply = Callable[[Expr, Expr, Expr, int], Expr]


@dataclass(frozen=True, slots=True)
class Product:
    """``multiply`` takes sums (int32 × lanes), weights (× lanes · word) and one word of activations, an integer."""

    name: str
    #: Element type of activations and of weights.
    activations: str
    weights: str
    #: Channels in a word.
    word: int
    multiply: Multiply

    @property
    def word_dtype(self) -> str:
        """The integer that is as wide as a word of activations."""
        return f"int{self.word * (16 if self.activations == 'int16' else 8)}"


def _vpdpbusd(sums: Expr, weights: Expr, word: Expr, lanes: int) -> Expr:
    values = tirx.reinterpret(f"uint8x{4 * lanes}", tirx.Broadcast(word, lanes))
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, sums, values, weights)


def _sdot(sums: Expr, weights: Expr, word: Expr, lanes: int) -> Expr:
    values = tirx.reinterpret(f"int8x{4 * lanes}", tirx.Broadcast(word, lanes))
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.sdot", sums, weights, values)


_PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def _pmaddwd(sums: Expr, weights: Expr, word: Expr, lanes: int) -> Expr:
    values = tirx.reinterpret(f"int16x{2 * lanes}", tirx.Broadcast(word, lanes))
    return sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PMADDWD[lanes], weights, values)


def _plain(sums: Expr, weights: Expr, word: Expr, lanes: int) -> Expr:
    values = tirx.Broadcast(word, lanes)
    return sums + tirx.Cast(f"int32x{lanes}", weights) * tirx.Cast(f"int32x{lanes}", values)


#: AVX512-VNNI and AVX-VNNI, on 512, 256 or 128 bits.
VPDPBUSD = Product("vpdpbusd", "uint8", "int8", 4, _vpdpbusd)
#: ARM's dot product, on 128 bits.
SDOT = Product("sdot", "int8", "int8", 4, _sdot)
#: Every x86-64: pairs of 16 bits.
PMADDWD = Product("pmaddwd", "int16", "int16", 2, _pmaddwd)
#: Every processor: what ARM has as smlal.
PLAIN = Product("plain", "int16", "int16", 1, _plain)
