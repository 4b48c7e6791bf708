"""CPU code beside its peers: this project, ONNX Runtime, torch eager and torch.compile, in turn, in one run.

    python -m benchmarks.cpu [--model NAME…] [--batch 1,8] [--dtype float32,int8] [--threads 2] [--rounds N]
                             [--peers NAME,…] [--no-arm] [--quick] [--json]

Every engine runs the same network with the same weights on the same input, in a process of its own on the same
processors. Engines take turns in random order, with warm-up queries at each, and a turn begins when all others rest.
A ratio is of the medians of all queries: below 1 this project is faster. GFLOP/s counts a multiply-accumulate as two.
Memory is the peak of this project's process over what it had before the network, for each byte of weights and live
activations; the error is of the largest output (of torch's; of ONNX Runtime's in int8). What ARM processors make of the
kernels is estimated, not measured (benchmarks/cpu_arm.py). Run it on a quiet machine: `other_load` says how quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import cpu_models
from benchmarks.cpu_engines import EngineError, Job, Worker, in_child
from benchmarks.cpu_models import Case, Prepared
from targets.cores import usable

PEERS = ("onnxruntime", "torch", "torch_compile")
ROUNDS, TURN_SECONDS = 7, 0.4
#: Queries in a turn: the median needs some, and a network of microseconds needs no thousands.
QUERIES = (3, 200)
REST_SECONDS = 10.0
#: Share of a core that engines which are not at their turn may use.
RESTLESS = 0.05

Say = Callable[[str], None]
Row = dict[str, Any]


def main() -> int:
    asked = _arguments()

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="fleet-cpu-") as folder:
        rows = list(measure_all(asked, Path(folder), say))
    document = {"rows": rows, "arm": [] if asked.no_arm else arm(say), "machine": machine(asked.threads)}
    if asked.json:
        print(json.dumps(document))
    else:
        from benchmarks.cpu_report import show

        show(document)
    return 1 if any(row["ms"] is None for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME", help="of the zoo, or an .onnx or .pt2 file")
    parser.add_argument("--batch", type=_numbers, default=[], help="batch sizes, such as 1,8")
    parser.add_argument("--dtype", type=_words, default=[], help=f"of {', '.join(cpu_models.DTYPES)}")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each engine")
    parser.add_argument("--peers", type=_words, default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--no-arm", action="store_true", help="leave the part about ARM processors out")
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it work, not how fast is it")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    if unknown := sorted({*asked.peers} - {*PEERS} | {*asked.dtype} - {*cpu_models.DTYPES}):
        parser.error(f"unknown: {', '.join(unknown)}")
    if asked.threads < 1 or asked.rounds < 1 or any(batch < 1 for batch in asked.batch):
        parser.error("threads, rounds and batches are 1 or more")
    if why := usable().lacking(asked.threads):
        parser.error(why)
    return asked


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def measure_all(asked: argparse.Namespace, folder: Path, say: Say) -> Iterator[Row]:
    todo = cpu_models.cases(asked.model, asked.batch, asked.dtype)
    for number, case in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {case.name}, batch {case.batch}, {case.dtype}")
        work = folder / str(number)
        work.mkdir()
        yield measure(case, asked, work, folder / "home", say)


def measure(case: Case, asked: argparse.Namespace, folder: Path, root: Path, say: Say) -> Row:
    """One row. What an engine cannot do stands in its notes, and its figures are None."""
    row: Row = {
        "model": case.name,
        "batch": case.batch,
        "dtype": case.dtype,
        **dict.fromkeys([f"ratio_{peer}" for peer in PEERS]),
        **dict.fromkeys(("ms", "gflops", "build_seconds", "peak_memory_ratio", "max_relative_error", "other_load")),
        "wanted": case.wanted,
        "peers_ms": {},
        "notes": [],
    }
    try:
        prepared: Prepared = in_child(cpu_models.prepare, (case, folder, root), folder / "prepare.log")
    except EngineError as error:
        row["notes"].append(f"the network cannot be made: {error}")
        return row
    jobs = _jobs(case, prepared, asked, folder)
    try:
        jobs["fleet"], row["build_seconds"] = _build(case, prepared, asked, folder, root, say)
    except EngineError as error:
        row["notes"].append(f"fleet: {error}")
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, job in jobs.items():
            say(f"  {name}: load")
            worker = Worker(job)
            stack.callback(worker.close)
            try:
                worker.load()
            except EngineError as error:
                row["notes"].append(f"{name}: {error}")
            else:
                workers[name] = worker
        rounds, seconds = (2, 0.05) if asked.quick else (asked.rounds, TURN_SECONDS)
        say(f"  {rounds} rounds of {', '.join(workers)}")
        times, row["other_load"] = take_turns(workers, rounds, seconds, row["notes"])
        fill(row, {name: statistics.median(found) for name, found in times.items()}, prepared, workers)
    return row


def fill(row: Row, medians: Mapping[str, float], prepared: Prepared, workers: Mapping[str, Worker]) -> None:
    """Work out what can be said from the medians (seconds), and from what the engines tell when they are asked."""
    row["peers_ms"] = {name: seconds * 1e3 for name, seconds in medians.items() if name != "fleet"}
    ours, counts = medians.get("fleet"), prepared.counts
    if ours is None:
        return
    row["ms"] = ours * 1e3
    row |= {f"ratio_{peer}": ours / medians[peer] for peer in PEERS if peer in medians}
    peak = workers["fleet"].facts["peak_bytes"]
    if counts is not None:
        row["gflops"] = counts.flop / ours / 1e9
        if peak is not None:
            row["peak_memory_ratio"] = peak / (counts.weight_bytes + counts.activation_bytes)
    reference = next((workers[name] for name in ("torch", "onnxruntime", "torch_compile") if name in medians), None)
    if reference is not None:
        try:
            row["max_relative_error"] = relative_error(workers["fleet"].outputs(), reference.outputs())
        except EngineError as error:
            row["notes"].append(f"outputs: {error}")


def relative_error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference, of the largest value of its output."""
    import numpy as np

    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise EngineError(f"a result of shape {one.shape} where {other.shape} is expected")
        scale = float(np.abs(other).max()) or 1.0
        difference = float(np.abs(one.astype(np.float64) - other).max()) / scale
        # What is not a number is as wrong as can be.
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def take_turns(
    workers: dict[str, Worker], rounds: int, seconds: float, notes: list[str]
) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of every query of each engine, and the cores that others used meanwhile.

    An engine that fails is left out from then on, and the notes say why.
    """
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in workers}
    queries: dict[str, int] = {}
    loads: list[float] = []
    restless: set[str] = set()
    waited = dict.fromkeys(workers, 0.0)
    used = dict.fromkeys(workers, 0.0)
    for turn in range(rounds + 1):
        for name in order.sample(sorted(times), len(times)):
            restless |= rest(workers)
            before, begin = _used(workers), time.perf_counter()
            try:
                if turn == 0:
                    # Not measured: how many queries make a turn.
                    once = statistics.median(workers[name].run(2, warm_up=1))
                    queries[name] = min(max(round(seconds / once), QUERIES[0]), QUERIES[1])
                    continue
                times[name] += workers[name].run(queries[name], warm_up=max(1, queries[name] // 5))
            except EngineError as error:
                notes.append(f"{name}: {error}")
                del times[name]
                continue
            wall, after = time.perf_counter() - begin, _used(workers)
            spent = {one: after[one] - before[one] for one in after}
            for one in workers.keys() - {name}:
                waited[one] += wall
                used[one] += spent[one]
            loads.append(max(0.0, spent["all"] - sum(spent[one] for one in workers)) / wall)
    restless |= {name for name in workers if used[name] > RESTLESS * waited[name]}
    notes += [f"{name}: it uses the processor when it is not its turn" for name in sorted(restless)]
    return times, statistics.median(loads) if loads else None


def rest(workers: Mapping[str, Worker]) -> set[str]:
    """Wait until no engine uses the processor; those that do not stop."""
    deadline = time.monotonic() + REST_SECONDS
    before = {name: worker.cpu_seconds() for name, worker in workers.items()}
    while True:
        # Processor time is counted in hundredths of a second.
        time.sleep(0.03)
        after = {name: worker.cpu_seconds() for name, worker in workers.items()}
        moving = {name for name in workers if after[name] > before[name]}
        if not moving or time.monotonic() > deadline:
            return moving
        before = after


def _used(workers: Mapping[str, Worker]) -> dict[str, float]:
    """Seconds of processor time so far: each engine's, and the whole machine's."""
    every = psutil.cpu_times()
    busy = sum(getattr(every, kind) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    return {"all": busy, **{name: worker.cpu_seconds() for name, worker in workers.items()}}


def _jobs(case: Case, prepared: Prepared, asked: argparse.Namespace, folder: Path) -> dict[str, Job]:
    """What each peer that can run this case is given."""
    paths = {"onnxruntime": prepared.onnx, "torch": prepared.torch, "torch_compile": prepared.torch}
    return {
        peer: Job(peer, paths[peer], prepared.inputs, asked.threads, usable().processors[: asked.threads], str(folder))
        for peer in PEERS
        if peer in asked.peers and paths[peer]
    }


def _build(
    case: Case, prepared: Prepared, asked: argparse.Namespace, folder: Path, root: Path, say: Say
) -> tuple[Job, float]:
    """Build as `fleet build --target x86` does, nothing cached; seconds it took."""
    from controller.build import BuildRequest, build
    from controller.home import Home
    from targets.base import Option

    say("  fleet: build")
    options: dict[str, Option] = {"batch": case.batch, "cores": asked.threads}
    (built,) = build([BuildRequest(prepared.source, "x86", options)], home=Home.find(root), jobs=1)
    if built.error is not None:
        raise EngineError(str(built.error))
    job = Job(
        engine="fleet",
        path=str(built.blobs.root),
        inputs=prepared.inputs,
        threads=asked.threads,
        processors=usable().processors[: asked.threads],
        folder=str(folder),
        manifest=built.manifest_bytes,
    )
    return job, built.seconds


def machine(threads: int) -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {name: version(name) for name in ("apache-tvm", "onnxruntime", "torch")},
    }


def arm(say: Say) -> list[dict[str, Any]]:
    """The rows of benchmarks/cpu_arm.py, which loads TVM's compiler."""
    say("ARM: compile and analyse")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cpu_arm", "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit("benchmarks/cpu_arm.py failed")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["arm"]
    return rows


if __name__ == "__main__":
    sys.exit(main())
