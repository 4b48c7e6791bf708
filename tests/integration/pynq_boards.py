"""Boards with each kind of `pynq`, for tests: a folder instead of the kernel's files, the model of the hardware below.

`pynq_images` has the stand-ins of the packages. Import the fixture ``board``: each test has one of its own.
"""

import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from targets.pynq.driver import PynqDriver
from targets.pynq.helper_process import HELPER
from targets.vta import boards, config, isa
from targets.vta.driver import VtaDriver
from targets.vta.executable import Executable
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.program import Buffer, Port, Program, Segment

IMAGES = Path(__file__).parent / "pynq_images"
DIALECTS = {"pynq_2_6": "xlnk", "pynq_3_0": "xrt", "pynq_4_0": "xrt4"}
PYNQ = boards.find("pynq")
CONFIG = config.DEFAULT
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
PIXELS = 8


def bit_file(part: str = "7z020clg484", idcode: int = 0x23727093, content: int = 0) -> bytes:
    payload = b"\xff" * 32 + bytes.fromhex("aa995566 20000000 30018001") + struct.pack(">2I", idcode, content)
    fields = b""
    for key, text in (("a", "vta_wrapper"), ("b", part), ("c", "2020/06/30"), ("d", "18:11:16")):
        fields += key.encode() + struct.pack(">H", len(text) + 1) + text.encode() + b"\0"
    return bytes.fromhex("00090ff00ff00ff00ff0000001") + fields + b"e" + struct.pack(">I", len(payload)) + payload


BITSTREAM = bit_file()


@dataclass
class BoardAtHand:
    """A board below a folder, and the Python of its image."""

    root: Path
    dialect: str
    environment: dict[str, str] = field(default_factory=dict)
    opened: list[PynqDriver] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in ("sys/class/fpga_manager/fpga0", "lib/firmware", "dev", "usr/lib", "proc/sys/kernel/random"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "proc/device-tree/chosen").mkdir(parents=True)
        for name, text in {
            "sys/class/fpga_manager/fpga0/state": "unknown\n",
            "sys/class/fpga_manager/fpga0/flags": "100\n",
            "sys/class/fpga_manager/fpga0/firmware": "",
            "dev/mem": "",
            "dev/kmsg": "6,1,2,-;random: crng init done\n",
            "proc/device-tree/chosen/pynq_board": "Pynq-Z1\0",
            "proc/sys/kernel/random/boot_id": "79c3-1\n",
            "fclk0": "50.0",
        }.items():
            (self.root / name).write_text(text)
        if self.dialect != "pynq_2_6":
            (self.root / "usr/lib/libxrt_core.so.2").touch()
        self.site = self.root / "site"
        (self.site / "pynq").mkdir(parents=True)
        shutil.copy(IMAGES / f"{self.dialect}.py", self.site / "pynq/__init__.py")
        for name in ("board_machine.py", "away.py"):
            shutil.copy(IMAGES / name, self.site / name)
        self.facts: dict[str, Any] = {
            "config": CONFIG.identity,
            "idcode": "23727093",
            "registers": PYNQ.registers,
            "pool": 0x10000000,
            "pool_size": 8 << 20,
        }
        self.environment = {"BOARD_ROOT": str(self.root), "PYTHONPATH": str(self.site)}
        self.set()

    def set(self, **facts: Any) -> None:
        """Change what the board is like; takes effect with the next helper."""
        self.facts.update(facts)
        (self.root / "board.json").write_text(json.dumps(self.facts))

    def open(
        self,
        bitstream: bytes = BITSTREAM,
        board: boards.Board = PYNQ,
        vta: config.VtaConfig = CONFIG,
        predict: bool = False,
    ) -> PynqDriver:
        digest = hashlib.sha256(bitstream).hexdigest()
        start = [sys.executable, str(HELPER), "--root", str(self.root)]
        driver = PynqDriver(
            vta, board, bitstream, sha256=digest, start=start, environment=self.environment, predict=predict
        )
        self.opened.append(driver)
        return driver

    def image_python(self) -> Path:
        """The Python of this board's image, which starts the helper as an agent's settings would."""
        path = self.root / "image-python"
        settings = " ".join(f"{name}='{value}'" for name, value in self.environment.items())
        path.write_text(f"#!/bin/sh\n{settings} exec '{sys.executable}' \"$@\" --root '{self.root}'\n")
        path.chmod(0o755)
        return path

    def done(self, what: str = "") -> list[str]:
        """What was done to the board so far, of one kind."""
        path = self.root / "done.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(what)]

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "run/fleet-vta/state.json").read_text())
        return found

    def helper_pid(self) -> int:
        return int((self.root / "run/fleet-vta/lock").read_text())


@pytest.fixture
def board(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BoardAtHand]:
    dialect = (
        request.node.callspec.params.get("dialect", "pynq_2_6") if hasattr(request.node, "callspec") else "pynq_2_6"
    )
    made = BoardAtHand(tmp_path / "board", dialect)
    yield made
    for driver in made.opened:
        driver.close()


def program(weights: npt.NDArray[np.int8]) -> Program:
    """Eight pixels of 16 channels times a matrix, shifted right by 4, clipped to ±127."""
    uop, wgt, inp, out = 4096, 8192, 12288, 16384
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=uop // 4, y_size=1, x_size=1, x_stride=1),
        isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=inp // 16, y_size=1, x_size=PIXELS, x_stride=PIXELS),
        isa.row(Opcode.LOAD, memory=Memory.WGT, dram_base=wgt // 256, y_size=1, x_size=1, x_stride=1, push_next=1),
        isa.row(Opcode.GEMM, reset=1, uop_end=1, iter_out=PIXELS, iter_in=1, dst_factor_out=1),
        isa.row(Opcode.GEMM, uop_end=1, iter_out=PIXELS, iter_in=1, dst_factor_out=1, src_factor_out=1, pop_prev=1),
    ]
    for operation, imm in ((AluOp.SHR, 4), (AluOp.MIN, 127), (AluOp.MAX, -127)):
        loop = {"uop_end": 1, "iter_out": PIXELS, "iter_in": 1, "dst_factor_out": 1, "src_factor_out": 1}
        rows.append(
            isa.row(Opcode.ALU, alu_op=operation, use_imm=1, imm=imm, push_next=int(operation == AluOp.MAX), **loop)
        )
    rows += [
        isa.row(
            *(Opcode.STORE,),
            memory=Memory.OUT,
            dram_base=out // 16,
            y_size=1,
            x_size=PIXELS,
            x_stride=PIXELS,
            pop_prev=1,
            push_prev=1,
        ),
        isa.row(Opcode.LOAD, memory=Memory.UOP, pop_next=1),
        isa.row(Opcode.FINISH),
    ]
    return Program(
        model="matrix",
        config=CONFIG,
        table=isa.table(rows),
        segments=(Segment(uop, 4 * 4096),),
        buffers=(
            Buffer("uop", "uop", Memory.UOP, uop, 4),
            Buffer("wgt", "weight", Memory.WGT, wgt, 256),
            Buffer("inp", "input", Memory.INP, inp, 16 * PIXELS),
            Buffer("out", "output", Memory.OUT, out, 16 * PIXELS),
        ),
        inputs=(Port("x", "inp", (1, 16, 1, PIXELS), 0),),
        outputs=(Port("y", "out", (1, 16, 1, PIXELS), 0),),
        layers=(),
        constants={"uop": bytes(4), "wgt": weights.tobytes()},
    )


WEIGHTS = np.random.default_rng(5).integers(-127, 128, (16, 16), np.int8)
PROGRAM = program(WEIGHTS)


def expected(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return np.clip(x.astype(np.int64) @ WEIGHTS.T.astype(np.int64) >> 4, -127, 127).astype(np.int8)


def check_runs(executable: Executable, seeds: Sequence[int] = (1, 2, 3), timeout: float = 20) -> None:
    for seed in seeds:
        x = np.random.default_rng(seed).integers(-127, 128, (PIXELS, 16), np.int8)
        (found,) = executable.run([x], timeout)
        np.testing.assert_array_equal(found.reshape(PIXELS, 16), expected(x))


def check_works(driver: VtaDriver) -> None:
    executable = Executable(PROGRAM, driver)
    check_runs(executable)
    executable.close()
