"""From a quantised graph to a program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from targets.base import ModelError
from targets.vta import isa
from targets.vta.config import VtaConfig
from targets.vta.isa import Memory, Opcode
from targets.vta.layout import packed_bytes
from targets.vta.lower import pool
from targets.vta.lower.conv import ConvLowering, geometry
from targets.vta.lower.memory import MemoryPlan
from targets.vta.lower.stream import Stream
from targets.vta.lower.tiling import why_not
from targets.vta.lower.tokens import synchronise
from targets.vta.program import BufferRole, Layer, Port, Program
from targets.vta.qgraph import QConv, QGraph, QNode

__all__ = ["lower", "reason_not_to_place"]


def reason_not_to_place(node: QNode, graph: QGraph, config: VtaConfig) -> str:
    """Why a node cannot run on this accelerator, in words; empty when it can."""
    source, target = graph.tensors[node.input].shape, graph.tensors[node.output].shape
    if isinstance(node, QConv):
        return why_not(geometry(node, source, target, config), config)
    found = pool.window(node, source, target, config)
    return found if isinstance(found, str) else ""


def lower(graph: QGraph, config: VtaConfig, *, progress: Callable[[str, float], None] | None = None) -> Program:
    """The complete program of ``graph``. ``progress(layer, share)`` is called before each layer.

    Raises:
        ModelError: names the layer that cannot be placed, and why.
    """
    config.check()
    plan = MemoryPlan(config)
    stream = Stream(config)
    constants: dict[str, bytes] = {}
    steps: list[tuple[QNode, ConvLowering | pool.Window]] = []
    for number, node in enumerate(graph.nodes):
        if progress:
            progress(node.name, number / len(graph.nodes))
        reason = reason_not_to_place(node, graph, config)
        if reason:
            raise ModelError(
                f"layer '{node.name}' ({node.operator}) cannot be placed on {config.name}: {reason}",
                hint="leave it to the CPU",
            )
        source, target = graph.tensors[node.input].shape, graph.tensors[node.output].shape
        if isinstance(node, QConv):
            conv = ConvLowering(node, source, target, config)
            constants[f"{node.name}.weight"] = conv.weights
            constants[f"{node.name}.bias"] = conv.bias
            plan.add(f"{node.name}.bias", "bias", Memory.ACC, len(conv.bias))
            plan.add(f"{node.name}.weight", "weight", Memory.WGT, len(conv.weights))
            steps.append((node, conv))
        else:
            window = pool.window(node, source, target, config)
            assert not isinstance(window, str)
            constants[f"{node.name}.weight"] = pool.weights(config)
            plan.add(f"{node.name}.weight", "weight", Memory.WGT, len(constants[f"{node.name}.weight"]))
            steps.append((node, window))
    for name, tensor in graph.tensors.items():
        role: BufferRole = "input" if name in graph.inputs else "output" if name in graph.outputs else "activation"
        memory = Memory.INP if role == "input" else Memory.OUT
        plan.add(name, role, memory, packed_bytes(tensor.shape, config))
    addresses = {buffer.name: buffer.address for buffer in plan.buffers}
    spans = []
    for node, step in steps:
        spans.append((node, len(stream)))
        if isinstance(step, ConvLowering):
            step.emit(
                stream,
                source=addresses[node.input],
                target=addresses[node.output],
                weights=addresses[f"{node.name}.weight"],
                bias=addresses[f"{node.name}.bias"],
                residual=addresses.get(node.residual, 0) if isinstance(node, QConv) else 0,
            )
        else:
            pool.emit(
                step,
                stream,
                source=addresses[node.input],
                target=addresses[node.output],
                weights=addresses[f"{node.name}.weight"],
            )
    constants["uop"] = isa.encode_uops(np.concatenate(stream.pool), config).astype("<u4").tobytes()
    uop = plan.add("uop", "uop", Memory.UOP, len(constants["uop"]))
    rows = _with_uops_at(stream.rows, uop.address // config.uop_bytes)
    table, moved = synchronise(rows, stream.uops, config)
    ends = [start for _, start in spans[1:]] + [len(rows)]
    layers = [
        Layer(node.name, node.operator, moved[start], moved[end])
        for (node, start), end in zip(spans, ends, strict=True)
    ]
    return Program(
        model=graph.name,
        config=config,
        table=table,
        segments=plan.segments(),
        buffers=tuple(plan.buffers),
        inputs=tuple(_port(graph, name) for name in graph.inputs),
        outputs=tuple(_port(graph, name) for name in graph.outputs),
        layers=tuple(layers),
        constants=constants,
    )


def _port(graph: QGraph, name: str) -> Port:
    tensor = graph.tensors[name]
    return Port(name, name, tensor.shape, tensor.exponent)


def _with_uops_at(rows: list[tuple[int, ...]], base: int) -> list[tuple[int, ...]]:
    """Micro-op loads with the address of the table, which is known only when all of it is."""
    memory, dram = isa.COLUMNS.index("memory"), isa.COLUMNS.index("dram_base")
    moved = []
    for row in rows:
        if row[0] == Opcode.LOAD and row[memory] == Memory.UOP:
            row = (*row[:dram], row[dram] + base, *row[dram + 1 :])
        moved.append(row)
    return moved
