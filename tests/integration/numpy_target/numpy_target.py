"""A kind of board that is no part of fleet: one folder with an entry point, found through PYTHONPATH.

It runs "programs": a JSON file with a matrix product ``y = x @ weight`` done ``repeat`` times, and what may go wrong
with it, so that an agent can be tested with models that crash, hang, leak, are slow or wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import BuildOutput, BuiltFile, BundleError, Option, Requirements, SourceModel, TensorSpec


class NumpyRunner:
    engine = "host_clock"

    def __init__(self, bundle: Any, threads: int) -> None:
        manifest = bundle.manifest
        self.program: dict[str, Any] = json.loads(bundle.path(manifest.entry).read_bytes())
        if self.program.get("unloadable"):
            raise BundleError("the program says that it cannot be loaded")
        (spec,) = [file.tensor for file in manifest.files if file.path == manifest.parameters[0]]
        self.weight = np.frombuffer(bundle.path(manifest.parameters[0]).read_bytes(), spec.dtype).reshape(spec.shape)
        self.threads = threads
        self.inputs: list[Any] = []

    def infer(self, inputs: Sequence[Any]) -> list[Any]:
        self.inputs = [np.array(x) for x in inputs]
        if self.program.get("raise"):
            raise RuntimeError(self.program["raise"])
        if self.program.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.program.get("exit"):
            os._exit(7)
        while self.program.get("hang"):
            time.sleep(1)
        if spam := self.program.get("spam"):
            for line in range(spam):
                print(f"a line that nobody needs: {line}", file=sys.stderr)
        if self.program.get("leak"):
            self._leak()
        return [self._run() + np.float32(self.program.get("bias", 0.0))]

    def _leak(self) -> None:
        kept = []
        while True:
            kept.append(np.ones(4 << 20, np.uint8))
            time.sleep(0.01)

    def _run(self) -> Any:
        time.sleep(self.program.get("sleep", 0.0))
        for _ in range(self.program.get("repeat", 1)):
            output = self.inputs[0] @ self.weight
        return output

    def measure(self, queries: int) -> Any:
        taken = np.empty(queries)
        for i in range(queries):
            begin = time.perf_counter()
            self._run()
            taken[i] = time.perf_counter() - begin
        return taken

    def conditions(self) -> dict[str, str]:
        return {"numpy": version("numpy"), "threads": str(self.threads)}

    def close(self) -> None:
        self.inputs = []


class StartedRunner(NumpyRunner):
    """Starts a process for each call of `measure`, as a command line tool that measures does."""

    def __init__(self, bundle: Any, threads: int) -> None:
        super().__init__(bundle, threads)
        self._starts = 0

    def measure(self, queries: int) -> Any:
        subprocess.run([sys.executable, "-c", ""], check=True)
        self._starts += 1
        return super().measure(queries)

    def block_queries(self, seconds_per_query: float) -> int:
        return max(1, round(self.program["start"] / seconds_per_query))

    def conditions(self) -> dict[str, str]:
        return {**super().conditions(), "starts": str(self._starts)}


class QueuedRunner(NumpyRunner):
    """Like a device with a queue: a call returns at once, and waiting is a call of its own."""

    def __init__(self, bundle: Any, threads: int) -> None:
        super().__init__(bundle, threads)
        self._queued = self._waits = self._measured = 0

    def _wait(self) -> None:
        for _ in range(self._queued):
            self._run()
        self._queued, self._waits = 0, self._waits + 1

    def run_together(self, queries: int) -> float:
        begin = time.perf_counter()
        self._queued = queries
        self._wait()
        return time.perf_counter() - begin

    def measure_on_host(self, queries: int) -> Any:
        taken = np.empty(queries)
        for i in range(queries):
            begin = time.perf_counter()
            self._queued = 1
            self._wait()
            taken[i] = time.perf_counter() - begin
        self._measured += queries
        return taken

    def conditions(self) -> dict[str, str]:
        return {**super().conditions(), "waits": str(self._waits), "measured_on_host": str(self._measured)}


class NumpyDevice:
    def unmet(self, requirements: Requirements) -> str:
        if requirements.accelerator:
            return f"this device has no {requirements.accelerator}"
        return ""

    def load(self, bundle: Any, threads: int) -> NumpyRunner:
        runner = NumpyRunner(bundle, threads)
        kind = StartedRunner if "start" in runner.program else QueuedRunner if "queue" in runner.program else None
        return kind(bundle, threads) if kind else runner

    def telemetry(self) -> dict[str, float]:
        return {"abacus_beads": 91.0}


class NumpyHost:
    def toolchain(self, options: Mapping[str, Option]) -> dict[str, str]:
        return {"numpy": version("numpy")}

    def build(self, model: SourceModel, options: Mapping[str, Option], workdir: Path, progress: Any) -> BuildOutput:
        """Compile a program: the source is the JSON itself, the weight is made of its ``seed``."""
        progress("compile", 0.0)
        program = json.loads(Path(model.path).read_bytes())
        weight = np.random.default_rng(program.get("seed", 0)).standard_normal((8, 4)).astype("float32")
        entry, tensor = workdir / "program.json", workdir / "weight.bin"
        entry.write_bytes(json.dumps(program, sort_keys=True).encode())
        tensor.write_bytes(weight.tobytes())
        spec = TensorSpec(name="weight", shape=(8, 4), dtype="float32")
        progress("compile", 1.0)
        return BuildOutput(
            entry="program.json",
            files=(
                BuiltFile("program.json", str(entry), "library"),
                BuiltFile("weight.bin", str(tensor), "weight", spec),
            ),
            parameters=("weight.bin",),
            inputs=model.inputs,
            outputs=model.outputs,
            requirements=Requirements(),
            engine=NumpyRunner.engine,
        )


class NumpyTarget:
    name = "numpy"
    description = "NumPy, for tests"

    def host(self) -> NumpyHost:
        return NumpyHost()

    def device(self) -> NumpyDevice:
        return NumpyDevice()
