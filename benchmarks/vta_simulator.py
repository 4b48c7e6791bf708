"""How fast the functional simulator is, on the part of ResNet-18 v1 that the accelerator computes.

    python benchmarks/vta_simulator.py [--runs N] [--original PROGRAM] [--json]

Random weights, batch 1, 224×224; each published configuration with each of the semantics. Speed is of whole runs, loads
and all, in the processor time of the one thread that they take. What starting costs is timed from outside, with the
machine code already kept.

The peer is the functional simulator of apache/tvm-vta (``src/sim``), which is not part of this project. ``--original``
names a program made of it, for the default configuration and HW_VER 0.0.2, that is called with ``insn.bin``,
``dram.bin`` and ``--out FILE``, runs the one on the other (offset = physical address), writes all memory to FILE, and
prints a JSON object of the seven counters and ``seconds``. Counters and memory must then be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from targets.vta import isa
from targets.vta.config import DEFAULT, PUBLISHED
from targets.vta.counters import NAMES
from targets.vta.layout import pack
from targets.vta.lower import lower
from targets.vta.program import Program
from targets.vta.qgraph import QConv, QGraph, QTensor
from targets.vta.simulator import Semantics, Simulator

SEMANTICS: tuple[Semantics, ...] = ("hw", "fsim")
START = """
import numpy as np
from targets.vta import isa
from targets.vta.config import DEFAULT
from targets.vta.simulator import Simulator
Simulator(DEFAULT).run(isa.table([isa.row(isa.Opcode.FINISH)]), np.zeros(8192, np.uint8))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each program")
    parser.add_argument("--original", type=Path, help="a program made of the original simulator")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    graph = resnet18()
    found: dict[str, Any] = {"start_s": started(), "runs": []}
    for name, config in PUBLISHED.items():
        program = lower(graph, config)
        memory = filled(program)
        for semantics in SEMANTICS:
            found["runs"].append({"config": name, "semantics": semantics, **measure(program, memory, semantics, asked)})
    if asked.original:
        program = lower(graph, DEFAULT)
        found["original"] = beside(program, filled(program), asked.original.resolve())
    if asked.json:
        print(json.dumps(found))
        return
    print(f"start, with numpy and one instruction: {found['start_s']:.2f} s")
    for run in found["runs"]:
        print(
            f"{run['config']:<28}{run['semantics']:<6}{run['seconds'] * 1e3:>8.1f} ms"
            f"{run['gemm_per_second'] / 1e6:>8.0f} million block operations a second"
        )
    if asked.original:
        peer = found["original"]
        print(
            f"{'the original':<34}{peer['seconds'] * 1e3:>8.1f} ms"
            f"{peer['gemm_per_second'] / 1e6:>8.0f} million; counters and memory equal"
        )


def resnet18() -> QGraph:
    """The 19 convolutions and 8 residual sums between the first pooling and the last, weights from a fixed seed."""
    rng = np.random.default_rng(0)
    tensors: dict[str, QTensor] = {}
    nodes: list[QConv] = []

    def tensor(name: str, channels: int, size: int) -> str:
        tensors[name] = QTensor(name, (1, channels, size, size), -4)
        return name

    def conv(
        name: str, x: str, channels: int, kernel: int, stride: int = 1, relu: bool = True, residual: str = ""
    ) -> str:
        _, inputs, size, _ = tensors[x].shape
        output = tensor(name, channels, size // stride)
        weight = rng.integers(-127, 128, (channels, inputs, kernel, kernel)).astype(np.int8)
        bias = rng.integers(-(2**14), 2**14, channels).astype(np.int32)
        shift = np.full(channels, 6 + int(np.log2(inputs * kernel * kernel)) // 2, np.int32)
        padding = (kernel // 2,) * 4
        nodes.append(
            QConv(name, x, output, weight, bias, shift, (stride, stride), padding, relu=relu, residual=residual)
        )
        return output

    x = tensor("input", 64, 56)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"stage{stage}_block{block}", 2 if stage and not block else 1
            first = conv(f"{name}_conv0", x, channels, 3, stride)
            shortcut = x if stride == 1 else conv(f"{name}_shortcut", x, channels, 1, stride, relu=False)
            x = conv(f"{name}_conv1", first, channels, 3, residual=shortcut)
    return QGraph("resnet18", tensors, tuple(nodes), ("input",), (x,))


def filled(program: Program) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory before a run, with a random input."""
    memory = program.image()
    (port,) = program.inputs
    values = np.random.default_rng(1).integers(-127, 128, port.shape).astype(np.int8)
    packed = pack(values, program.config).reshape(-1).view(np.uint8)
    address = program.buffer(port.buffer).address
    memory[address : address + packed.size] = packed
    return memory


def measure(
    program: Program, memory: np.ndarray[Any, np.dtype[np.uint8]], semantics: Semantics, asked: argparse.Namespace
) -> dict[str, float]:
    """Median of the runs."""
    simulator = Simulator(program.config, semantics=semantics)
    seconds = []
    for _ in range(asked.runs):
        copy = memory.copy()
        start = time.thread_time()
        counters = simulator.run(program.table, copy)
        seconds.append(time.thread_time() - start)
    median = statistics.median(seconds)
    return {"seconds": median, "gemm_per_second": counters.gemm_counter / median}


def beside(program: Program, memory: np.ndarray[Any, np.dtype[np.uint8]], original: Path) -> dict[str, float]:
    """The same stream in the original simulator; ends the benchmark when it computes something else."""
    ours = memory.copy()
    counters = Simulator(program.config, semantics="fsim").run(program.table, ours).to_dict()
    with tempfile.TemporaryDirectory(prefix="fleet-vta-") as folder:
        insn, dram, out = (Path(folder) / name for name in ("insn.bin", "dram.bin", "out.bin"))
        insn.write_bytes(isa.encode(program.table, program.config))
        memory.tofile(dram)
        command = [str(original), str(insn), str(dram), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise SystemExit(f"{original}: {done.stderr}")
        theirs = json.loads(done.stdout)
        if {name: theirs[name] for name in NAMES} != counters:
            raise SystemExit(f"the original counts {theirs}, the simulator {counters}")
        if not np.array_equal(np.fromfile(out, np.uint8), ours):
            raise SystemExit("the original leaves other memory than the simulator")
    seconds = float(theirs["seconds"])
    return {"seconds": seconds, "gemm_per_second": counters["gemm_counter"] / seconds}


def started() -> float:
    """Seconds from nothing to a first run in a new process, median of five."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", START], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first may have compiled


if __name__ == "__main__":
    main()
