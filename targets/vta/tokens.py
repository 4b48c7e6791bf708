"""What orders the three modules: the token queues between them, and the command queues in front of them.

Tokens carry nothing, and each queue has one module that pushes and one that pops, both in the order of the stream. So
the k-th pop takes the token of the k-th push, whatever the timing, and all of it is known before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from targets.vta.isa import DEPENDENCIES, Module, modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from targets.vta.isa import Table

#: Instructions that each command queue holds, tokens that each token queue holds, in the Zynq block design
#: (``hardware/xilinx/scripts/vivado.tcl`` of apache/tvm-vta). Fetch, and a push, wait while a queue is full.
COMMAND_QUEUE = 512
TOKEN_QUEUE = 1024


class TokenQueue(IntEnum):
    """From whom to whom: load, compute (``g``, its name is gemm in the design), store."""

    L2G = 0
    G2L = 1
    G2S = 2
    S2G = 3


#: ``(module, dependency field)`` to the queue that the field means; other bits of an instruction mean nothing.
POPS: Mapping[tuple[Module, str], TokenQueue] = {
    (Module.LOAD, "pop_next"): TokenQueue.G2L,
    (Module.COMPUTE, "pop_prev"): TokenQueue.L2G,
    (Module.COMPUTE, "pop_next"): TokenQueue.S2G,
    (Module.STORE, "pop_prev"): TokenQueue.G2S,
}
PUSHES: Mapping[tuple[Module, str], TokenQueue] = {
    (Module.LOAD, "push_next"): TokenQueue.L2G,
    (Module.COMPUTE, "push_prev"): TokenQueue.G2L,
    (Module.COMPUTE, "push_next"): TokenQueue.G2S,
    (Module.STORE, "push_prev"): TokenQueue.S2G,
}
#: In :class:`Edges`: the instruction has no such token; the token has no partner.
NONE, UNMATCHED = -1, -2


@dataclass(frozen=True)
class Edges:
    """Of each instruction, shape (n,): its module, and its place in that module's queue. Of each field in
    :data:`~targets.vta.isa.DEPENDENCIES`, columns of (n, 4): the instruction at the other end of the token, or
    :data:`NONE`, or :data:`UNMATCHED`. ``queues`` lists each module's instructions in order."""

    module: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    partner: npt.NDArray[np.int64]
    queues: tuple[npt.NDArray[np.int64], ...]


def match(table: Table) -> Edges:
    """The tokens of a program, each with who pushes and who pops it."""
    module = modules(table)
    queues = tuple(np.flatnonzero(module == number) for number in Module)
    position = np.zeros(len(table), np.int64)
    for queue in queues:
        position[queue] = np.arange(len(queue))
    partner = np.full((len(table), len(DEPENDENCIES)), NONE, np.int64)
    for (consumer, pop), token_queue in POPS.items():
        producer, push = next(key for key, value in PUSHES.items() if value == token_queue)
        pops = queues[consumer][table[pop][queues[consumer]] != 0]
        pushes = queues[producer][table[push][queues[producer]] != 0]
        matched = min(len(pops), len(pushes))
        partner[pops, DEPENDENCIES.index(pop)] = UNMATCHED
        partner[pushes, DEPENDENCIES.index(push)] = UNMATCHED
        partner[pops[:matched], DEPENDENCIES.index(pop)] = pushes[:matched]
        partner[pushes[:matched], DEPENDENCIES.index(push)] = pops[:matched]
    return Edges(module, position, partner, queues)


@dataclass(frozen=True)
class Walk:
    """``order``: the instructions that complete, in an order that respects tokens. ``waiting``: where each module that
    cannot go on stands, and for which token queue (None where its command queue stays empty, as fetch is blocked)."""

    order: list[int]
    waiting: dict[int, tuple[Module, TokenQueue | None]]


def walk(table: Table, edges: Edges, *, command_queue: int | None, token_queue: int | None) -> Walk:
    """Run the queues alone, without what instructions do; None stands for queues without end.

    Whether such a network comes to its end does not depend on timing: every actor is deterministic and waits for one
    queue at a time.
    """
    command_limit = command_queue if command_queue is not None else len(table) + 1
    token_limit = token_queue if token_queue is not None else len(table) + 1
    # Stages of an instruction: pops in order, execution, pushes in order; each stage is (queue, +1 or -1).
    steps: list[list[tuple[int, int]]] = [[] for _ in range(len(table))]
    for places, change in ((POPS, -1), (PUSHES, 1)):
        for (module, field), queue in places.items():
            chosen = edges.queues[module]
            for index in chosen[table[field][chosen] != 0].tolist():
                steps[index].append((queue, change))
    queues = [queue.tolist() for queue in edges.queues]
    module_of = edges.module.tolist()
    tokens = [0] * len(TokenQueue)
    fetched, taken, stage, current = [0, 0, 0], [0, 0, 0], [0, 0, 0], [-1, -1, -1]
    pc, order = 0, []
    moved = True
    while moved:
        moved = False
        while pc < len(table) and fetched[module_of[pc]] - taken[module_of[pc]] < command_limit:
            fetched[module_of[pc]] += 1
            pc += 1
            moved = True
        for module in Module:
            while True:
                if current[module] < 0:
                    if taken[module] == fetched[module]:
                        break
                    current[module] = queues[module][taken[module]]
                    taken[module] += 1
                    stage[module] = 0
                    moved = True
                wanted = steps[current[module]]
                while stage[module] < len(wanted):
                    through, change = wanted[stage[module]]
                    if not 0 <= tokens[through] + change <= token_limit:
                        break
                    tokens[through] += change
                    stage[module] += 1
                    moved = True
                if stage[module] < len(wanted):
                    break
                order.append(current[module])
                current[module] = -1
    waiting: dict[int, tuple[Module, TokenQueue | None]] = {}
    for module in Module:
        if current[module] >= 0:
            through, _ = steps[current[module]][stage[module]]
            waiting[current[module]] = (module, TokenQueue(through))
        elif taken[module] < len(queues[module]):
            waiting[queues[module][taken[module]]] = (module, None)
    return Walk(order, waiting)


def clocks(edges: Edges, order: list[int]) -> npt.NDArray[np.int64]:
    """Vector clocks, shape (n, 3): how many instructions of each module have completed for certain before this one
    completes, itself included. Instruction j happens before i exactly when ``clock[i, module[j]] > position[j]``.

    ``order`` is one in which they complete (:func:`walk`).
    """
    found = [[0, 0, 0] for _ in range(len(edges.module))]
    partner = edges.partner[:, :2].tolist()  # of the pops
    position, module = edges.position.tolist(), edges.module.tolist()
    last = [[0, 0, 0] for _ in Module]
    for index in order:
        clock = last[module[index]]
        for other in partner[index]:
            if other >= 0:
                clock = [max(pair) for pair in zip(clock, found[other], strict=True)]
        clock = list(clock)
        clock[module[index]] = position[index] + 1
        found[index] = last[module[index]] = clock
    return np.array(found, np.int64).reshape(-1, len(Module))


def left_over(table: Table, edges: Edges) -> list[tuple[int, TokenQueue]]:
    """The pushes whose token nobody takes."""
    found = []
    for (module, field), queue in PUSHES.items():
        column = edges.partner[:, DEPENDENCIES.index(field)]
        chosen = edges.queues[module]
        found += [(index, queue) for index in chosen[column[chosen] == UNMATCHED].tolist()]
    return sorted(found)
