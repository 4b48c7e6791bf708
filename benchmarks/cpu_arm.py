"""What ARM processors can make of the compiled kernels: how busy their inner loops keep the FMA unit.

    python -m benchmarks.cpu_arm [--show] [--json]

There is no board in this: kernels are compiled as they are for a board, and llvm-mca says what LLVM's model of the
processor makes of the loop with the most fused multiply-adds (benchmarks/mca.py). Wanted: 85 % of the peak.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import mca

WANTED = 0.85
PROCESSORS = {mca.CORTEX_A72: "aarch64", mca.CORTEX_A9: "armv7l"}

#: Layers of ResNet-50. The 3×3 convolution has a stride, which Winograd's algorithm does not take.
CONVOLUTIONS = {
    "direct convolution 3×3": {"shape": (1, 128, 56, 56), "channels": 128, "kernel": 3, "strides": 2, "padding": 1},
    "direct convolution 1×1": {"shape": (1, 256, 56, 56), "channels": 64, "kernel": 1, "strides": 1, "padding": 0},
}
DENSES = {"GEMM": (128, 512, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print each loop's instructions")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    asked = parser.parse_args()
    rows = list(measure(asked.show))
    if asked.json:
        print(json.dumps({"arm": rows}))
        return
    from benchmarks.cpu_report import arms, wide_console

    wide_console().print(arms(rows))


def measure(show: bool) -> Iterator[dict[str, Any]]:
    """One row for each processor and kernel. Where there is no llvm-mca, its note says how to get it."""
    for processor, machine in PROCESSORS.items():
        for kernel in (*CONVOLUTIONS, *DENSES):
            row: dict[str, Any] = {"processor": processor.name, "kernel": kernel, "wanted": WANTED, "note": ""}
            row |= dict.fromkeys(("fma", "instructions", "cycles", "flop_per_cycle", "utilisation"))
            try:
                mca.tool()
                loop = mca.hot_loop(assembly(kernel, machine, processor.name))
                if show:
                    print(f"\n{kernel} on {processor.name}", *loop, sep="\n  ", file=sys.stderr)
                if loop:
                    found = mca.utilisation(loop, processor)
                    row |= {"fma": found.fma, "instructions": found.instructions, "cycles": found.cycles}
                    row |= {"flop_per_cycle": found.flop_per_cycle, "utilisation": found.share}
                else:
                    row |= {"utilisation": 0.0, "note": "no loop with a fused multiply-add"}
            except mca.NoAnalyser as error:
                row["note"] = str(error)
            yield row


def assembly(kernel: str, machine: str, processor: str) -> str:
    """What the CPU target makes of a network of this one layer."""
    from targets.cpu import passes
    from targets.cpu.compile import compile_module
    from targets.cpu.machine import MACHINES

    target = MACHINES[machine]
    compiled = compile_module(passes.simplify()(network(kernel)), target, target.processor(processor))
    return "\n".join(_sources(compiled.executable.mod))


def network(kernel: str) -> Any:
    """The layer, and a ReLU behind it, as a Relax module."""
    import numpy as np
    from tvm import relax

    noise = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return relax.const(noise.standard_normal(shape).astype(np.float32))

    builder = relax.BlockBuilder()
    if kernel in DENSES:
        rows, depth, columns = DENSES[kernel]
        given = relax.Var("x", relax.TensorType((rows, depth), "float32"))
        layer = relax.op.matmul(given, weight(depth, columns))
    else:
        made: dict[str, Any] = CONVOLUTIONS[kernel]
        given = relax.Var("x", relax.TensorType(made["shape"], "float32"))
        weights = weight(made["channels"], made["shape"][1], made["kernel"], made["kernel"])
        layer = relax.op.nn.conv2d(given, weights, strides=made["strides"], padding=made["padding"])
    with builder.function("main", [given]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.relu(builder.emit(layer)))
        builder.emit_func_output(result)
    return builder.get()


def _sources(module: Any) -> Iterator[str]:
    """The assembly of a runtime module and of those it imports; modules of another kind have none."""
    if module.kind == "llvm":
        yield module.inspect_source("asm")
    for imported in module.imports:
        yield from _sources(imported)


if __name__ == "__main__":
    main()
