"""Kernels measured in turn on a device, as a runner of TVM's MetaSchedule.

MetaSchedule's own runner times one kernel after the other, each in a session of its own, on whatever numbers are in
memory. On a machine that does other things too, two such times say little about which kernel is the faster; and a
kernel that computes something else would win unnoticed. So this runner takes all kernels into one session, compares
what they compute, and goes round them.
"""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
from tvm import rpc
from tvm.ir.utils import derived_object
from tvm.runtime import tensor
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerInput, RunnerResult
from tvm.s_tir.meta_schedule.runner.runner import PyRunnerFuture

from targets.base import FleetError
from targets.tuning import Endpoint
from targets.tvm_rpc import TrackerCode, TrackerConnection, WireError

Array = npt.NDArray[Any]

#: Seconds for which the device keeps a session, whatever happens in it.
SESSION_SECONDS = 120
#: Seconds to wait for a device that a tracker has lent to somebody else.
REQUEST_SECONDS = 60.0
PRIORITY = 1
#: A kernel runs for about so long in each round, but so many times at least and at most; the median counts.
ROUND_SECONDS = 5e-3
LEAST, MOST = 3, 50
#: Copies of what only one of the kernels reads, its weights, used in turn. Where a buffer comes to lie in memory can
#: make twice the difference that a better kernel does, and stays the same for as long as the buffer is there.
COPIES = 3
#: A function of TVM's runtime that drives all arguments but the first out of the caches. Between two calls of a kernel
#: the rest of the network does that, to weights above all.
FLUSH = "cache_flush_cpu_non_first_arg"


def race(
    at: Endpoint,
    arguments: Mapping[str, Sequence[Array]],
    *,
    rounds: int,
    threads: int,
    flush: bool,
    alike: Callable[[Array, Array], bool],
) -> list[Any]:
    """Race the libraries that ``arguments`` are for, the first of them the measure, in a session of their own.

    Returns a ``RunnerResult`` of each. Raises FleetError for what is no kernel's fault: the device cannot be reached
    (``unreachable``), or does not run ``threads`` threads (``threads``).
    """
    remote = runner = None
    try:
        remote = connect(at)
        found = int(remote.get_function("runtime.NumThreads")())
        if found != threads:
            raise FleetError(
                f"the device runs kernels on {found} threads, and this build is for {threads}",
                code="threads",
                hint=f"tune with --option cores={found}",
            )
        runner = RaceRunner(remote, arguments, rounds=rounds, flush=flush, alike=alike)
        return [future.result() for future in runner.run([RunnerInput(path, "cpu", []) for path in arguments])]
    finally:
        # A session ends with its last object, and the tracker lends the device again only then.
        del remote, runner
        gc.collect()


@derived_object
class Finished(PyRunnerFuture):  # type: ignore[misc]
    """A result that is there already."""

    def __init__(self, seconds: Sequence[float] | None, error: str | None) -> None:
        super().__init__()
        self._seconds, self._error = seconds, error

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return RunnerResult(self._seconds, self._error)


@derived_object
class RaceRunner(PyRunner):  # type: ignore[misc]
    """Times inputs in turn: number i of each result was taken in the same round. The first input is the measure of
    the others, which get an error if they compute something else. Libraries have one function, ``main``.

    A failure ends the race: the input at fault has an error, and no result has all of its times.
    """

    def __init__(
        self,
        remote: Any,
        arguments: Mapping[str, Sequence[Array]],
        *,
        rounds: int,
        flush: bool,
        alike: Callable[[Array, Array], bool],
    ) -> None:
        """``arguments`` by the library's path, the output last. Arrays that several have are one buffer there."""
        super().__init__()
        self._remote, self._arguments, self._rounds = remote, arguments, rounds
        self._flush, self._alike = flush, alike

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        seconds: list[list[float]] = [[] for _ in runner_inputs]
        errors: list[str | None] = [None for _ in runner_inputs]
        # Of the input that is at work.
        index = 0
        try:
            kernels = []
            for index, one in enumerate(runner_inputs):
                kernels.append(self._loaded(index, str(one.artifact_path)))
            index = 0
            self._give_arguments(kernels, [str(one.artifact_path) for one in runner_inputs])
            expected = kernels[index].output()
            for index in range(1, len(kernels)):
                if not self._alike(expected, kernels[index].output()):
                    raise _Wrong("it computes something else than the default")
            for index in range(len(kernels)):
                kernels[index].find_pace()
            for _ in range(self._rounds):
                for index in range(len(kernels)):
                    seconds[index].append(kernels[index].time())
        except Exception as error:
            # TVM raises many types when a session ends; what was at work ended it.
            errors[index] = _words(error)
        return [Finished(*pair) for pair in zip(seconds, errors, strict=True)]

    def _loaded(self, index: int, path: str) -> _Kernel:
        # Two libraries of one name would be one file there.
        name = f"{index}-{Path(path).name}"
        self._remote.upload(path, name)
        return _Kernel(self._remote.load_module(name), self._remote.cpu(0), self._flush)

    def _give_arguments(self, kernels: Sequence[_Kernel], paths: Sequence[str]) -> None:
        uses = Counter(id(array) for path in paths for array in self._arguments[path])
        device = self._remote.cpu(0)
        shared: dict[int, Any] = {}

        def buffer(array: Array) -> Any:
            if uses[id(array)] == 1:
                return tensor(array, device)
            if id(array) not in shared:
                shared[id(array)] = tensor(array, device)
            return shared[id(array)]

        # No kernel's copies are all before or behind another's.
        for _ in range(COPIES):
            for kernel, path in zip(kernels, paths, strict=True):
                arrays = self._arguments[path]
                kernel.arguments.append([buffer(array) for array in arrays])
                kernel.blank = arrays[-1]


class _Wrong(Exception):
    """A kernel that is of no use."""


class _Kernel:
    """A kernel on the device; its arguments are given later, in several copies."""

    def __init__(self, module: Any, device: Any, flush: bool) -> None:
        self.arguments: list[list[Any]] = []
        #: What the output holds before.
        self.blank: Array
        self._module, self._device = module, device
        self._before = FLUSH if flush else ""
        self._evaluate = self._evaluator(LEAST)
        self._rounds = 0

    def output(self) -> Array:
        """What it computes."""
        arguments = self.arguments[0]
        arguments[-1].copyfrom(self.blank)
        self._module["main"](*arguments)
        result: Array = arguments[-1].numpy()
        return result

    def find_pace(self) -> None:
        """Run it for the first time on what it shall be timed with, to see how often fills a round."""
        taken = max(self.time(), 1e-6)
        self._evaluate = self._evaluator(min(MOST, max(LEAST, math.ceil(ROUND_SECONDS / taken))))

    def time(self) -> float:
        """Seconds of one call in this round."""
        arguments = self.arguments[self._rounds % len(self.arguments)]
        self._rounds += 1
        return float(statistics.median(self._evaluate(*arguments).results))

    def _evaluator(self, calls: int) -> Any:
        return self._module.time_evaluator("main", self._device, number=1, repeat=calls, f_preproc=self._before)


# --- Reaching the device ------------------------------------------------------------------------


def connect(at: Endpoint) -> Any:
    """A TVM RPC session of its own. Raises FleetError ``unreachable``."""
    try:
        host, port, key = asyncio.run(_requested(at)) if at.tracker else (at.host, at.port, at.key)
        return rpc.connect(host, port, key=key, session_timeout=SESSION_SECONDS)
    except (OSError, WireError) as error:
        why = str(error)
    except Exception as error:
        why = _words(error)
    what = f"'{at.key}' of the tracker at" if at.tracker else "TVM RPC at"
    raise FleetError(
        f"cannot reach {what} {at.host}:{at.port}: {why}",
        code="unreachable",
        hint="`fleet tracker status` lists what is registered" if at.tracker else "is the agent running there?",
    )


async def _requested(at: Endpoint) -> tuple[str, int, str]:
    """Address and one-time key of a free device."""
    tracker = TrackerConnection(at.host, at.port)
    try:
        await tracker.open()
        answer = await tracker.call([TrackerCode.REQUEST, at.key, "", PRIORITY], REQUEST_SECONDS)
        code, granted = msgspec.convert(answer, type=tuple[int, tuple[str, int, str]])
    except msgspec.ValidationError:
        raise WireError("the tracker answers no address of a device") from None
    finally:
        tracker.close()
    if code != TrackerCode.SUCCESS:
        raise WireError(f"the tracker refuses (code {code})")
    return granted


def _words(error: Exception) -> str:
    """The line of TVM's message that says what happened; around it are the device's stack and ours."""
    if "kShutdown" in str(error):
        return "it ended its process on the device, as a crash does"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
