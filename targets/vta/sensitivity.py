"""What quantisation costs: how far the integer graph's tensors are from the float graph's, and which layers do it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.vta.evaluate import conv_float, evaluate, evaluate_float, to_floats, to_integers
from targets.vta.graph import Conv, Graph
from targets.vta.qgraph import LIMIT, QConv, QGraph

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorFigures:
    """A tensor of the integer graph against the float graph's, noise of all layers before it included.

    ``snr_db`` is the signal-to-noise ratio in dB; None where there is no noise, or no signal. ``saturated`` is the
    share, 0..1, of the float values that are beyond what int8 of ``exponent`` represents.
    """

    name: str
    exponent: int
    snr_db: float | None
    saturated: float


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """A layer by itself: its integers against float arithmetic on the same, already quantised, inputs.

    ``shift`` are the different shifts of its blocks, in order of size; ``snr_db`` as in :class:`TensorFigures`.
    """

    name: str
    operator: str
    output: str
    shift: tuple[int, ...]
    residual_shift: int
    final_shift: int
    snr_db: float | None


@dataclass(frozen=True, slots=True)
class QuantiseReport:
    """Figures of each layer and tensor over ``samples`` samples. ``str()`` of it is a table for people."""

    samples: int
    layers: tuple[LayerFigures, ...]
    tensors: tuple[TensorFigures, ...]
    #: Signal-to-noise ratio of each output of the graph, in dB.
    outputs: dict[str, float | None]
    #: Tensors that were zero in every calibration sample, so that their exponent is a guess.
    silent: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        tensors = {tensor.name: tensor for tensor in self.tensors}
        lines = [
            f"{'layer':<24} {'operator':<12} {'shift':>8} {'exponent':>8} {'saturated':>9} {'alone':>8} {'so far':>8}"
        ]
        for layer in self.layers:
            tensor = tensors[layer.output]
            shift = "/".join(map(str, layer.shift)) + (f"+{layer.final_shift}" if layer.final_shift else "")
            lines.append(
                f"{layer.name:<24} {layer.operator:<12} {shift:>8} {tensor.exponent:>8} {tensor.saturated:>9.3%}"
                f" {_db(layer.snr_db):>8} {_db(tensor.snr_db):>8}"
            )
        lines += [f"output '{name}': {_db(snr)} dB over {self.samples} samples" for name, snr in self.outputs.items()]
        lines += [f"'{name}' was zero in every sample: its range is a guess" for name in self.silent]
        return "\n".join(lines)


def measure(
    graph: Graph, qgraph: QGraph, samples: Sequence[Mapping[str, Float32]], silent: tuple[str, ...] = ()
) -> QuantiseReport:
    """Run ``samples`` through both graphs and compare. ``silent`` is passed on to the report."""
    tensors = {name: _Noise() for name in qgraph.tensors}
    layers = {node.name: _Noise() for node in qgraph.nodes if isinstance(node, QConv)}
    beyond = dict.fromkeys(qgraph.tensors, 0)
    exponents = {name: tensor.exponent for name, tensor in qgraph.tensors.items()}
    for sample in samples:
        expected = evaluate_float(graph, sample)
        integers = evaluate(qgraph, {name: to_integers(sample[name], exponents[name]) for name in qgraph.inputs})
        actual = {name: to_floats(value, exponents[name]) for name, value in integers.items()}
        for name, value in expected.items():
            tensors[name].add(value, actual[name])
            beyond[name] += int(np.count_nonzero(np.abs(value) > (LIMIT + 0.5) * 2.0 ** exponents[name]))
        for node in graph.nodes:
            if isinstance(node, Conv):
                alone = conv_float(node, actual[node.input], actual[node.residual] if node.residual else None)
                layers[node.name].add(alone, actual[node.output])
    sizes = {name: math.prod(tensor.shape) * len(samples) for name, tensor in qgraph.tensors.items()}
    figures = {
        name: TensorFigures(name, exponents[name], tensors[name].snr_db(), beyond[name] / sizes[name])
        for name in qgraph.tensors
    }
    return QuantiseReport(
        len(samples),
        tuple(_layer(node, layers[node.name]) for node in qgraph.nodes if isinstance(node, QConv)),
        tuple(figures.values()),
        {name: figures[name].snr_db for name in qgraph.outputs},
        silent,
    )


@dataclass(slots=True)
class _Noise:
    """Energy of a signal and of what differs from it."""

    signal: float = field(default=0.0)
    noise: float = field(default=0.0)

    def add(self, expected: Float32, actual: Float32) -> None:
        wide = expected.astype(np.float64)
        self.signal += float(np.sum(wide**2))
        self.noise += float(np.sum((wide - actual) ** 2))

    def snr_db(self) -> float | None:
        if not self.noise or not self.signal:
            return None
        return 10 * math.log10(self.signal / self.noise)


def _layer(node: QConv, noise: _Noise) -> LayerFigures:
    shift = tuple(int(n) for n in np.unique(node.shift))
    return LayerFigures(
        node.name, node.operator, node.output, shift, node.residual_shift, node.final_shift, noise.snr_db()
    )


def _db(snr: float | None) -> str:
    return "-" if snr is None else f"{snr:.1f}"
