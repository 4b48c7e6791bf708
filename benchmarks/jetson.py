"""SSD300-ResNet50 with every engine of a Jetson beside the published figures; needs a GPU that CUDA can use.

    python -m benchmarks.jetson [--device NAME] [--batch N] [--cpu] [--json]

It is `fleet bench ssd300_resnet50 --engine all --protocol notebook --batch 128` and what follows from it: the best
engine that really computes in halves against eager fp32 with TF32 off, asked to be 3.62 times as fast or more (the
published 167.31 ms over 46.21 ms). Engines that are not there are named with the reason, and so is what ran instead of
Torch-TensorRT. Without ``--device`` a simulated Jetson stands for the board: the same driver, on this machine's GPU.

Without a GPU it says so and ends with status 2; ``--cpu`` measures there all the same, with a small batch, and no
figure of that is compared with what is asked of a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.protocol import BenchSpec
from controller import sim
from controller.fleet import BenchOptions, Fleet
from controller.home import Home
from controller.reports import EngineComparison, EngineReport

MODEL = "ssd300_resnet50"
ASKED = 167.31 / 46.21
_FP16 = ("float16", "bfloat16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="", help="a board of the inventory; otherwise this machine stands for one")
    parser.add_argument("--batch", type=int, default=0, help="128, or 1 with --cpu")
    parser.add_argument("--engines", default="all", help="as --engine of fleet bench")
    parser.add_argument("--cpu", action="store_true", help="measure without a GPU too")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    gpu = "" if asked.device else gpu_here()
    if not (asked.device or gpu or asked.cpu):
        print("torch finds no GPU here that it can use: nothing was measured (--cpu measures small batches without)")
        return 2
    batch = asked.batch or (128 if asked.device or gpu else 1)
    options = BenchOptions(
        spec=BenchSpec(protocol="notebook", max_other_load=1.0),
        engines=tuple(asked.engines.split(",")),
        batches=(batch,),
        weights="random:0",
    )
    with fleet_of(asked.device) as fleet:
        selection = fleet.select(devices=[asked.device]) if asked.device else fleet.select(targets=["jetson"])
        _, (comparison,) = asyncio.run(fleet.compare_engines(MODEL, selection, options))
    found = verdict(comparison, on_gpu=bool(asked.device or gpu))
    if asked.json:
        print(json.dumps({**found, "gpu": gpu, "comparison": msgspec.to_builtins(comparison)}, indent=1))
    else:
        show(comparison, found, gpu)
    return 0 if found["good"] or not (asked.device or gpu) else 1


def gpu_here() -> str:
    """The GPU's name; empty when torch finds none that it can use. In a process of its own: CUDA stays in it."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.stdout.strip()


@contextmanager
def fleet_of(device: str) -> Iterator[Fleet]:
    """The user's own fleet, or one with a simulated Jetson that goes away again."""
    if device:
        yield Fleet()
        return
    with tempfile.TemporaryDirectory(prefix="fleet-jetson-") as root:
        home = Home.find(Path(root))
        try:
            sim.up(home, 1, target="jetson", prefix="jetson")
            yield Fleet(home=home)
        finally:
            sim.down(home)


def verdict(comparison: EngineComparison, *, on_gpu: bool) -> dict[str, Any]:
    """The best engine whose weights are halves, whatever was asked of it; what is not there, and why."""
    halves = [one for one in comparison.engines if one.speed_up and one.weight_dtype.startswith(_FP16)]
    best = max(halves, key=lambda one: one.speed_up or 0.0, default=None)
    absent = {words(one): one.reason for one in comparison.engines if not one.run}
    wrong = {words(one): one.reason for one in comparison.engines if one.run and one.speed_up is None}
    speed_up = best.speed_up if best else None
    return {
        "best": words(best) if best else "",
        "speed_up": speed_up,
        "asked": ASKED if on_gpu else None,
        "good": bool(on_gpu and speed_up and speed_up >= ASKED),
        "absent": absent,
        "wrong": wrong,
    }


def words(one: EngineReport) -> str:
    return f"{one.engine} {one.precision}".strip()


def show(comparison: EngineComparison, found: dict[str, Any], gpu: str) -> None:
    from controller.cli.compared import engine_tables
    from controller.cli.terminal import console

    out = console()
    print(f"on {gpu or ('the processor, without a GPU' if comparison.simulated else comparison.device)}")
    for part in engine_tables(comparison):
        out.print(part)
    if not found["best"]:
        print("no engine computed in halves with the right results")
    elif found["asked"] is None:
        print(f"best in halves: {found['best']}, {found['speed_up']:.2f} times; nothing is asked of a processor")
    else:
        print(f"best in halves: {found['best']}, {found['speed_up']:.2f} times eager fp32; asked {found['asked']:.2f}")
    missing = [name for name in found["absent"] if name.startswith("torch-tensorrt")]
    if missing:
        print(f"Torch-TensorRT did not run ({found['absent'][missing[-1]]}); {found['best'] or 'nothing'} did instead")


if __name__ == "__main__":
    sys.exit(main())
