"""VTA: what programs cost, beside TVM's published counters; how long builds and simulations take; what integers cost.

    python benchmarks/vta.py [MODEL…] [--board B] [--repeats N] [--pictures N] [--json]

Counters and cycles say the same on every machine. Times are of this one: a build is a fresh one after another network
has been built, `vta sim` is timed from outside, after the build. TVM's figures are those of its documentation, for
ResNet-18 v1 on its simulator; it published none for the other networks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from controller.home import Home

VTA = str(Path(sys.executable).with_name("vta"))
#: Held-back pictures: neither trained nor calibrated on.
SEED = 2003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["resnet18_v1"], help="of the zoo, random:0")
    parser.add_argument("--board", default="pynq", help="whose clock and memory the cycle model takes")
    parser.add_argument("--repeats", type=int, default=5, help="times each network is simulated")
    parser.add_argument(
        "--pictures", type=int, default=1200, help="pictures that accuracy is measured on; 0: it is not"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-vta-") as folder:
        home = Home.find(Path(folder))
        # Taken before this process loads TVM's runtime without its compiler, which it says in its environment.
        env = {**os.environ, "FLEET_HOME": folder}
        # First, since what the linker makes once for a machine is no part of a build.
        found: dict[str, Any] = {"accuracy": accuracy(home, asked.pictures), "models": []}
        for model in asked.models:
            found["models"].append(measure(model, asked, env))
    if asked.json:
        print(json.dumps(found))
        return
    for one in found["models"]:
        show(one, asked.board)
    if asked.pictures:
        show_accuracy(found["accuracy"], asked.pictures)


def measure(model: str, asked: argparse.Namespace, env: dict[str, str]) -> dict[str, Any]:
    """Build once, simulate ``asked.repeats`` times; medians of what differs from run to run."""
    what = (model, "--weights", "random:0", "--json")
    built = run([VTA, "build", *what], env)
    walls, runs = [], []
    for _ in range(asked.repeats):
        start = time.perf_counter()
        runs.append(run([VTA, "sim", *what, "--board", asked.board], env))
        walls.append(time.perf_counter() - start)
    found = dict(runs[-1])
    if not found["as_expected"]:
        raise SystemExit(f"{model}: {found['difference']}")
    return {
        "model": model,
        "origin": built["origin"],
        "counters": found["counters"],
        "published": found["published"],
        "bytes_moved": found["bytes_moved"],
        "cycles": found["cycles"],
        "predicted_ms": found["predicted_ms"],
        "instructions": found["instructions"],
        "layers": len(found["layers"]),
        "build_s": built["seconds"],
        "sim_s": statistics.median(walls),
        "simulator_s": statistics.median(one["seconds"] for one in runs),
        "gemm_per_second": statistics.median(one["gemm_per_second"] for one in runs),
    }


def accuracy(home: Home, count: int) -> dict[str, float]:
    """Top-1 of `shapes-classifier`, in float by ONNX Runtime and in integers on the simulator, on the same pictures."""
    from PIL import Image

    from controller import zoo
    from controller.build import BuildRequest, build
    from controller.vta.models import Bundle
    from controller.zoo import draw, evaluate
    from targets.base import device_half
    from targets.pictures.prepare import prepare

    source = zoo.source("shapes-classifier", "", home)
    (built,) = build([BuildRequest(source, "vta-sim")], home=home)
    if built.error is not None:
        raise SystemExit(str(built.error))
    if not count:
        return {}
    assert source.preprocess is not None
    run_float = evaluate.onnx_session(Path(source.path))
    runner = device_half("vta-sim", True).load(Bundle(built), 1)
    right = np.zeros(2)
    agree = 0
    for index in range(count):
        pixels, label = draw.picture(SEED, index)
        given = prepare(Image.fromarray(pixels), source.preprocess)
        first, second = (int(np.argmax(outputs[0])) for outputs in (run_float(given), runner.infer([given])))
        right += (first == label, second == label)
        agree += first == second
    runner.close()
    return {"float": right[0] / count, "vta": right[1] / count, "agree": agree / count}


def show(found: dict[str, Any], board: str) -> None:
    published, counters = found["published"], {**found["counters"], "bytes_moved": found["bytes_moved"]}
    if published:
        published = {**published, "bytes_moved": sum(v for name, v in published.items() if name.endswith("nbytes"))}
    print(f"\n{found['origin']}, {found['layers']} layers, {found['instructions']} instructions")
    print(f"{'':<20}{'here':>14}{'TVM':>14}" if published else f"{'':<20}{'here':>14}")
    for name, value in counters.items():
        peer = f"{published[name]:>14,}{value / published[name]:>8.3f}" if published else ""
        print(f"{name:<20}{value:>14,}{peer}")
    print(f"{'cycles':<20}{found['cycles']:>14,}   {found['predicted_ms']:.1f} ms predicted on {board}")
    print(f"{'build':<20}{found['build_s']:>14.1f} s")
    print(f"{'vta sim, after it':<20}{found['sim_s']:>14.2f} s, of which the simulator {found['simulator_s']:.3f} s")
    print(f"{'simulator':<20}{found['gemm_per_second'] / 1e6:>14.0f} million block operations a second")


def show_accuracy(found: dict[str, float], count: int) -> None:
    print(f"\nshapes-classifier on {count} unseen pictures, top-1")
    print(f"{'float':<20}{found['float']:>14.2%}")
    print(f"{'on VTA':<20}{found['vta']:>14.2%}   the same class as in float: {found['agree']:.2%}")


def run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])}: {done.stdout}{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
