"""What there is to choose in a network, and each choice measured against the default: the CPU's part of `fleet tune`.

The space is not TVM's transformations of loops but the parameters of this compiler's own kernels: which algorithm, and
how it is cut into tiles. MetaSchedule's machinery builds the kernels and has them measured.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from tvm import IRModule
from tvm.s_tir.meta_schedule.builder import BuilderInput, LocalBuilder

from targets.base import FleetError
from targets.cpu import kernels
from targets.cpu.compile import tvm_target
from targets.cpu.database import Tuned
from targets.cpu.layout import ImageType
from targets.cpu.lower import kernel
from targets.cpu.machine import Machine
from targets.cpu.optimise import optimise
from targets.cpu.problem import Problem, Spec, choice_of, signature
from targets.cpu.processors import Processor
from targets.cpu.race import race
from targets.tuning import Candidate, Endpoint, Race, TunableLayer

Array = npt.NDArray[Any]

#: Kernels built ahead: starting the processes that build them takes seconds.
AHEAD = 8
BUILD_SECONDS = 120.0
#: How far results of two kernels may be apart, of the largest number in them: Winograd's transforms round too.
TOLERANCE = 1e-3
#: Machines whose caches TVM's runtime can flush.
FLUSHING = ("x86_64", "aarch64")


class CPUTuner:
    """A :class:`targets.tuning.Tuner`."""

    def __init__(self, module: Any, machine: Machine, processor: Processor, workdir: Path) -> None:
        """``module`` is a simplified Relax module."""
        self.compiler = _digest()
        self._machine, self._processor, self._workdir = machine, processor, workdir
        self._target = tvm_target(machine, processor)
        asked = Tuned()
        with self._target:
            optimise(module, processor, asked)
        # A dict keeps the network's order.
        self._problems: dict[Problem, int] = dict(Counter(one for one in asked.asked if isinstance(one, Problem)))
        self._specs = [problem.candidates(processor) for problem in self._problems]
        self._built: dict[tuple[int, int], str] = {}

    def layers(self) -> list[TunableLayer]:
        return [
            TunableLayer(
                signature=signature(problem, self._processor),
                words=_words(problem),
                count=count,
                cost=count * problem.estimate(specs[0], self._processor),
                candidates=tuple(Candidate(msgspec.json.encode(choice_of(s)).decode(), kernel(s).words) for s in specs),
            )
            for (problem, count), specs in zip(self._problems.items(), self._specs, strict=True)
        ]

    def race(self, layer: int, candidate: int, rounds: int, at: Endpoint) -> Race:
        try:
            paths = [self._library(layer, 0), self._library(layer, candidate)]
        except _CannotBuild as error:
            if error.candidate == 0:
                raise FleetError(f"the default kernel cannot be built: {error}", code="tuning-failed") from None
            return Race(error=f"it cannot be built: {error}")
        problem = list(self._problems)[layer]
        specs = (self._specs[layer][0], self._specs[layer][candidate])
        default, other = race(
            at,
            dict(zip(paths, arguments(problem, specs), strict=True)),
            rounds=rounds,
            threads=self._processor.cores,
            flush=self._machine.uname in FLUSHING,
            alike=partial(alike, problem.y),
        )
        if default.error_msg is not None:
            raise FleetError(
                f"the default kernel does not run on the device: {default.error_msg}",
                code="tuning-failed",
                hint="is the build for the device's processor? --option mcpu or board names it",
            )
        if other.error_msg is not None:
            return Race(error=str(other.error_msg))
        return Race(default_ms=_milliseconds(default), ms=_milliseconds(other))

    def _library(self, layer: int, candidate: int) -> str:
        """A kernel as a library; those that come next are built with it."""
        if (layer, candidate) not in self._built:
            wanted = [(layer, 0)] if (layer, 0) not in self._built else []
            wanted += [(layer, n) for n in range(candidate, len(self._specs[layer])) if (layer, n) not in self._built]
            wanted = list(dict.fromkeys(wanted))[:AHEAD]
            builder = LocalBuilder(
                max_workers=min(len(wanted), len(os.sched_getaffinity(0))),
                timeout_sec=BUILD_SECONDS,
                f_build=_compiled,
                f_export=partial(_exported, self._machine.zig, str(self._workdir)),
            )
            inputs = [BuilderInput(self._module(*one), self._target) for one in wanted]
            for one, result in zip(wanted, builder.build(inputs), strict=True):
                if result.error_msg is not None and one in ((layer, 0), (layer, candidate)):
                    raise _CannotBuild(str(result.error_msg), one[1])
                if result.error_msg is None:
                    self._built[one] = str(result.artifact_path)
        return self._built[layer, candidate]

    def _module(self, layer: int, candidate: int) -> Any:
        spec = self._specs[layer][candidate]
        return IRModule({"main": kernel(spec).build(spec, "main")})


class _CannotBuild(Exception):
    """The message is the builder's."""

    def __init__(self, message: str, candidate: int) -> None:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        super().__init__((lines[-1] if lines else "no reason is given")[:300])
        self.candidate = candidate


# Called in the builder's processes.


def _compiled(module: Any, target: Any, _parameters: Any) -> Any:
    import tvm

    return tvm.compile(module, target=target)


def _exported(zig: str, workdir: str, executable: Any) -> str:
    from targets.zig import link_shared

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        link_shared(Path(output), [Path(name) for name in objects], zig)

    folder = Path(tempfile.mkdtemp(prefix="kernel-", dir=workdir))
    path = folder / f"{folder.name}.so"
    executable.export_library(str(path), fcompile=link, workspace_dir=str(folder))
    return str(path)


# --- What kernels are called with ---------------------------------------------------------------


def arguments(problem: Problem, specs: Sequence[Spec]) -> list[list[Array]]:
    """What each specification of a problem is called with: the same picture, weights in its own order, the same
    operands, and the same result, which is filled with what no kernel leaves there."""
    random = np.random.default_rng(0)
    x = picture(random, problem.x)
    inputs = 1 if problem.depthwise else problem.x.shape[1] // problem.groups
    shape = (problem.y.shape[1], inputs, *problem.window.kernel)
    weights = (random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)
    operands = [
        _numbers(random, (one.type.blocks * one.type.layout.block,), "float32")
        if one.kind == "channel"
        else picture(random, one.type)
        for one in problem.program.operands
    ]
    y = problem.y
    result = np.full(y.physical, np.nan if y.dtype.startswith("float") else 111, y.dtype)
    return [[x, kernel(spec).pack(weights, spec), *operands, result] for spec in specs]


def picture(random: np.random.Generator, image: ImageType) -> Array:
    """A buffer with random numbers in the picture and what stands for zero around it."""
    made = np.full(image.physical, image.zero_point, image.dtype)
    inside = _inside(image)
    made[inside] = _numbers(random, made[inside].shape, image.dtype)
    return made


def alike(image: ImageType, expected: Array, found: Array) -> bool:
    """Whether two buffers hold the same picture, its border included. Lanes beyond the last channel hold anything."""
    tolerance = TOLERANCE * float(np.nanmax(np.abs(_channels(image, expected)), initial=0.0))
    if not image.dtype.startswith("float"):
        tolerance = 1.0
    return bool(
        np.allclose(_channels(image, found), _channels(image, expected), rtol=0, atol=tolerance, equal_nan=True)
    )


def _numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Between 0.5 and 1.5, of which a program may take a root or a quotient; small integers."""
    if dtype.startswith("float"):
        return random.uniform(0.5, 1.5, shape).astype(dtype)
    return random.integers(0, 100, shape).astype(dtype)


def _inside(image: ImageType) -> tuple[slice, ...]:
    layout, (_, _, height, width) = image.layout, image.shape
    return (
        slice(None),
        slice(None),
        slice(layout.top, layout.top + height),
        slice(layout.left, layout.left + width),
    )


def _channels(image: ImageType, buffer: Array) -> npt.NDArray[np.float64]:
    """The buffer as N, C, rows, columns, border included."""
    if image.layout.block > 1:
        n, blocks, rows, columns, block = buffer.shape
        buffer = buffer.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, rows, columns)
    return buffer[:, : image.shape[1]].astype(np.float64)


def _milliseconds(result: Any) -> tuple[float, ...]:
    return tuple(1e3 * float(seconds) for seconds in result.run_secs)


def _words(problem: Problem) -> str:
    (kernel_h, kernel_w), (stride, _) = problem.window.kernel, problem.window.stride
    kind = "depthwise" if problem.depthwise else "conv2d"
    step = f"/{stride}" if stride > 1 else ""
    shapes = " → ".join("×".join(map(str, image.shape[1:])) for image in (problem.x, problem.y))
    program = "".join(f" + {name}" for name in dict.fromkeys(one.op for one in problem.program.steps))
    return f"{kind} {kernel_h}×{kernel_w}{step} {shapes}{program}"


def _digest() -> str:
    """Of the kernels' sources and of what compiles them."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    for source in sorted(Path(kernels.__path__[0]).glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]
