"""Functional simulator: executes an instruction stream on a memory, exactly as the hardware or as the original one.

The two originals, the functional simulator and the HLS design of apache/tvm-vta (d4a15f6), differ; ``semantics``
chooses:

==================  ==============================================  ================================================
what                ``hw``                                          ``fsim``
==================  ==============================================  ================================================
STORE               reads the OUT buffer                            the low bytes of ACC
GEMM with reset     ACC 0, OUT the sum; reads INP and WGT           ACC 0
shift amount        low 5 bits, signed                              all of it; an error beyond ±31 (undefined)
LOAD UOP            one row, no padding                             rows and padding
LOAD WGT            no padding                                      padding
LOAD, x_size 0      pads are written                                nothing
MUL, ACC_8BIT       an error: the hardware has neither              as they say
needless token bit  ignored                                         an error (a null pointer in the original)
STORE's padding,    ignored                                         an error
and its memory
==================  ==============================================  ================================================

In both it is an error to touch what is outside of a buffer or of the memory, or below address 4096, to execute a
micro-op that was never loaded, to stop short of the end for want of a token, to leave a token behind, to have no
FINISH, or to have anything execute after it. Each module runs its own instructions in order; between modules only
tokens order anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from targets.base import FleetError
from targets.vta import isa
from targets.vta import kernel_abi as abi
from targets.vta.config import VtaConfig
from targets.vta.counters import Counters, count
from targets.vta.driver import DriverError
from targets.vta.kernel_abi import Status

if TYPE_CHECKING:
    import numpy.typing as npt

Semantics = Literal["hw", "fsim"]
Order = Literal["program", "random"]

#: Micro-ops between two looks at the clock: well below a second.
_BUDGET = 1 << 22


class SimulationError(DriverError):
    """A program that does what no program may; names the instruction."""

    code = "vta-simulation"


class Simulator:
    """One accelerator. Its scratchpads keep what they hold from run to run, as hardware's do.

    Args:
        config: what it is built with.
        semantics: which of the originals it behaves as where they differ.
        order: of the instructions that are ready, always the one that comes first in the stream, or a random one.
        seed: of the random order; the same seed gives the same order on every machine.
        fill: the byte that INP, WGT, ACC and OUT are full of at first. Micro-ops are not there until loaded.

    Raises:
        FleetError: ``bad-vta-config``; ``missing-extra`` where numba is not installed.
    """

    def __init__(
        self,
        config: VtaConfig,
        *,
        semantics: Semantics = "hw",
        order: Order = "program",
        seed: int = 0,
        fill: int = 0,
    ) -> None:
        self.config = config.check()
        try:
            from targets.vta import native

            self._loop = native.loop(config.block)
        except ModuleNotFoundError as error:
            raise FleetError(
                f"simulating the accelerator needs numba, and '{error.name}' is not installed",
                code="missing-extra",
                hint="make setup, or pip install 'fleet-edge[vta]'",
            ) from error
        self._semantics = semantics
        self._random = np.random.default_rng(seed) if order == "random" else None
        width = config.batch * config.block
        self._memories = (
            _aligned(config.uop_depth, np.int32),
            _aligned(config.uop_depth, np.uint8),
            _aligned(config.inp_depth * width, np.int16),
            _aligned(config.wgt_depth * config.block**2, np.int16),
            _aligned((config.acc_depth + 1) * width, np.int32),
            _aligned((config.acc_depth + 1) * width, np.int8),
        )
        _, _, inp, wgt, acc, out = self._memories
        byte = np.uint8(fill).astype(np.int8)
        inp[:], wgt[:], out[:], acc.view(np.int8)[:] = byte, byte, byte, byte

    def run(self, table: isa.Table, dram: npt.NDArray[np.uint8], timeout: float | None = None) -> Counters:
        """Execute a stream to its FINISH.

        Args:
            table: the instructions; base registers are 0, so their addresses are those of ``dram``.
            dram: memory from address 0, uint8, one-dimensional, contiguous; changed in place.
            timeout: seconds.

        Raises:
            SimulationError: names the instruction. What ran before it has changed ``dram``.
            FleetError: ``bad-vta-field`` for a field that no instruction has room for.
            DriverError: ``vta-timeout``.
        """
        isa.encode(table, self.config)  # no field is larger than an instruction can hold: sums of them fit 64 bits
        if dram.dtype != np.uint8 or dram.ndim != 1 or not dram.flags.carray or dram.ctypes.data % 4:
            raise ValueError("memory is a writeable contiguous one-dimensional array of uint8, aligned to 4 bytes")
        rows = np.ascontiguousarray(table).view(np.int64).reshape(len(table), len(isa.COLUMNS))
        modules = isa.modules(table)
        queue = np.argsort(modules, kind="stable").astype(np.int64)
        ends = np.cumsum(np.bincount(modules, minlength=len(isa.Module))).astype(np.int64)
        state = np.zeros(abi.STATE_SIZE, np.int64)
        state[abi.HEAD + 1 : abi.HEAD + len(isa.Module)] = ends[:-1]
        if self._random is not None:
            state[abi.RANDOM] = self._random.integers(1, 1 << 63)
        shape = self._shape()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self._loop(rows, queue, ends, self._memories, dram, shape, state, _BUDGET)
            if status != Status.PAUSED:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise self._error(table, int(state[abi.AT]), f"{timeout} s have passed", code="vta-timeout")
        self._judge(table, queue, ends, state, status)
        return count(table, self.config)

    def _shape(self) -> npt.NDArray[np.int64]:
        config = self.config
        return np.array(
            [
                config.batch,
                config.uop_depth,
                config.inp_depth,
                config.wgt_depth,
                config.acc_depth,
                config.log2_acc_depth,
                max(config.log2_acc_depth, config.log2_inp_depth),
                self._semantics == "hw",
            ],
            np.int64,
        )

    def _judge(self, table: isa.Table, queue: Any, ends: Any, state: Any, status: int) -> None:
        """Raise for a run that did not end well."""
        at, detail, limit = int(state[abi.AT]), int(state[abi.DETAIL]), int(state[abi.DETAIL + 1])
        if status == Status.DONE:
            if not state[abi.FINISHED]:
                raise self._error(table, len(table) - 1, "the stream ends without a FINISH")
            for tokens, name in enumerate(_TOKENS):
                left = int(state[abi.TOKENS + tokens])
                if left:
                    pusher = int(state[abi.PUSHED + tokens])
                    raise self._error(table, pusher, f"{left} of the tokens {name} are left over; it pushed the last")
            return
        if status == Status.DEADLOCK:
            heads = [int(queue[state[m]]) for m in range(len(isa.Module)) if state[m] < ends[m]]
            at = min(heads)
            module = isa.module_of(int(table["opcode"][at]), int(table["memory"][at]))
            wanted = {"pop_prev": abi.POP_PREV[module], "pop_next": abi.POP_NEXT[module]}
            lacking = [
                _TOKENS[tokens]
                for bit, tokens in wanted.items()
                if table[bit][at] and tokens >= 0 and not state[abi.TOKENS + tokens]
            ]
            raise self._error(
                table, at, f"it waits for a token {' and one '.join(lacking)} that nothing pushes any more"
            )
        reasons = {
            Status.AFTER_FINISH: "it executes after FINISH, which nothing made wait for it",
            Status.NO_QUEUE: "it pops or pushes a token where its module has no queue",
            Status.BAD_MEMORY: "there is no such memory for it",
            Status.SRAM_RANGE: f"it reaches element {detail} of a buffer of {limit}",
            Status.DRAM_RANGE: f"it touches memory from byte {detail} to before {limit}",
            Status.UOP_RANGE: f"it reaches micro-op {detail} of {limit}",
            Status.UOP_UNKNOWN: f"micro-op {detail} was never loaded",
            Status.ACC_RANGE: f"it reaches element {detail} of ACC, which has {limit}",
            Status.SRC_RANGE: f"its source reaches element {detail} of a buffer of {limit}",
            Status.WGT_RANGE: f"it reaches element {detail} of WGT, which has {limit}",
            Status.NO_OPERATION: "there is no such operation",
            Status.BAD_SHIFT: "it shifts by more than 31, which is undefined",
            Status.STORE_PADDING: "a STORE has no padding",
        }
        raise self._error(table, at, reasons[Status(status)])

    def _error(self, table: isa.Table, at: int, why: str, code: str = SimulationError.code) -> SimulationError:
        if not len(table):
            return SimulationError(f"an empty stream: {why}", code=code)
        return SimulationError(f"instruction {at} ({describe(table[at], self.config)}): {why}", code=code)


_TOKENS = ("from load to compute", "from compute to load", "from compute to store", "from store to compute")


def _aligned(count: int, kind: type[np.generic]) -> npt.NDArray[Any]:
    """Zeros, from the start of a cache line on: a vector that lies across two costs two loads."""
    size = count * np.dtype(kind).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(kind)


def describe(row: np.void, config: VtaConfig) -> str:
    """One instruction in words: what it is, and its fields that are not 0."""
    opcode = isa.Opcode(int(row["opcode"]))
    words = [opcode.name]
    fields = [name for name in isa.layout(config, opcode) if name != "opcode"]
    if "memory" in fields:
        fields.remove("memory")
        memory = int(row["memory"])
        words.append(isa.Memory(memory).name if memory < len(isa.Memory) else f"memory {memory}")
    if "alu_op" in fields:
        fields.remove("alu_op")
        operation = int(row["alu_op"])
        words.append(isa.AluOp(operation).name if operation < len(isa.AluOp) else f"operation {operation}")
    return " ".join([*words, *(f"{name}={row[name]}" for name in fields if row[name])])
