"""ATC: from an ONNX file to an ``.om`` for one kind of chip."""

from __future__ import annotations

import os
from pathlib import Path

from targets.ascend import atc_errors
from targets.ascend.plan import PRECISION_MODES, Plan
from targets.ascend.process import OnLine, OnWait, TimedOut, run
from targets.ascend.toolkit import Toolkit
from targets.base import FleetError
from targets.files import disk_full

#: Seconds; names the variable that sets another number. Some networks take a quarter of an hour on a small board.
DEADLINE_VARIABLE, DEADLINE = "FLEET_ASCEND_ATC_DEADLINE", 3600.0
SUCCESS = "ATC run success"
#: Names inside the directory in which ATC runs: they have only characters that it takes, whatever that one is called.
MODEL, OUTPUT, AIPP = "model.onnx", "model", "aipp.cfg"
#: Its compiler works beside the model: what that takes on top of it, in bytes, and as a multiple of the model's.
_WORK, _TIMES = 64 << 20, 3


def command(plan: Plan, atc: str, soc_version: str) -> list[str]:
    """ATC's command line, run where `MODEL` lies. The flags are those of CANN 5.1, which later releases have too."""
    pictures = all(len(one.shape) == 4 for one in plan.inputs)
    shapes = ";".join(
        f"{one.name}:{','.join(str(extent) for extent in (_batch(plan, one.shape)))}" for one in plan.inputs
    )
    flags = {
        "--framework": "5",
        "--model": MODEL,
        "--output": OUTPUT,
        "--input_format": "NCHW" if pictures else "ND",
        "--input_shape": shapes,
        "--log": "error",
        "--soc_version": soc_version,
    }
    if plan.batches:
        flags["--dynamic_batch_size"] = ",".join(map(str, plan.batches))
    if plan.precision_mode:
        flags[PRECISION_MODES[plan.precision_mode][0]] = plan.precision_mode
    if plan.aipp:
        flags["--insert_op_conf"] = AIPP
    return [atc, *(f"{name}={value}" for name, value in flags.items())]


def _batch(plan: Plan, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as ATC is told it: an open batch has its number unless ATC shall leave it open too."""
    batch = -1 if plan.batches else plan.batch
    return tuple(batch if extent == -1 and axis == 0 else extent for axis, extent in enumerate(shape))


def compile_model(
    plan: Plan, toolkit: Toolkit, soc_version: str, folder: Path, log: Path, on_line: OnLine, on_wait: OnWait
) -> Path:
    """Compile the model that lies in ``folder``; the ``.om`` in it. What ATC prints is kept in ``log``.

    Raises :class:`FleetError`: ``atc-failed`` with ATC's reason explained, ``timeout``, ``disk-full``, ``no-toolkit``.
    """
    line = command(plan, toolkit.command("atc"), soc_version)
    size = (folder / MODEL).stat().st_size
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < _WORK + _TIMES * size:
        raise disk_full(
            f"there is no room to compile: {free.f_bavail * free.f_frsize >> 20} MiB are free in {folder.parent}, "
            f"{(_WORK + _TIMES * size) >> 20} MiB are needed"
        )
    environment = {**toolkit.environment, "ASCEND_PROCESS_LOG_PATH": str(folder / "log")}
    deadline = seconds(DEADLINE_VARIABLE, DEADLINE)
    with log.open("wb") as kept:
        kept.write(f"{' '.join(line)}\n".encode())
        try:
            done = run(
                line,
                deadline=deadline,
                environment=environment,
                folder=folder,
                on_line=on_line,
                on_wait=on_wait,
                log=kept,
                with_parent=True,
            )
        except TimedOut as error:
            raise FleetError(
                f"atc did not end within {deadline:g} s; it was ended",
                code="timeout",
                hint=f"its log is {log}; {DEADLINE_VARIABLE} sets another limit where the agent is started",
            ) from error
    made = folder / f"{OUTPUT}.om"
    if done.status != 0 or SUCCESS not in done.output:
        reason = atc_errors.explain(done.output, done.status)
        if reason.message.startswith("the disk is full"):
            raise disk_full(f"atc failed: {reason.message}")
        raise FleetError(
            f"atc cannot compile this for {soc_version}: {reason.message}",
            code="atc-failed",
            hint="; ".join(part for part in (reason.hint, f"its log on the board is {log}") if part),
        )
    if not made.is_file() or not made.stat().st_size:
        raise FleetError("atc says it succeeded, but made no .om", code="atc-failed", hint=f"its log is {log}")
    return made


def seconds(variable: str, default: float) -> float:
    """A number of seconds from the environment. Raises :class:`FleetError` (``bad-environment``)."""
    text = os.environ.get(variable, "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise FleetError(f"{variable} is '{text}', which is no number of seconds", code="bad-environment")
    return value
