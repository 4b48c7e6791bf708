"""How many cycles a board takes for a program, and what each module does meanwhile: a model, event by event.

Fetch reads the stream and fills the three command queues; each module takes its instructions in order, waits for their
tokens, works, and pushes its tokens. Loads, micro-op and accumulator loads and fetch share the read channel of one
memory port, and stores have its write channel. Transfers that overlap share a channel evenly.

What is known: sizes of queues (:mod:`targets.vta.tokens`); one GEMM micro-op a cycle and one ALU micro-op in two
(``PIPELINE II`` in ``hardware/xilinx/src/vta.cc`` of apache/tvm-vta); the port's width, the clock, and that a transfer
asks for each row when it has the last one. What is assumed is in :class:`Timing`. Not modelled: refresh and other
traffic on the memory, and what the HLS design may lose where it drains the pipeline at the end of an inner loop. No
figure has been measured on a board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from targets.base import FleetError
from targets.vta.boards import Board
from targets.vta.config import INSN_BYTES, VtaConfig
from targets.vta.disasm import title
from targets.vta.isa import Memory, Module, Opcode, element_bytes
from targets.vta.tokens import COMMAND_QUEUE, POPS, PUSHES, TOKEN_QUEUE, Edges, TokenQueue, match

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.isa import Table
    from targets.vta.program import Layer

    Floats = npt.NDArray[np.float64]


class Timing(msgspec.Struct, frozen=True):
    """Assumptions, none of them measured; in cycles of the accelerator where nothing else is said."""

    #: From an address to its first data, through interconnect, port and DRAM controller, in nanoseconds. Paid by each
    #: row, and not hidden: the HLS design asks for a row when it has the last one.
    latency_ns: float = 250.0
    #: What a row occupies the channel for beyond its data: address phase and arbitration.
    row: float = 2.0
    #: Taking an instruction, decoding it, starting and ending a function of the HLS design.
    instruction: float = 8.0
    #: Filling and draining the pipeline of GEMM and ALU, once for each instruction.
    pipeline: float = 12.0
    #: Between two micro-ops (these two are the design's own).
    gemm_interval: float = 1.0
    alu_interval: float = 2.0
    #: For each padding element, which is written on chip and not fetched.
    padding: float = 1.0


class ModuleCycles(msgspec.Struct, frozen=True):
    """What a module did: ``busy`` cycles of work, and cycles of ``waiting`` by what for.

    Which is ``fetch`` (there is no instruction), a token queue such as ``l2g`` (empty when it pops, full when it
    pushes), ``memory`` (others use the channel) or ``end`` (it is done, others are not).
    """

    name: str
    instructions: int
    busy: int
    utilisation: float
    waiting: dict[str, int]


class LayerCycles(msgspec.Struct, frozen=True):
    """From a layer's first instruction to start to its last to end; layers overlap. ``dma_cycles``: of the channel it
    occupies longer."""

    name: str
    operator: str
    start: int
    end: int
    cycles: int
    gemm_cycles: int
    alu_cycles: int
    dma_cycles: int


class Span(NamedTuple):
    """One instruction's work, in cycles from the start."""

    instruction: int
    module: Module
    title: str
    start: int
    end: int


class CycleReport(msgspec.Struct, frozen=True):
    """What the model says: when everything is done, and what it takes alone.

    ``gemm_cycles``: of micro-ops that multiply; ``alu_cycles``: of the ALU's. ``read_cycles`` and ``write_cycles``: how
    long each channel of the port is occupied; ``dma_cycles`` is the longer of the two.
    """

    board: str
    clock_mhz: float
    cycles: int
    predicted_ms: float
    gemm_cycles: int
    alu_cycles: int
    read_cycles: int
    write_cycles: int
    modules: tuple[ModuleCycles, ...]
    layers: tuple[LayerCycles, ...]
    spans: tuple[Span, ...]

    @property
    def dma_cycles(self) -> int:
        return max(self.read_cycles, self.write_cycles)

    @property
    def over_bound(self) -> float:
        """Cycles as a multiple of what arithmetic or memory takes alone, whichever is longer."""
        return self.cycles / max(self.gemm_cycles, self.dma_cycles, 1)


def model(
    table: Table, config: VtaConfig, board: Board, layers: Sequence[Layer] = (), timing: Timing | None = None
) -> CycleReport:
    """Run the model. Raises :class:`FleetError` (``vta-deadlock``) for a program that does not come to its end."""
    work = _Work(table, config, board, timing or Timing())
    run = _Run(table, match(table), work)
    run.to_the_end()
    total = ceil(max(run.ends, default=0.0))
    spans = tuple(
        Span(index, Module(module), title(row), round(start), round(end))
        for index, (row, module, start, end) in enumerate(
            zip(table, run.edges.module.tolist(), run.starts, run.ends, strict=True)
        )
    )
    return CycleReport(
        board=board.name,
        clock_mhz=board.clock_mhz,
        cycles=total,
        predicted_ms=total / board.clock_mhz / 1000,
        gemm_cycles=round(work.gemm.sum()),
        alu_cycles=round(work.alu.sum()),
        read_cycles=round(work.read.sum() + len(table) * work.fetch),
        write_cycles=round(work.write.sum()),
        modules=tuple(run.module(module, total) for module in Module),
        layers=tuple(_layer(layer, spans, work) for layer in layers),
        spans=spans,
    )


def _layer(layer: Layer, spans: Sequence[Span], work: _Work) -> LayerCycles:
    own = slice(layer.first, layer.last)
    start = min((span.start for span in spans[own]), default=0)
    end = max((span.end for span in spans[own]), default=0)
    return LayerCycles(
        layer.name,
        layer.operator,
        start,
        end,
        end - start,
        round(work.gemm[own].sum()),
        round(work.alu[own].sum()),
        round(max(work.read[own].sum(), work.write[own].sum())),
    )


class _Work:
    """What each instruction costs when it has the machine to itself, in cycles, columns of shape (n,).

    ``alone`` is its whole time, ``read`` and ``write`` for how much of that it occupies a channel, ``gemm`` and ``alu``
    what its micro-ops take. ``fetch``: for how long reading one instruction occupies the read channel.
    """

    def __init__(self, table: Table, config: VtaConfig, board: Board, timing: Timing) -> None:
        opcode, memory = table["opcode"], table["memory"]
        self.latency = float(ceil(timing.latency_ns * board.clock_mhz / 1000))
        bus = board.dma_bits // 8
        self.fetch = INSN_BYTES / bus
        self.fetched_together = max(board.burst_bytes // INSN_BYTES, 1)
        moving = ((opcode == Opcode.LOAD) | (opcode == Opcode.STORE)) & (table["x_size"] * table["y_size"] > 0)
        sizes = np.array([element_bytes(config, kind) for kind in Memory], np.int64)
        size = sizes[np.clip(memory, 0, len(sizes) - 1)]
        rows = np.where(moving, np.where(memory == Memory.UOP, 1, table["y_size"]), 0)
        occupied = rows * (-(-(table["x_size"] * size) // bus) + timing.row)
        self.read = np.where(opcode == Opcode.LOAD, occupied, 0.0)
        self.write = np.where(opcode == Opcode.STORE, occupied, 0.0)
        lines = table["y_pad_0"] + table["y_size"] + table["y_pad_1"]
        across = table["x_pad_0"] + table["x_size"] + table["x_pad_1"]
        padding = np.where(moving, lines * across - table["x_size"] * table["y_size"], 0) * timing.padding
        uops = table["iter_out"] * table["iter_in"] * np.maximum(table["uop_end"] - table["uop_bgn"], 0)
        gemm = np.where(opcode == Opcode.GEMM, uops * timing.gemm_interval, 0.0)
        self.gemm: Floats = np.where(table["reset"] == 0, gemm, 0.0)
        self.alu: Floats = np.where(opcode == Opcode.ALU, uops * timing.alu_interval, 0.0)
        looping = (opcode == Opcode.GEMM) | (opcode == Opcode.ALU)
        self.alone: Floats = (
            timing.instruction
            + occupied
            + rows * self.latency
            + padding
            + gemm
            + self.alu
            + np.where(looping & (uops > 0), timing.pipeline, 0.0)
        )


_FETCH = len(Module)
_END, _FETCHING, _MEMORY = "end", "fetch", "memory"
_QUEUE_NAMES = [queue.name.lower() for queue in TokenQueue]


@dataclass
class _Actor:
    """Fetch or a module: what it works on now, and what it waits for since when."""

    #: Cycles left if it were alone; None while it does not work.
    left: float | None = None
    #: Share of its work that occupies the read channel, and how fast it goes now.
    share: float = 0.0
    speed: float = 1.0
    current: int = -1
    #: Next of the tokens that the instruction pops, then of those it pushes.
    step: int = 0
    pushing: bool = False
    reason: str = _FETCHING
    since: float = 0.0
    waited: dict[str, float] = field(default_factory=dict)

    def wait(self, reason: str, now: float) -> None:
        """From ``now`` on it waits for ``reason``; the empty string is work."""
        if reason != self.reason:
            if self.reason and now > self.since:
                self.waited[self.reason] = self.waited.get(self.reason, 0.0) + now - self.since
            self.reason, self.since = reason, now


class _Run:
    """One execution, from event to event."""

    def __init__(self, table: Table, edges: Edges, work: _Work) -> None:
        self.edges = edges
        self._work = work
        count = len(table)
        self.starts, self.ends = [0.0] * count, [0.0] * count
        self._alone: list[float] = work.alone.tolist()
        self._shares: list[float] = (work.read / np.maximum(work.alone, 1e-9)).tolist()
        self._pops: list[list[int]] = [[] for _ in range(count)]
        self._pushes: list[list[int]] = [[] for _ in range(count)]
        for places, steps in ((POPS, self._pops), (PUSHES, self._pushes)):
            for (module, name), queue in places.items():
                chosen = edges.queues[module]
                for index in chosen[table[name][chosen] != 0].tolist():
                    steps[index].append(int(queue))
        self._queues: list[list[int]] = [queue.tolist() for queue in edges.queues]
        self._module: list[int] = edges.module.tolist()
        self._fetched, self._taken = [0] * len(Module), [0] * len(Module)
        self._tokens = [0] * len(TokenQueue)
        self._handed = self._arrived = 0
        self._actors = [_Actor() for _ in range(_FETCH + 1)]
        self._now = 0.0

    def to_the_end(self) -> None:
        while True:
            while any([self._hand_out(), *(self._advance(module) for module in range(_FETCH))]):
                pass
            working = [actor for actor in self._actors if actor.left is not None]
            if not working:
                break
            _share_channel(working)
            step = min((actor.left or 0.0) / actor.speed for actor in working)
            self._now += step
            for actor in working:
                actor.left = (actor.left or 0.0) - step * actor.speed
            self._complete()
        for module, actor in enumerate(self._actors[:_FETCH]):
            if actor.current >= 0 or self._taken[module] < len(self._queues[module]):
                at = actor.current if actor.current >= 0 else self._queues[module][self._taken[module]]
                raise FleetError(
                    f"the program does not come to its end: instruction {at} of {Module(module).name} waits for "
                    f"{actor.reason}",
                    code="vta-deadlock",
                    hint="`vta check` says what is wrong with it",
                )
            actor.wait("", self._now)

    def module(self, module: Module, total: int) -> ModuleCycles:
        queue = self.edges.queues[module]
        waited = self._actors[module].waited
        busy = float(self._work.alone[queue].sum())
        in_memory = sum(self.ends[index] - self.starts[index] for index in self._queues[module]) - busy
        waiting = {name: round(cycles) for name, cycles in waited.items() if round(cycles)}
        if round(in_memory) > 0:
            waiting[_MEMORY] = round(in_memory)
        return ModuleCycles(module.name.lower(), len(queue), round(busy), busy / total if total else 0.0, waiting)

    def _hand_out(self) -> bool:
        """Fetch gives what has arrived to the queues that have room, and reads on when all is given."""
        before = self._handed
        fetch = self._actors[_FETCH]
        while self._handed < self._arrived:
            module = self._module[self._handed]
            if self._fetched[module] - self._taken[module] >= COMMAND_QUEUE:
                break
            self._fetched[module] += 1
            self._handed += 1
        if self._handed == self._arrived and self._arrived < len(self._module) and fetch.left is None:
            count = min(self._work.fetched_together, len(self._module) - self._arrived)
            # Reading is pipelined: later bursts are on their way while the first is handed out.
            first = self._work.latency if not self._arrived else 0.0
            fetch.left = count * self._work.fetch + first
            fetch.share = count * self._work.fetch / fetch.left
        return self._handed != before

    def _advance(self, module: int) -> bool:
        """A module that does not work pushes, takes the next instruction, pops and starts, as far as it can."""
        actor = self._actors[module]
        if actor.left is not None:
            return False
        moved = False
        if actor.pushing:
            pushes = self._pushes[actor.current]
            while actor.step < len(pushes):
                queue = pushes[actor.step]
                if self._tokens[queue] >= TOKEN_QUEUE:
                    actor.wait(_QUEUE_NAMES[queue], self._now)
                    return moved
                self._tokens[queue] += 1
                actor.step += 1
                moved = True
            actor.pushing, actor.current = False, -1
        if actor.current < 0:
            if self._taken[module] == self._fetched[module]:
                done = self._taken[module] == len(self._queues[module])
                actor.wait(_END if done else _FETCHING, self._now)
                return moved
            actor.current = self._queues[module][self._taken[module]]
            self._taken[module] += 1
            actor.step = 0
            moved = True
        pops = self._pops[actor.current]
        while actor.step < len(pops):
            queue = pops[actor.step]
            if not self._tokens[queue]:
                actor.wait(_QUEUE_NAMES[queue], self._now)
                return moved
            self._tokens[queue] -= 1
            actor.step += 1
            moved = True
        actor.wait("", self._now)
        actor.left, actor.share = self._alone[actor.current], self._shares[actor.current]
        self.starts[actor.current] = self._now
        return True

    def _complete(self) -> None:
        """Those whose work is done now end it."""
        for number, actor in enumerate(self._actors):
            if actor.left is None or actor.left > 1e-6:
                continue
            actor.left = None
            if number == _FETCH:
                self._arrived += min(self._work.fetched_together, len(self._module) - self._arrived)
            else:
                self.ends[actor.current] = self._now
                actor.pushing, actor.step = True, 0


def _share_channel(working: Sequence[_Actor]) -> None:
    """How fast each goes: at full speed while the read channel has room, else with an even share of it."""
    readers = []
    for actor in working:
        actor.speed = 1.0
        if actor.share:
            readers.append(actor)
    if len(readers) < 2 or sum(actor.share for actor in readers) <= 1.0:
        return
    room = 1.0
    readers.sort(key=lambda actor: actor.share)
    for place, actor in enumerate(readers):
        given = min(actor.share, room / (len(readers) - place))
        actor.speed = given / actor.share
        room -= given
