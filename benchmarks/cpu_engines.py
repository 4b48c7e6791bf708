"""The engines of the CPU benchmark, each in a process of its own that runs queries when it is told to.

Two pools of threads in one process, or two that spin at the same time, measure each other. So every engine has a
process with the same processors and the same number of threads, takes its turn, and is seen to rest before the next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from benchmarks.cpu_models import make_inputs
from targets.base import Profiling, TensorSpec

if TYPE_CHECKING:
    from targets.bundle import Manifest

#: Seconds that an engine may take to load (torch.compile compiles), and to answer.
LOAD_SECONDS = 900.0
ANSWER_SECONDS = 600.0
END_SECONDS = 20.0


class EngineError(Exception):
    """An engine that cannot run this network, or died of it. Its message says so in a line."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is to run, and with what. ``path`` is what the engine loads; ours is a cache and a manifest."""

    engine: str
    path: str
    inputs: tuple[TensorSpec, ...]
    threads: int
    processors: tuple[int, ...]
    folder: str
    manifest: bytes = b""
    #: What makes the engine, when it is none of :data:`ENGINES`; and an .npz with the inputs, in place of noise.
    make: Callable[[Job], Engine] | None = None
    given: str = ""

    def arrays(self) -> list[Any]:
        """The inputs of every query."""
        if not self.given:
            return make_inputs(self.inputs)
        import numpy as np

        with np.load(self.given, allow_pickle=False) as arrays:
            return [arrays[spec.name] for spec in self.inputs]


class Engine(Protocol):
    """Runs one network on inputs that are already where it wants them."""

    def run(self, queries: int) -> list[float]:
        """Seconds of each query."""
        ...

    def facts(self) -> dict[str, Any]: ...


class Comparable(Engine, Protocol):
    """An engine whose outputs are compared number by number."""

    def outputs(self) -> list[Any]:
        """The network's outputs for the input, as NumPy arrays."""
        ...


class Fleet:
    """This project: the device half of the x86 target, as the agent's worker calls it."""

    def __init__(self, job: Job) -> None:
        from targets.base import find
        from targets.bundle import parse_manifest
        from targets.cpu.pool import start_pool

        manifest = parse_manifest(job.manifest)
        self._inputs = job.arrays()
        start_pool(job.threads)
        # TVM's clock imports it to sum up its samples: a part of measuring, not of the run.
        import numpy.ma  # noqa: F401

        before = _status("VmRSS")
        self._runner = find(manifest.target).device().load(_Bundle(manifest, Path(job.path)), job.threads)
        # Puts the input where queries find it. What it hands back is no part of a run.
        self._runner.infer(self._inputs)
        resets = _reset_peak()
        self._runner.measure(2)
        self._peak = _status("VmHWM") - before if resets else None
        self._conditions = self._runner.conditions()

    def run(self, queries: int) -> list[float]:
        return [float(seconds) for seconds in self._runner.measure(queries)]

    def outputs(self) -> list[Any]:
        return list(self._runner.infer(self._inputs))

    def infer(self, arrays: list[Any]) -> list[Any]:
        """The outputs for other inputs."""
        return list(self._runner.infer(arrays))

    def glue(self, queries: int) -> float:
        """The share of a query that is no layer of the network: decoding, sorting, suppression, pasting."""
        assert isinstance(self._runner, Profiling)
        operators = self._runner.profile(queries).operators
        # What is no layer stands for itself in a profile. RoIAlign is a layer that has no row there.
        glue = [one for one in operators if one.operators == (one.kernel,) and not one.kernel.startswith("roi_align")]
        return sum(one.seconds for one in glue) / sum(one.seconds for one in operators)

    def facts(self) -> dict[str, Any]:
        return {"peak_bytes": self._peak, "conditions": self._conditions}


class _Bundle:
    """A :class:`targets.base.LoadedBundle` in the build cache."""

    def __init__(self, manifest: Manifest, blobs: Path) -> None:
        from targets.blobs import BlobDir

        self.manifest = manifest
        self._blobs = BlobDir(blobs)
        self._digests = {file.path: file.sha256 for file in manifest.files}

    def path(self, name: str) -> Path:
        return self._blobs.path(self._digests[name])


class OnnxRuntime:
    """With all its graph optimisations; inputs and outputs stay where they are, so that no copy is measured."""

    def __init__(self, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(job.path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for taken, array in zip(self._session.get_inputs(), job.arrays(), strict=True):
            self._binding.bind_ortvalue_input(taken.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for given in self._session.get_outputs():
            self._binding.bind_output(given.name, "cpu")

    def run(self, queries: int) -> list[float]:
        return timed(lambda: self._session.run_with_iobinding(self._binding), queries)

    def outputs(self) -> list[Any]:
        self._session.run_with_iobinding(self._binding)
        return list(self._binding.copy_outputs_to_cpu())

    def facts(self) -> dict[str, Any]:
        return {}


class Torch:
    """Eager, or compiled by inductor with frozen weights, which is its setting for inference and the faster one."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        self._torch = torch
        self._module = torch.export.load(job.path).module()
        self._inputs = [torch.from_numpy(array) for array in job.arrays()]
        if job.engine == "torch_compile":
            import torch._inductor.config

            torch._inductor.config.freezing = True
            self._module = torch.compile(self._module)
        self.run(2)

    def run(self, queries: int) -> list[float]:
        # Not inference_mode: inductor does not freeze weights in it.
        with self._torch.no_grad():
            return timed(lambda: self._module(*self._inputs), queries)

    def outputs(self) -> list[Any]:
        with self._torch.no_grad():
            found = self._module(*self._inputs)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple | list) else (found,))]

    def facts(self) -> dict[str, Any]:
        return {}


ENGINES: dict[str, Callable[[Job], Comparable]] = {
    "fleet": Fleet,
    "onnxruntime": OnnxRuntime,
    "torch": Torch,
    "torch_compile": Torch,
}


class Worker:
    """The parent's side of an engine's process. Raises :class:`EngineError` from all but ``close``."""

    def __init__(self, job: Job) -> None:
        self.name = job.engine
        self._log = Path(job.folder) / f"{job.engine}.log"
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, job, str(self._log)), name=job.engine)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = {}

    def load(self) -> None:
        self.facts = self._answer(LOAD_SECONDS)

    def run(self, queries: int, warm_up: int = 0) -> list[float]:
        found: list[float] = self._ask("run", warm_up + queries)
        return found[warm_up:]

    def outputs(self) -> list[Any]:
        found: list[Any] = self._ask("outputs")
        return found

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call a method of the engine."""
        return self._ask(what, *arguments)

    def cpu_seconds(self) -> float:
        """Processor time that its process and those below it have had."""
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total

    def close(self) -> None:
        self._pipe.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
        except OSError:
            raise self._died() from None
        return self._answer(ANSWER_SECONDS)

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise EngineError(f"no answer in {seconds:.0f} s")
            failed, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if failed:
            raise EngineError(value)
        return value

    def _died(self) -> EngineError:
        self._process.join(END_SECONDS)
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return EngineError(f"its process ended with {self._process.exitcode}: {said[-1] if said else 'no words'}")


def _serve(pipe: Any, job: Job, log: str) -> None:
    """The child: load the engine, then answer until the parent closes the pipe."""
    _quiet(log)
    os.sched_setaffinity(0, job.processors)
    # Read when the libraries are loaded, which is below.
    os.environ.update({name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(job.folder) / "inductor")
    try:
        engine = (job.make or ENGINES[job.engine])(job)
    except Exception as error:
        # Whatever an engine raises for a network, it is that engine's answer for the report.
        pipe.send((True, _words(error)))
        return
    pipe.send((False, engine.facts()))
    with contextlib.suppress(EOFError):
        while True:
            name, *arguments = pipe.recv()
            try:
                pipe.send((False, getattr(engine, name)(*arguments)))
            except Exception as error:
                pipe.send((True, _words(error)))


def in_child(function: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> Any:
    """``function(*arguments)`` in a process of its own that ends with it. Raises :class:`EngineError`."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_call, args=(theirs, function, arguments, str(log)))
    process.start()
    theirs.close()
    try:
        failed, value = pipe.recv()
    except EOFError:
        failed, value = True, "its process ended without a word"
    finally:
        pipe.close()
        process.join()
    if failed:
        raise EngineError(value)
    return value


def _call(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...], log: str) -> None:
    _quiet(log)
    try:
        pipe.send((False, function(*arguments)))
    except Exception as error:
        pipe.send((True, _words(error)))


def _quiet(log: str) -> None:
    """What libraries print is no part of the report."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def timed(run: Callable[[], Any], queries: int) -> list[float]:
    """Seconds of each call."""
    found = []
    for _ in range(queries):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return found


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _reset_peak() -> bool:
    """Have the kernel count the highest resident set from now on; whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"the peak of the resident set cannot be reset: {error}", file=sys.stderr)
        return False
    return True


def _status(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(key)
