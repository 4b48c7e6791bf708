"""What the bench harness adds to what it measures, whether it repeats itself, and whether it tells 5 % apart.

    python benchmarks/bench_harness.py [--pairs N] [--json]

Overhead: TVM's own ``time_evaluator`` with one large ``number``, on the same virtual machine in the same worker
process, in turn with the harness's blocks; the ratio is of mean latencies, pair by pair. Agreement: pairs of whole
runs of one release on a simulated board. Detection: a run of the same release on a board each of whose queries takes
5 % longer. Nothing here is asserted: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from agent import calls
from agent.benching import Arm, Bencher
from agent.board import Board
from agent.config import Config
from agent.config import Home as AgentHome
from agent.protocol import BenchSpec, RunResult
from agent.store import StoredBundle, load_bundle
from agent.workers import Worker
from controller import sim
from controller.compare import compare_runs
from controller.fleet import BenchOptions, DeployOptions, Fleet
from controller.home import Home
from controller.results import Results
from targets.statistics import centre_interval

#: Layers of the measured model, so that a query takes about a millisecond on two cores of a desktop processor.
LAYERS = 14
FAULTS = {"plain": "slow:1", "slower": "slow:1.05"}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        serve(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for agreement and detection")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds measured in each run")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as root:
        home = Home.find(Path(root))
        try:
            for name, fault in FAULTS.items():
                sim.up(home, 1, faults=[fault], prefix=name)
            document = asyncio.run(measure(home, asked))
        finally:
            sim.down(home)
    if asked.json:
        print(json.dumps(document, indent=1))


async def measure(home: Home, asked: argparse.Namespace) -> dict[str, Any]:
    say = print if not asked.json else (lambda *words: print(*words, file=sys.stderr))
    spec = BenchSpec(min_duration=asked.duration)
    model = home.state / "convolutions.onnx"
    write_model(model, asked.layers)
    fleet = Fleet(home=home)
    for report in await fleet.deploy(str(model), fleet.select(everything=True), DeployOptions()):
        if report.status != "active":
            raise SystemExit(f"{report.device}: {report.reason}")
    bundle = load_bundle(home.sim / "plain-1" / "store" / "bundles" / report.bundle)
    overhead = await measure_overhead(home.state / "overhead", bundle, spec, say)
    return {"overhead": overhead, **await measure_repeats(fleet, spec, asked.pairs, say)}


def write_model(path: Path, layers: int) -> None:
    """A chain of 3×3 convolutions on 32 channels of 32×32."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(layers):
        values = (rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    shape = [1, 32, 32, 32]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "convolutions", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


# --- Overhead -----------------------------------------------------------------------------------


class PeerWorker(Worker):
    """A worker that, before or after each block of the harness, in turn, is asked for the peer's figure."""

    def start_pairs(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.peer_seconds = 0.0

    async def call(self, call: calls.Call, answer: type[Any], deadline: float | None = None) -> Any:
        if not isinstance(call, calls.Measure):
            return await super().call(call, answer, deadline)
        peer_first = len(self.pairs) % 2 == 0
        peer = await self._peer(call.queries) if peer_first else 0.0
        found = await super().call(call, answer, deadline)
        if not peer_first:
            peer = await self._peer(call.queries)
        self.pairs.append((float(np.frombuffer(found.seconds).mean()), peer))
        return found

    async def _peer(self, queries: int) -> float:
        begin = time.perf_counter()
        found = await super().call(calls.Measure(queries=-queries), calls.Measured)
        self.peer_seconds += time.perf_counter() - begin
        return float(np.frombuffer(found.seconds)[0])


class OnePool:
    """In place of the agent's pool of workers: always this one."""

    def __init__(self, worker: PeerWorker) -> None:
        self._worker = worker

    @contextlib.asynccontextmanager
    async def use(self, *asked: object) -> AsyncIterator[PeerWorker]:
        yield self._worker


async def measure_overhead(root: Path, bundle: StoredBundle, spec: BenchSpec, say: Any) -> dict[str, Any]:
    config = Config(home=AgentHome(root), name="bench", target="x86")
    config.home.create()
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--worker", str(theirs.fileno())),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    worker = PeerWorker("peer", process, ours, config)
    worker.start_pairs()
    try:
        if unmet := await worker.load(bundle, 0):
            raise SystemExit(unmet)
        bencher = Bencher(config, OnePool(worker), Board("x86"))  # type: ignore[arg-type]
        begin = time.perf_counter()
        (run,) = await bencher.measure(spec, [Arm("bench", bundle)], lambda event, lossy: None)
        wall = time.perf_counter() - begin - worker.peer_seconds
    finally:
        worker.kill("measured")
        await worker.wait()
    pairs = np.array(worker.pairs[-len(run.blocks) :])
    ratios = np.log(pairs[:, 0] / pairs[:, 1])
    ratio, low, high = np.exp((np.median(ratios), *centre_interval(ratios)))
    harness, peer = np.median(pairs, axis=0) * 1e3
    say("Overhead, the same virtual machine in one process, in turn")
    say(f"  time_evaluator, one large number   {peer:8.4f} ms")
    say(f"  bench harness, block by block      {harness:8.4f} ms   median {run.latency_ms.p50:.4f} ms")
    say(f"  ratio {ratio:.4f} (95 % {low:.4f} to {high:.4f}) over {len(pairs)} pairs of blocks: {ratio - 1:+.2%}")
    say(f"  of {wall:.2f} s with warm-up, {1 - sum(run.samples) / 1e3 / wall:.1%} was not measuring")
    say(f"  verdict {run.verdict} {run.reason}\n")
    return {
        "peer_ms": peer,
        "harness_ms": harness,
        "ratio": ratio,
        "ratio_ci": [low, high],
        "pairs": len(pairs),
        "verdict": run.verdict,
        "reason": run.reason,
    }


def serve(descriptor: int) -> None:
    """The child: the agent's worker, which also answers for the peer when asked for a negative number of queries."""
    from agent.worker_calls import Worker as Calls

    class WithPeer:
        def __init__(self, runner: Any) -> None:
            self._runner = runner
            self.engine = runner.engine
            self.infer, self.conditions, self.close = runner.infer, runner.conditions, runner.close

        def measure(self, queries: int) -> Any:
            if queries > 0:
                return self._runner.measure(queries)
            vm, device = self._runner._vm, self._runner._cpu
            return np.array([vm.time_evaluator("invoke_stateful", device, number=-queries, repeat=1)("main").mean])

    class PeerCalls(Calls):
        def _load(self, call: calls.Load) -> calls.Loaded:
            loaded = super()._load(call)
            self._runner = WithPeer(self._runner)
            return loaded

    with socket.socket(fileno=descriptor) as connection:
        PeerCalls().serve(connection)


# --- Agreement and detection --------------------------------------------------------------------


async def measure_repeats(fleet: Fleet, spec: BenchSpec, pairs: int, say: Any) -> dict[str, Any]:
    results = Results(fleet.home.results_url)
    plain, slower = ([device for device in fleet.select(everything=True) if device.name == f"{n}-1"] for n in FAULTS)

    async def run(board: Any) -> RunResult:
        (found,) = await fleet.bench(None, board, BenchOptions(spec=spec))
        if not isinstance(found, RunResult):
            raise SystemExit(found.reason)
        return found

    rows = []
    say("Two runs of one release, and one that is 5 % slower: median in ms (95 % interval)")
    for _ in range(pairs):
        first, again, slow = await run(plain), await run(plain), await run(slower)
        (a, b), (c, d) = first.latency_ms.ci50, again.latency_ms.ci50
        same, worse = (compare_runs(results, first.run, other.run) for other in (again, slow))
        row = {
            "agree": a <= d and c <= b,
            "same": same.verdict,
            "slower": worse.verdict,
            "ratio_same": same.ratio,
            "ratio_slower": worse.ratio,
            "valid": all(one.verdict == "VALID" for one in (first, again, slow)),
            "reasons": sorted({one.reason for one in (first, again, slow)} - {""}),
        }
        told = "agree" if row["agree"] else "DISAGREE"
        invalid = "" if row["valid"] else "   (INVALID)"
        rows.append(row)
        say(f"  {figures(first)}  {figures(again)}  {told}, {same.ratio:.3f} {same.verdict}")
        say(f"  {'':>26}  {figures(slow)}  {worse.ratio:.3f} {worse.verdict}{invalid}")
    agree, apart = sum(row["agree"] for row in rows), sum(row["slower"] == "slower" for row in rows)
    false = sum(row["same"] != "same" for row in rows)
    say(f"  agree {agree} of {pairs}; 5 % told apart {apart} of {pairs}; equal ones told apart {false} of {pairs}")
    for reason in sorted({reason for row in rows for reason in row["reasons"]}):
        say(f"  INVALID: {reason}")
    results.close()
    return {"pairs": rows, "agree": agree, "told_apart": apart, "false": false}


def figures(run: RunResult) -> str:
    low, high = run.latency_ms.ci50
    return f"{run.latency_ms.p50:7.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()
