"""ais_bench: its command line, what it prints while it runs, and the times and outputs it leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from targets.ascend.process import Finished, TimedOut, run
from targets.ascend.toolkit import Toolkit
from targets.base import FleetError, TensorSpec
from targets.bundle import nbytes
from targets.files import read_bounded

if TYPE_CHECKING:
    from targets.base import Array

#: Seconds that one process may take beside what its queries should; below what an agent gives to one call.
DEADLINE_VARIABLE, DEADLINE = "FLEET_ASCEND_DEADLINE", 110.0
#: Names inside the directory in which it runs, with only characters that its newer releases allow.
OUTPUT, RUN = "output", "run"
#: Bytes of a summary: twenty for each of half a million queries.
_MAX_SUMMARY = 16 << 20
_THROUGHPUT = re.compile(
    r"throughput 1000\*batchsize(?:\.mean)?\(([^)]*)\)/NPU_compute_time(?:\.mean)?\(([^)]*)\): *(\S+)"
)
_LOOP = re.compile(r"\((\d+)/(\d+)\)|\|\s*(\d+)/(\d+)\s*\[")
_REASON = re.compile(r"^\[ERROR\] .*|^\w*Error: .*|.*: error: .*|.*No module named .*")
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.I)

_Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class _Summary(msgspec.Struct):
    """``_summary.json``: what of it is used here. Times in ms, of each execution on the NPU, in order."""

    npu_compute_time_list: list[_Milliseconds]
    throughput: float


@dataclass(frozen=True, slots=True)
class Job:
    """One run: ``inputs`` are files of one whole batch each, in the model's order; ``profile`` is the batch to set a
    model to that has several; ``loop`` repeats the query, after ``warmup`` times that do not count."""

    model: str
    device: int
    batch: int
    inputs: tuple[str, ...]
    loop: int = 1
    warmup: int = 1
    profile: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """``seconds`` of each query on the NPU, without copies to it and back; ``started`` is what the process took beside
    its queries: its start, loading the model, copies, files."""

    seconds: npt.NDArray[np.float64]
    started: float
    folder: Path


def command(job: Job, python: str) -> list[str]:
    """Its command line, run in the directory with the inputs."""
    line = [python, "-m", "ais_bench", "--model", job.model, "--device", str(job.device)]
    line += ["--input", ",".join(job.inputs), "--output", OUTPUT, "--output_dirname", RUN, "--outfmt", "BIN"]
    line += ["--batchsize", str(job.batch)]
    line += ["--dymBatch", str(job.batch)] if job.profile else []
    line += ["--loop", str(job.loop)] if job.loop > 1 else []
    line += ["--warmup_count", str(job.warmup)] if job.warmup > 1 else []
    return line


def execute(
    job: Job, toolkit: Toolkit, folder: Path, *, deadline: float, on_progress: Callable[[int, int], None]
) -> Done:
    """Run it in ``folder``. ``on_progress`` is told of how many of how many executions are done, when it tells.

    Raises :class:`FleetError`: ``timeout``, ``ais-bench-failed`` with its own reason, ``bad-output`` for what it should
    not have printed or left, ``disk-full``.
    """

    def line(text: str) -> None:
        if match := _LOOP.search(text):
            done, total = (int(number) for number in match.groups() if number is not None)
            on_progress(done, total)

    try:
        finished = run(
            command(job, toolkit.python),
            deadline=deadline,
            environment=toolkit.environment,
            folder=folder,
            on_line=line,
            with_parent=True,
        )
    except TimedOut as error:
        raise FleetError(
            f"ais_bench did not end within {deadline:g} s; it was ended, with all that it had started",
            code="timeout",
            hint=f"its last words: {_last(error.output)}; {DEADLINE_VARIABLE} sets another limit",
        ) from error
    _check(finished)
    summary = _summary(folder / OUTPUT / f"{RUN}_summary.json")
    times = np.array(summary.npu_compute_time_list, np.float64) / 1e3
    if len(times) != job.loop or not np.isfinite(times).all():
        raise _garbage(f"its summary has {len(times)} times of {job.loop} queries")
    return Done(times, max(0.0, finished.seconds - float(times.sum())), folder / OUTPUT / RUN)


def outputs(folder: Path, stem: str, specs: Sequence[TensorSpec]) -> list[Array]:
    """What the model gave for the input file ``stem``. Raises :class:`FleetError` (``bad-output``)."""
    arrays: list[Array] = []
    for index, spec in enumerate(specs):
        path = folder / f"{stem}_{index}.bin"
        wanted = nbytes(spec)
        try:
            size = path.stat().st_size
        except OSError:
            raise _garbage(f"it wrote no output {index} ('{spec.name}')") from None
        if size != wanted:
            raise _garbage(
                f"output {index} ('{spec.name}') has {size} bytes, {spec.dtype} {list(spec.shape)} has {wanted}"
            )
        arrays.append(np.fromfile(path, np.dtype(spec.dtype)).reshape(spec.shape))
    return arrays


def throughput(output: str) -> tuple[float, float, float] | None:
    """Batch, mean time in ms and items a second as it prints them at the end; None where it does not."""
    match = _THROUGHPUT.search(output)
    if match is None:
        return None
    try:
        batch, mean, items = (float(text) for text in match.groups())
    except ValueError:
        return None
    return (batch, mean, items) if all(math.isfinite(value) for value in (batch, mean, items)) else None


def _check(finished: Finished) -> None:
    if finished.status == 0:
        if throughput(finished.output) is None:
            raise _garbage(f"it printed no throughput, but: {_last(finished.output)}")
        return
    if full := _FULL.search(finished.output):
        raise FleetError(f"ais_bench failed: {full[0].lower()}", code="disk-full", hint="free some space on the board")
    reasons = [line.strip() for line in finished.output.splitlines() if _REASON.match(line.strip())]
    how = f"was killed by signal {-finished.status}" if finished.status < 0 else f"failed (exit {finished.status})"
    # The first [ERROR] tells more than the traceback's end, which is all that some failures have.
    words = next((line for line in reasons if line.startswith("[ERROR]")), reasons[-1] if reasons else "")
    last = reasons[-1] if reasons and reasons[-1] != words else ""
    raise FleetError(
        f"ais_bench {how}: {'; '.join(part[:300] for part in (words, last) if part) or _last(finished.output)}",
        code="ais-bench-failed",
        hint=_hint(finished.output),
    )


def _hint(output: str) -> str:
    for needle, hint in (
        ("No module named ais_bench", "install ais_bench and aclruntime for the Python on the toolkit's path"),
        ("aclruntime", "install ais_bench and aclruntime for the Python on the toolkit's path"),
        ("open device", "is the chip there (`npu-smi info`), and may the agent's user use it?"),
        ("load model from file failed", "the .om may be for another chip or release: remove it from the agent's cache"),
    ):
        if needle in output:
            return hint
    return ""


def _summary(path: Path) -> _Summary:
    try:
        return msgspec.json.decode(read_bounded(path, _MAX_SUMMARY), type=_Summary)
    except OSError:
        raise _garbage("it wrote no summary") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _garbage(f"its summary cannot be read: {error}") from None


def _garbage(what: str) -> FleetError:
    return FleetError(
        f"ais_bench did not do what it should: {what[:500]}",
        code="bad-output",
        hint="is it another program of that name, or another release? (docs/targets/ascend.md)",
    )


def _last(output: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    printable = "".join(c for c in lines[-1][:200] if c.isprintable()) if lines else ""
    return printable or "nothing"
