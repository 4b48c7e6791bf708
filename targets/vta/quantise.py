"""Post-training quantisation: a float graph and sample inputs become integers with power-of-two scales.

Every tensor gets one exponent, from how large its values are over the samples; a layer's weights get one, or one for
each block of output channels. So requantising is a shift. Then exponents rise where a layer's epilogue could otherwise
not be computed: shifts reach only so far, and an accumulator must not overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from targets.base import FleetError, ModelError
from targets.vta.evaluate import evaluate_float
from targets.vta.graph import Conv, Graph, MaxPool
from targets.vta.histogram import MIN_EXPONENT, Histogram, covering
from targets.vta.qgraph import LIMIT, QConv, QGraph, QMaxPool, QNode, QTensor
from targets.vta.sensitivity import QuantiseReport, measure

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]
    Sample = Mapping[str, Float32]

#: What an epilogue can do: see :class:`~targets.vta.qgraph.QConv`.
MAX_SHIFT = 30
MAX_RESIDUAL_SHIFT = 6
#: What convolution and bias may add up to. Two rounding constants, at most 2^29 and 2^28, complete the 2^30 that no
#: accumulator exceeds: one of each shift, both of which may be added before the first.
MAX_SUM = 1 << 28
#: How far below the exponent that covers all values a smaller error is looked for.
CLIPPING = 6
#: A tensor that was zero in every sample is taken to be within ±1.
UNKNOWN = covering(1.0)


@dataclass(frozen=True, slots=True)
class QuantiseOptions:
    """How exponents are chosen.

    ``activations``: ``mse`` takes the exponent with the least squared error, which may let rare large values saturate;
    ``minmax`` the one that covers every value seen. ``weights``: one exponent for a whole ``tensor`` or for each
    ``block`` of ``block`` output channels. ``report_samples``: how many of the samples, the first ones, are run
    through the quantised graph for the report.
    """

    activations: Literal["mse", "minmax"] = "mse"
    weights: Literal["tensor", "block"] = "tensor"
    block: int = 16
    report_samples: int = 4


def quantise(
    graph: Graph, samples: Iterable[Sample], options: QuantiseOptions | None = None
) -> tuple[QGraph, QuantiseReport]:
    """The integer graph that ``samples`` (each input by name, float32 NCHW, the graph's shapes) lead to.

    ``samples`` is read once. Raises :class:`FleetError` (code ``bad-calibration``) for samples that do not fit the
    graph, and :class:`ModelError` that names the layer whose numbers cannot be represented.
    """
    options = options or QuantiseOptions()
    layers = {node.name: _Layer(node, options) for node in graph.nodes if isinstance(node, Conv)}
    checked = _checked(graph, samples)
    kept = list(islice(checked, max(options.report_samples, 1)))
    histograms = {name: Histogram() for name in graph.tensors}
    for sample in chain(kept, checked):
        for name, value in evaluate_float(graph, sample).items():
            if not np.isfinite(value).all():
                raise _bad(f"with these inputs, '{name}' of the network is not finite")
            histograms[name].add(value)
    if not kept:
        raise _bad("there is not one sample")

    exponents = _Exponents(graph, histograms, options)
    _settle(layers.values(), exponents)
    qgraph = QGraph(
        graph.name,
        {name: QTensor(name, shape, exponents[name]) for name, shape in graph.tensors.items()},
        tuple(
            layers[node.name].quantised(exponents) if isinstance(node, Conv) else _pool(node) for node in graph.nodes
        ),
        graph.inputs,
        graph.outputs,
    )
    silent = tuple(name for name, histogram in histograms.items() if not histogram.peak)
    return qgraph, measure(graph, qgraph, kept, silent)


class _Exponents:
    """The exponent of each tensor, in groups that share one: what a pool reads and what it gives."""

    def __init__(self, graph: Graph, histograms: Mapping[str, Histogram], options: QuantiseOptions) -> None:
        self._group = {name: name for name in graph.tensors}
        for node in graph.nodes:
            if isinstance(node, MaxPool):
                old, new = self._group[node.output], self._group[node.input]
                self._group = {name: new if group == old else group for name, group in self._group.items()}
        members: dict[str, list[Histogram]] = {}
        for name, group in self._group.items():
            members.setdefault(group, []).append(histograms[name])
        self._exponent = {group: _chosen(histograms, options) for group, histograms in members.items()}

    def __getitem__(self, name: str) -> int:
        return self._exponent[self._group[name]]

    def rise(self, name: str, least: int) -> bool:
        """Make a tensor's exponent at least ``least``; whether that changed it."""
        group = self._group[name]
        if self._exponent[group] >= least:
            return False
        self._exponent[group] = least
        return True


def _chosen(histograms: list[Histogram], options: QuantiseOptions) -> int:
    peak = max(histogram.peak for histogram in histograms)
    if not peak:
        return UNKNOWN
    most = covering(peak)
    if options.activations == "minmax":
        return most
    candidates = range(most, max(most - CLIPPING, MIN_EXPONENT - 1), -1)
    return min(candidates, key=lambda exponent: sum(histogram.error(exponent) for histogram in histograms))


@dataclass(slots=True)
class _Layer:
    """A convolution on its way to integers: its parts are the output channels that share a weight exponent."""

    conv: Conv
    options: QuantiseOptions
    parts: list[slice] = field(init=False)
    #: Of the weights of each part.
    exponents: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.conv.weight).all() and np.isfinite(self.conv.bias).all()):
            raise ModelError(f"layer '{self.conv.name}' has weights that are not finite")
        channels = len(self.conv.weight)
        size = self.options.block if self.options.weights == "block" else channels
        self.parts = [slice(start, min(start + size, channels)) for start in range(0, channels, size)]
        chosen = [_weight_exponent(self.conv.weight[part]) for part in self.parts]
        # Zeros are zeros at any exponent: the finest of the others keeps the bias as exact as theirs.
        silent = min((exponent for exponent in chosen if exponent is not None), default=UNKNOWN)
        self.exponents = [silent if exponent is None else exponent for exponent in chosen]

    def fit(self, exponents: _Exponents) -> bool:
        """Raise exponents until the epilogue can be computed, for what is known so far; whether any rose."""
        conv, rose = self.conv, False
        for index in range(len(self.parts)):
            accumulator = exponents[conv.input] + self.exponents[index]
            while exponents[conv.output] - accumulator > MAX_SHIFT or self._largest(index, accumulator) > MAX_SUM:
                accumulator += 1
                self.exponents[index] += 1
                rose = True
        # An output finer than the accumulator would be no more exact, and need shifts to the left.
        coarsest = exponents[conv.input] + max(self.exponents)
        rose |= exponents.rise(conv.output, coarsest)
        if conv.residual:
            rose |= exponents.rise(conv.residual, max(coarsest, exponents[conv.output] - MAX_SHIFT))
            rose |= exponents.rise(conv.output, exponents[conv.residual] - MAX_RESIDUAL_SHIFT)
        return rose

    def quantised(self, exponents: _Exponents) -> QConv:
        conv = self.conv
        output, accumulators = exponents[conv.output], [exponents[conv.input] + e for e in self.exponents]
        before = output
        if conv.residual and output > (residual := exponents[conv.residual]):
            # The sum is rounded once more: round as little before it as the shifts allow. Where the output is as fine
            # as the residual, the convolution goes to the output's exponent at once, and no more is lost than that.
            before = max(residual - MAX_RESIDUAL_SHIFT, output - MAX_SHIFT, *accumulators)
        weight, bias = np.empty(conv.weight.shape, np.int8), np.empty(len(conv.weight), np.int32)
        shift = np.empty(len(conv.weight), np.int32)
        for part, exponent, accumulator in zip(self.parts, self.exponents, accumulators, strict=True):
            weight[part] = _rounded(conv.weight[part], exponent)
            bias[part] = np.floor(conv.bias[part] * np.float64(2.0**-accumulator) + 0.5)
            shift[part] = before - accumulator
        return QConv(
            conv.name,
            conv.input,
            conv.output,
            weight,
            bias,
            shift,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.relu,
            conv.residual,
            exponents[conv.residual] - before if conv.residual else 0,
            output - before,
            conv.operator,
        )

    def _largest(self, index: int, accumulator: int) -> float:
        """The largest magnitude that convolution and bias of a part can reach, in units of 2^accumulator."""
        part = self.parts[index]
        weight = np.abs(_rounded(self.conv.weight[part], self.exponents[index])).reshape(part.stop - part.start, -1)
        bias = np.floor(np.abs(self.conv.bias[part]) * np.float64(2.0**-accumulator) + 0.5)
        return float(np.max(LIMIT * weight.sum(1) + bias))


def _settle(layers: Iterable[_Layer], exponents: _Exponents) -> None:
    """Let exponents rise until every layer fits. One round does, unless a residual sum changes what came before it."""
    layers = list(layers)
    for _ in range(2 + len(layers)):
        rising = [layer for layer in layers if layer.fit(exponents)]
        if not rising:
            return
    raise ModelError(
        f"layer '{rising[0].conv.name}': its values and those it is added to differ too much in size for int8",
        hint="check the weights; or keep the layer on the CPU",
    )


def _weight_exponent(weight: Float32) -> int | None:
    """The exponent with the least squared error, the smallest of such; None where all is zero."""
    peak = float(np.abs(weight).max())
    if not peak:
        return None
    most = covering(peak)
    candidates = range(max(most - CLIPPING, MIN_EXPONENT), most + 1)
    return min(candidates, key=lambda e: float(np.sum((_rounded(weight, e) * 2.0**e - weight) ** 2)))


def _rounded(weight: Float32, exponent: int) -> npt.NDArray[np.float64]:
    """Weights as the integers they become, not yet of an integer type."""
    scaled = np.floor(weight * np.float64(2.0**-exponent) + 0.5)
    rounded: npt.NDArray[np.float64] = np.clip(scaled, -LIMIT, LIMIT)
    return rounded


def _pool(node: MaxPool) -> QNode:
    return QMaxPool(node.name, node.input, node.output, node.kernel, node.stride, node.padding, node.operator)


def _checked(graph: Graph, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples, each one found to fit the graph."""
    for number, sample in enumerate(samples):
        where = f"sample {number}"
        if set(sample) != set(graph.inputs):
            raise _bad(f"{where} has {sorted(sample)}, the inputs are {sorted(graph.inputs)}")
        for name in graph.inputs:
            value, shape = sample[name], graph.tensors[name]
            if not isinstance(value, np.ndarray) or value.dtype != np.float32:
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise _bad(f"{where}: '{name}' is {kind}, not an array of float32")
            if value.shape != shape:
                raise _bad(f"{where}: '{name}' has the shape {value.shape}, the input is {shape}")
            if not np.isfinite(value).all():
                raise _bad(f"{where}: '{name}' holds values that are not finite")
        yield sample


def _bad(why: str) -> FleetError:
    return FleetError(
        f"calibration: {why}",
        code="bad-calibration",
        hint="give sample inputs as the network takes them: float32, NCHW, with the batch it is built for",
    )
