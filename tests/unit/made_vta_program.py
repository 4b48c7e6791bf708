"""A small VTA program, assembled by hand: a picture of 16 channels, less what is negative in it."""

import numpy as np

from targets.vta import isa
from targets.vta.config import DEFAULT, PAGE, VtaConfig
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.program import Buffer, Layer, Port, Program, Segment

SIDE = 4
PIXELS = SIDE * SIDE
SHAPE = (1, 16, SIDE, SIDE)


def relu(config: VtaConfig = DEFAULT) -> Program:
    """``output = max(input, 0)``: a 1×1 convolution with weights of 1 on the diagonal."""
    pages = {"x": PAGE, "y": 2 * PAGE, "w": 3 * PAGE, "u": 4 * PAGE}
    size = PIXELS * config.inp_bytes
    buffers = (
        Buffer("x", "input", Memory.INP, pages["x"], size),
        Buffer("y", "output", Memory.OUT, pages["y"], size),
        Buffer("w", "weight", Memory.WGT, pages["w"], config.wgt_bytes),
        Buffer("u", "uop", Memory.UOP, pages["u"], config.uop_bytes),
    )

    def load(memory: Memory, buffer: str, count: int, **tokens: int) -> tuple[int, ...]:
        base = pages[buffer] // isa.element_bytes(config, memory)
        return isa.row(Opcode.LOAD, memory=memory, dram_base=base, x_size=count, y_size=1, x_stride=count, **tokens)

    loop = {"uop_bgn": 0, "uop_end": 1, "iter_out": 1, "iter_in": PIXELS, "dst_factor_in": 1, "src_factor_in": 1}
    rows = [
        load(Memory.UOP, "u", 1),
        load(Memory.INP, "x", PIXELS),
        load(Memory.WGT, "w", 1, push_next=1),
        isa.row(Opcode.GEMM, reset=1, **loop),
        isa.row(Opcode.GEMM, pop_prev=1, **loop),
        isa.row(Opcode.ALU, alu_op=AluOp.MAX, use_imm=1, push_next=1, **loop),
        isa.row(
            Opcode.STORE,
            memory=Memory.OUT,
            dram_base=pages["y"] // config.out_bytes,
            x_size=PIXELS,
            y_size=1,
            x_stride=PIXELS,
            pop_prev=1,
            push_prev=1,
        ),
        isa.row(Opcode.FINISH, pop_next=1),
    ]
    return Program(
        model="relu",
        config=config,
        table=isa.table(rows),
        segments=(Segment(PAGE, 4 * PAGE),),
        buffers=buffers,
        inputs=(Port("x", "x", SHAPE, -4),),
        outputs=(Port("y", "y", SHAPE, -4),),
        layers=(Layer("relu", "conv2d", 0, len(rows)),),
        constants={
            "w": np.eye(config.block, dtype=np.int8).tobytes(),
            "u": isa.encode_uops(np.zeros((1, 3), np.int64), config).tobytes(),
        },
    )
