"""Detectors beside their originals, torchvision's in eager torch and GluonCV's in MXNet: do they find the same, and how
fast.

    python -m benchmarks.detection [--model NAME…] [--pictures 20] [--rounds N] [--threads 2] [--json]

Both have the same random weights and the same pictures, half of them drawn scenes and half noise, prepared by each in
its own way. `same` says on how many pictures all detections are the same, in the same order, ties aside: classes, and
scores and boxes within 1e-4; `mask IoU` is the lowest of any mask, without pixels whose probability is one half to five
digits. Times are of whole networks, from the prepared picture to the last detection, each engine in a process of its
own on the same processors, in turn; a ratio is of the medians. `post` is the share of what is no layer of the network.
The last table is non-maximum suppression alone, on one core. GluonCV's originals need `make originals`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import detection_cases as cases
from benchmarks.cpu import machine, take_turns
from benchmarks.cpu_engines import EngineError, Job, Worker, in_child
from benchmarks.detection_cases import CASES, Case
from benchmarks.detection_peers import Mxnet, Torchvision
from targets.cores import usable

ROUNDS, TURN_SECONDS, PICTURES = 5, 1.0, 20
#: Queries that are profiled.
PROFILED = 3

Say = Callable[[str], None]
Row = dict[str, Any]


def main() -> int:
    asked = _arguments()

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="fleet-detection-") as folder:
        rows = list(measure_all(asked, Path(folder), say))
        say("non-maximum suppression")
        nms = in_child(cases.suppression, (), Path(folder) / "nms.log") if not asked.no_nms else []
    document = {"rows": rows, "nms": nms, "machine": machine(asked.threads)}
    if asked.json:
        print(json.dumps(document))
    else:
        from benchmarks.detection_report import show

        show(document)
    return 1 if any(row["ms"] is None or row["same"] != row["pictures"] for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME", choices=[case.model for case in CASES])
    parser.add_argument("--pictures", type=int, default=PICTURES, help="to compare detections on")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each engine")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--no-nms", action="store_true", help="leave non-maximum suppression alone out")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    if min(asked.pictures, asked.rounds, asked.threads) < 1:
        parser.error("pictures, rounds and threads are 1 or more")
    if why := usable().lacking(asked.threads):
        parser.error(why)
    return asked


def measure_all(asked: argparse.Namespace, folder: Path, say: Say) -> Iterator[Row]:
    todo = [case for case in CASES if not asked.model or case.model in asked.model]
    for number, case in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {case.model}")
        work = folder / str(number)
        work.mkdir()
        yield measure(case, asked, work, folder / "home", say)


def measure(case: Case, asked: argparse.Namespace, folder: Path, root: Path, say: Say) -> Row:
    """One row. What cannot be had stands in its notes, and its figures are None."""
    row: Row = {"model": case.model, "peer": case.peer, "wanted": case.wanted, "pictures": asked.pictures, "notes": []}
    figures = ("same", "mask_iou", "worst", "ms", "peer_ms", "ratio", "post", "build_seconds", "build_gb", "other_load")
    row |= dict.fromkeys((*figures, "detections"))
    try:
        weights = cases.weights(case, folder)
        say("  fleet: build")
        built = in_child(cases.build, (case, weights, asked.threads, root), folder / "build.log")
        given = in_child(cases.prepare, (built, asked.pictures, folder), folder / "prepare.log")
    except EngineError as error:
        row["notes"].append(str(error))
        return row
    row |= {"build_seconds": built.seconds, "build_gb": built.peak_bytes / 1e9}
    common = {"inputs": built.inputs, "threads": asked.threads, "folder": str(folder)}
    common |= {"processors": usable().processors[: asked.threads], "given": given}
    peer = Mxnet if case.peer == "mxnet" else Torchvision
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for job in (
            Job("fleet", built.blobs, manifest=built.manifest, **common),
            Job(case.peer, cases.original(case, built, weights), make=peer, **common),
        ):
            say(f"  {job.engine}: load")
            workers[job.engine] = worker = Worker(job)
            stack.callback(worker.close)
            try:
                worker.load()
            except EngineError as error:
                row["notes"].append(f"{job.engine}: {error}")
                return row
        say(f"  the same on {asked.pictures} pictures?")
        try:
            row |= cases.parity(workers["fleet"], workers[case.peer], built, asked.pictures, given)
        except EngineError as error:
            row["notes"].append(str(error))
        say(f"  {asked.rounds} rounds of {', '.join(workers)}")
        times, row["other_load"] = take_turns(workers, asked.rounds, TURN_SECONDS, row["notes"])
        medians = {name: statistics.median(found) for name, found in times.items()}
        if len(medians) == len(workers):
            row |= {"ms": medians["fleet"] * 1e3, "peer_ms": medians[case.peer] * 1e3}
            row["ratio"] = medians["fleet"] / medians[case.peer]
            row["post"] = workers["fleet"].ask("glue", PROFILED)
    return row


if __name__ == "__main__":
    sys.exit(main())
