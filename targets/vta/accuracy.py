"""From samples to integers: each region of a network is quantised, and the whole held against the float network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.base import FleetError
from targets.vta.float_part import FloatPart, in_float, in_integers
from targets.vta.quantise import QuantiseOptions, quantise

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import Array
    from targets.vta.options import VTAOptions
    from targets.vta.partition import Partitioned
    from targets.vta.qgraph import QGraph

    Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network in integers.

    ``reference`` computes it; ``rounding`` is how far apart its outputs are, at most, when the float part before the
    accelerator rounds otherwise, as on another processor; ``report`` has figures, for JSON.
    """

    qgraphs: tuple[QGraph, ...]
    reference: Callable[[Sequence[Array]], list[Array]]
    rounding: float
    report: dict[str, Any]


def calibrated(
    network: FloatPart, partitioned: Partitioned, samples: Iterable[Sequence[Array]], chosen: VTAOptions, compared: int
) -> Fitted:
    """Quantise every region with what it sees of ``samples``; the first ``compared`` of them are compared.

    Raises :class:`FleetError`: ``bad-calibration``; :class:`ModelError` names a layer that cannot be represented.
    """
    regions = partitioned.regions
    seen: list[list[dict[str, Float32]]] = [[] for _ in regions]
    float_region = in_float(regions)

    def watched(index: int, inputs: Sequence[Float32]) -> Sequence[Float32]:
        # A copy: TVM uses the memory again.
        seen[index].append({name: np.array(x) for name, x in zip(regions[index].inputs, inputs, strict=True)})
        return float_region(index, inputs)

    kept: list[tuple[Sequence[Array], list[Array]]] = []
    count = 0
    for sample in samples:
        outputs = network.run(sample, watched)
        count += 1
        if len(kept) < compared:
            kept.append((sample, outputs))
    if not count:
        raise FleetError("calibration: there is not one sample", code="bad-calibration")
    options = QuantiseOptions(activations=chosen.activations, weights=chosen.weights, block=chosen.config.block)  # type: ignore[arg-type]
    quantised = [quantise(graph, one, options) for graph, one in zip(regions, seen, strict=True)]
    qgraphs = tuple(qgraph for qgraph, _ in quantised)
    exact = in_integers(qgraphs)
    noisy = in_integers(qgraphs, np.random.default_rng(0))
    results = [network.run(sample, exact) for sample, _ in kept]
    others = [network.run(sample, noisy) for sample, _ in kept]
    rounding = max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
        for one, two in zip(results, others, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    report = {
        "samples": count,
        "compared": len(kept),
        "outputs": _compared([outputs for _, outputs in kept], results),
        "rounding": rounding,
        "regions": [one.to_json() for _, one in quantised],
    }
    return Fitted(qgraphs, lambda inputs: network.run(inputs, exact), rounding, report)


def _compared(expected: Sequence[Sequence[Array]], results: Sequence[Sequence[Array]]) -> list[dict[str, Any]]:
    """For each output: how far the integer network is from the float one, and how often the first class agrees."""
    found = []
    for position in range(len(expected[0])):
        wanted = np.concatenate([np.atleast_1d(one[position]).astype(np.float64) for one in expected])
        got = np.concatenate([np.atleast_1d(one[position]).astype(np.float64) for one in results])
        noise, signal = float(np.sum((wanted - got) ** 2)), float(np.sum(wanted**2))
        figures: dict[str, Any] = {
            "snr_db": 10 * math.log10(signal / noise) if noise and signal else None,
            "largest_difference": float(np.abs(wanted - got).max()),
        }
        if wanted.ndim == 2:
            figures["same_first"] = float(np.mean(wanted.argmax(1) == got.argmax(1)))
        found.append(figures)
    return found
