"""What the simulator's compiled loop and those who call it agree on: its statuses, and the fields of what it is given.

Apart from the loop itself, so that who calls it needs no compiler.
"""

from __future__ import annotations

from enum import IntEnum

from targets.vta.isa import COLUMNS


class Status(IntEnum):
    """Why the loop returned. From ``DEADLOCK`` on, the program is wrong at instruction ``state[AT]``."""

    DONE = 0
    #: The budget is used up; call again to go on.
    PAUSED = 1
    DEADLOCK = 2
    AFTER_FINISH = 3
    NO_QUEUE = 4
    BAD_MEMORY = 5
    SRAM_RANGE = 6
    DRAM_RANGE = 7
    UOP_RANGE = 8
    UOP_UNKNOWN = 9
    ACC_RANGE = 10
    SRC_RANGE = 11
    WGT_RANGE = 12
    NO_OPERATION = 13
    BAD_SHIFT = 14
    STORE_PADDING = 15


# Fields of ``state``: what a paused run goes on from.
HEAD = 0  # and 1, 2: position of each module in ``queue``
TOKENS = 3  # to 6: in each token queue
PUSHED = 7  # to 10: the instruction that pushed last to each
FINISHED = 11  # 1 after FINISH
ROW = 12  # the row of the outer loop that the instruction under way goes on from
RANDOM = 13  # state of the random order; 0 in program order
AT = 14
DETAIL = 15  # and 16: what the error is about
STATE_SIZE = 17

# Fields of ``shape``: sizes of what is simulated, and its semantics.
BATCH = 0
UOP_DEPTH = 1
INP_DEPTH = 2
WGT_DEPTH = 3
ACC_DEPTH = 4
DST_BITS = 5
SRC_BITS = 6
HARDWARE = 7  # 1: the hardware's semantics, 0: the original functional simulator's
SHAPE_SIZE = 8

# The token queues, and which of them each module's four bits mean: load, compute, store; -1 is none.
L2G, G2L, G2S, S2G = range(4)
POP_PREV = (-1, L2G, G2S)
POP_NEXT = (G2L, S2G, -1)
PUSH_PREV = (-1, G2L, S2G)
PUSH_NEXT = (L2G, G2S, -1)

# Columns of the table.
OPCODE, POPS_PREV, POPS_NEXT, PUSHES_PREV, PUSHES_NEXT = (
    COLUMNS.index(name) for name in ("opcode", "pop_prev", "pop_next", "push_prev", "push_next")
)
MEMORY, SRAM_BASE, DRAM_BASE, Y_SIZE, X_SIZE, X_STRIDE, Y_PAD_0, Y_PAD_1, X_PAD_0, X_PAD_1 = (
    COLUMNS.index(name)
    for name in (
        *("memory", "sram_base", "dram_base", "y_size", "x_size", "x_stride"),
        *("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1"),
    )
)
RESET, UOP_BGN, UOP_END, ITER_OUT, ITER_IN, DST_OUT, DST_IN, SRC_OUT, SRC_IN, WGT_OUT, WGT_IN = (
    COLUMNS.index(name)
    for name in (
        *("reset", "uop_bgn", "uop_end", "iter_out", "iter_in", "dst_factor_out", "dst_factor_in"),
        *("src_factor_out", "src_factor_in", "wgt_factor_out", "wgt_factor_in"),
    )
)
ALU_OP, USE_IMM, IMM = (COLUMNS.index(name) for name in ("alu_op", "use_imm", "imm"))
