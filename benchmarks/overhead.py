"""What `fleet bench` adds to a latency that is measured by hand: a bare torch loop, and a call of ais_bench.

    python -m benchmarks.overhead [--repeats N] [--seconds S] [--model M] [--only torch|ais_bench] [--json]

Both sides measure the same network with the same threads, in turn, each in processes of its own. The torch loop loads
the network's ``.pt2`` and times call after call; the board is a simulated Jetson with the engine ``eager``. ais_bench
is called with the very ``.om`` that a simulated Ascend board has compiled, on random numbers, with as many loops as
`fleet bench` took queries. A ratio is of the medians of two neighbouring runs; what counts is the median of the ratios,
asked to be below 1.02. Nothing here is asserted: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agent.protocol import BenchSpec, RunResult
from controller import sim, sources
from controller.fleet import BenchOptions, Fleet
from controller.home import Home
from targets.bench import STEADY_BLOCKS
from targets.defaults import BENCH_STEADY

ASKED = 1.02
_KINDS = ("torch", "ais_bench")
#: Seconds that one call by hand may take before it counts as hung.
_DEADLINE = 600.0
_WARMUP_MAX = 20.0


def main() -> None:
    if sys.argv[1:2] == ["--loop"]:
        loop(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="times each side measures, in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement")
    parser.add_argument("--model", default="resnet18", help="a network of the zoo that is kept as .pt2")
    parser.add_argument("--only", choices=_KINDS, default="", help="one of the two")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    say: Callable[..., None] = (lambda *words: print(*words, file=sys.stderr)) if asked.json else print
    document: dict[str, Any] = {"model": asked.model, "repeats": asked.repeats, "asked": ASKED}
    with tempfile.TemporaryDirectory(prefix="fleet-overhead-") as root:
        home = Home.find(Path(root))
        try:
            for kind in [asked.only] if asked.only else _KINDS:
                document[kind] = asyncio.run((torch_loop if kind == "torch" else ais_bench)(home, asked))
                table(kind, document[kind], say)
        finally:
            sim.down(home)
    if asked.json:
        print(json.dumps(document, indent=1))


# --- A loop of torch ----------------------------------------------------------------------------


async def torch_loop(home: Home, asked: argparse.Namespace) -> dict[str, Any]:
    network = sources.resolve(asked.model, weights="random:0", home=home)
    if network.format != "pt2":
        raise SystemExit(f"{asked.model} is not kept as .pt2; choose another --model")
    board = Board(home, "jetson", asked, {"engine": "eager"})

    def by_hand() -> list[float]:
        command = [sys.executable, "-m", "benchmarks.overhead", "--loop", network.path, "1", str(asked.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE, check=True)
        found: list[float] = json.loads(done.stdout)
        return found

    return await in_turn(board, asked.repeats, lambda _queries: by_hand())


def loop(path: str, threads: int, seconds: float) -> None:
    """The loop by hand, in a process of its own: prints milliseconds of each call as JSON."""
    import torch

    torch.set_num_threads(threads)
    program = torch.export.load(path)
    module = program.module()
    examples = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shapes = [[int(side) if isinstance(side, int) else 1 for side in value.shape] for value in examples]
    inputs = [torch.rand(shape) for shape in shapes]

    def timed(span: float) -> list[float]:
        taken: list[float] = []
        while sum(taken) < span * 1e3:
            begin = time.perf_counter()
            module(*inputs)
            taken.append((time.perf_counter() - begin) * 1e3)
        return taken

    with torch.no_grad():
        # As long as `fleet bench` would: until medians stay, and no longer than that is given.
        medians: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < _WARMUP_MAX:
            medians.append(statistics.median(timed(0.1)))
            if len(medians) >= STEADY_BLOCKS and abs(medians[-1] / medians[-3] - 1) < BENCH_STEADY:
                break
        print(json.dumps(timed(seconds)))


# --- A call of ais_bench ------------------------------------------------------------------------


async def ais_bench(home: Home, asked: argparse.Namespace) -> dict[str, Any]:
    board = Board(home, "ascend", asked, {})
    inputs = []
    for index, spec in enumerate(sources.resolve(asked.model, weights="random:0", home=home).inputs):
        inputs.append(home.state / f"{index}.bin")
        shape = [max(side, 1) for side in spec.shape]
        np.random.default_rng(0).random(shape).astype(spec.dtype).tofile(inputs[-1])
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def by_hand(queries: int) -> list[float]:
        folder = home.sim / board.name
        # The driver has another name for it, which is the same file.
        (model,) = {path.stat().st_ino: path for path in folder.rglob("*.om")}.values()
        (settings,) = [path for path in folder.rglob("set_env.sh") if "toolkit" in str(path)]
        with tempfile.TemporaryDirectory(dir=home.state) as output:
            tool = ["python3", "-m", "ais_bench", "--model", str(model), "--device", "0", "--loop", str(queries)]
            tool += ["--input", ",".join(map(str, inputs))]
            tool += ["--output", output, "--output_dirname", "run"]
            line = f"source {shlex.quote(str(settings))} && exec {shlex.join(tool)}"
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=_DEADLINE, env=here)
            if done.returncode:
                raise SystemExit(f"ais_bench by hand failed: {(done.stdout + done.stderr)[-2000:]}")
            summary = json.loads((Path(output) / "run_summary.json").read_text())
        found: list[float] = summary["npu_compute_time_list"]
        return found

    return await in_turn(board, asked.repeats, by_hand)


# --- Both ---------------------------------------------------------------------------------------


class Board:
    """One simulated board, and `fleet bench` of the network on it."""

    def __init__(self, home: Home, target: str, asked: argparse.Namespace, options: dict[str, Any]) -> None:
        (board,) = sim.up(home, 1, target=target, prefix=target)
        self.name = board.name
        self._home = home
        self._model = asked.model
        spec = BenchSpec(min_duration=asked.seconds, warmup_max=_WARMUP_MAX, max_other_load=1.0)
        self._options = BenchOptions(spec=spec, options=options, threads=1, weights="random:0")

    async def bench(self) -> RunResult:
        fleet = Fleet(home=self._home)
        (result,) = await fleet.bench(self._model, fleet.select(devices=[self.name]), self._options)
        if not isinstance(result, RunResult):
            raise SystemExit(f"{self.name}: {result.reason}")
        return result


async def in_turn(board: Board, repeats: int, by_hand: Callable[[int], list[float]]) -> dict[str, Any]:
    """Medians in ms of both sides, A B B A …, after one of each that does not count; their ratios, pair by pair."""
    first = await board.bench()
    queries = len(first.samples)
    await asyncio.to_thread(by_hand, queries)
    medians: dict[str, list[float]] = {"fleet": [], "hand": []}
    seconds: dict[str, list[float]] = {"fleet": [], "hand": []}
    for turn in range(repeats):
        for side in ("fleet", "hand") if turn % 2 == 0 else ("hand", "fleet"):
            begin = time.perf_counter()
            taken = (await board.bench()).samples if side == "fleet" else await asyncio.to_thread(by_hand, queries)
            seconds[side].append(time.perf_counter() - begin)
            medians[side].append(statistics.median(taken))
    ratios = [fleet / hand for fleet, hand in zip(medians["fleet"], medians["hand"], strict=True)]
    return {
        "engine": first.engine,
        "queries": queries,
        "ms": medians,
        "seconds": seconds,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


def table(kind: str, found: dict[str, Any], say: Callable[..., None]) -> None:
    names = {"torch": "a bare torch loop", "ais_bench": "ais_bench (simulated)"}
    say(f"\nfleet bench beside {names[kind]} by hand: medians in ms of {len(found['ratios'])} runs each")
    for side, name in (("hand", "by hand"), ("fleet", "fleet bench")):
        times, whole = found["ms"][side], statistics.median(found["seconds"][side])
        say(
            f"  {name:12} {statistics.median(times):9.3f}  ({min(times):.3f} to {max(times):.3f});"
            f" {whole:.1f} s for a whole run"
        )
    low, high = min(found["ratios"]), max(found["ratios"])
    say(f"  ratio {found['ratio']:.4f} ({low:.4f} to {high:.4f}), asked below {ASKED}")


if __name__ == "__main__":
    main()
