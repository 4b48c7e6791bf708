"""Networks in eight bits: Q/DQ nodes around what feeds convolutions and matrix products, with calibrated scales.

Symmetric throughout, as TensorRT wants it: activations with one scale each (the largest magnitude seen), weights with
one for each output channel. What a node computes is the same in torch, which makes the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from targets.base import ModelError
from targets.jetson.program import Exported

if TYPE_CHECKING:
    from targets.base import Array

#: Symmetric: -128 is not used.
_LOW, _HIGH = -127, 127
#: Whose first two arguments become integers: the activation, and the weight with its output channels first.
_LAYERS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear", "aten.convolution")
_LEAST_SCALE = 1e-8


def quantise(exported: Exported, samples: Iterable[Sequence[Array]]) -> Exported:
    """The program with Q/DQ nodes, calibrated on ``samples``: inputs in the program's order.

    Raises :class:`ModelError` when it has no layer that could be in integers, or there are no samples.
    """
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operators

    module = exported.program.module()
    layers = [node for node in module.graph.nodes if _is_layer(node)]
    if not layers:
        raise ModelError("this network has no convolution and no linear layer that could be in integers")
    largest = _largest(module, {node.args[0] for node in layers}, samples)
    quantised = torch.ops.quantized_decomposed
    done: dict[Any, Any] = {}
    for index, node in enumerate(layers):
        value, weight = node.args[:2]
        with module.graph.inserting_before(node):
            if value not in done:
                scale = max(largest[value] / _HIGH, _LEAST_SCALE)
                told = (scale, 0, _LOW, _HIGH, torch.int8)
                integers = module.graph.call_function(quantised.quantize_per_tensor.default, (value, *told))
                done[value] = module.graph.call_function(quantised.dequantize_per_tensor.default, (integers, *told))
            scales = _of_channels(_attribute(module, weight.target))
            module.register_buffer(f"scales_{index}", scales)
            module.register_buffer(f"zeros_{index}", torch.zeros(len(scales), dtype=torch.int64))
            per_channel = tuple(module.graph.get_attr(f"{name}_{index}") for name in ("scales", "zeros"))
            whole = (*per_channel, 0, _LOW, _HIGH, torch.int8)
            integers = module.graph.call_function(quantised.quantize_per_channel.default, (weight, *whole))
            floats = module.graph.call_function(quantised.dequantize_per_channel.default, (integers, *whole))
        node.args = (done[value], floats, *node.args[2:])
    module.recompile()
    with torch.no_grad():
        given = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in exported.inputs)
        program = torch.export.export(module, given)
    return replace(exported, program=program)


def reference(exported: Exported) -> Callable[[Sequence[Array]], list[Array]]:
    """What the program gives in torch on this machine."""
    import numpy as np
    import torch

    module = exported.program.module()

    def run(inputs: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            results = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        return [each.numpy() for each in torch.utils._pytree.tree_leaves(results)]

    return run


def _is_layer(node: Any) -> bool:
    if node.op != "call_function" or not str(node.target).startswith(_LAYERS):
        return False
    weight = node.args[1]
    return bool(node.args[0].op != "get_attr" and weight.op == "get_attr")


def _largest(module: Any, values: set[Any], samples: Iterable[Sequence[Array]]) -> dict[Any, float]:
    """The largest magnitude of each of these values over all samples."""
    import numpy as np
    import torch

    found = dict.fromkeys(values, 0.0)
    seen = 0

    class Watch(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            if node in found:
                found[node] = max(found[node], float(result.abs().max()))
            return result

    watch = Watch(module)
    with torch.no_grad():
        for inputs in samples:
            seen += 1
            # Through the flat graph: what it takes is a tensor for each placeholder.
            watch.run(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
    if not seen:
        raise ModelError(
            "there is nothing to calibrate the network on", hint="name pictures with --option calibration="
        )
    return found


def _of_channels(weight: Any) -> Any:
    """Scales of a weight's output channels, its first dimension."""
    return (weight.detach().abs().flatten(1).amax(1) / _HIGH).clamp(min=_LEAST_SCALE)


def _attribute(module: Any, dotted: str) -> Any:
    found = module
    for name in dotted.split("."):
        found = getattr(found, name)
    return found
