"""What is paid each time and all the time: the command line's start, a survey of 16 boards, an agent at rest.

    python benchmarks/start.py [--repeats N] [--boards N] [--rest SECONDS] [--json]

The command line is timed from outside, in turn with a Python that does nothing, which is the floor. The agent's
memory is its resident set with an active release and its TVM RPC listener on; its CPU share is over a quiet stretch.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

FLEET = str(Path(sys.executable).with_name("fleet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="times each command is run, in turn")
    parser.add_argument("--boards", type=int, default=16, help="simulated boards to survey")
    parser.add_argument("--rest", type=float, default=20, help="seconds an agent is watched at rest")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-start-") as home:
        found = measure({**os.environ, "FLEET_HOME": home}, asked)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{'python -c pass':<36}{found['python_s']:8.3f} s")
    print(f"{'fleet --help':<36}{found['help_s']:8.3f} s     (asked: 0.25 s)")
    print(f"{f'fleet devices --json, {asked.boards} boards':<36}{found['devices_s']:8.3f} s     (asked: 1.5 s)")
    print(f"{'agent at rest, memory':<36}{found['agent_mb']:8.1f} MB    (asked: 60 MB)")
    print(f"{'agent at rest, one core':<36}{found['agent_cpu']:8.2%}       (asked: 1 %)")


def measure(env: dict[str, str], asked: argparse.Namespace) -> dict[str, Any]:
    run([FLEET, "sim", "up", "--count", str(asked.boards), "--json"], env)
    try:
        run([FLEET, "deploy", "shapes-classifier", "--device", "sim-1", "--json"], env)
        times = interleaved(
            {
                "python_s": [sys.executable, "-c", "pass"],
                "help_s": [FLEET, "--help"],
                "devices_s": [FLEET, "devices", "--json"],
            },
            env,
            asked.repeats,
        )
        return {**times, **at_rest(Path(env["FLEET_HOME"]), asked.rest)}
    finally:
        run([FLEET, "sim", "down", "--json"], env)


def interleaved(commands: dict[str, Sequence[str]], env: dict[str, str], repeats: int) -> dict[str, float]:
    """Median seconds of each command, taken in turn so that what else the machine does meets them all."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            start = time.perf_counter()
            run(command, env)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def at_rest(home: Path, seconds: float) -> dict[str, float]:
    """Memory (MB) and CPU share of the board that has a release, after its worker has gone."""
    agent = psutil.Process(json.loads((home / "sim" / "sim-1" / "agent.json").read_text())["pid"])
    deadline = time.monotonic() + 120
    while agent.children(recursive=True):
        if time.monotonic() > deadline:
            raise SystemExit("the agent's worker does not end")
        time.sleep(0.5)
    before = agent.cpu_times()
    time.sleep(seconds)
    after = agent.cpu_times()
    used = after.user + after.system - before.user - before.system
    return {"agent_mb": agent.memory_info().rss / 1e6, "agent_cpu": max(used, 0.0) / seconds}


def run(command: Sequence[str], env: dict[str, str]) -> None:
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
