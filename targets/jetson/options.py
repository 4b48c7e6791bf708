"""Options of a build for a Jetson, checked and with their defaults: both halves read them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from targets.base import FleetError, Option, check_options

#: Engines that run a program of torch in the board's own Python; `tvm` is the other kind.
TORCH_ENGINES = ("torch-tensorrt", "inductor", "torchscript", "eager")
ENGINES = (*TORCH_ENGINES, "tvm")
PRECISIONS = ("fp32", "fp16", "autocast", "int8")
MAX_BATCH = 1024
_KINDS: dict[str, type] = {
    "arch": str,
    "batch": int,
    "calibration": str,
    "dynamic": bool,
    "engine": str,
    "precision": str,
    "tf32": bool,
    "workspace_mb": int,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a build is asked for.

    ``batch`` 0 keeps the model's own; ``dynamic`` opens it from 1 to ``batch``; ``workspace_mb`` 0 is TensorRT's own
    limit; ``arch`` is for the engine ``tvm``.
    """

    engine: str
    precision: str
    batch: int
    dynamic: bool
    workspace_mb: int
    tf32: bool
    arch: str


def resolve(options: Mapping[str, Option]) -> Options:
    """The options with their defaults. Raises :class:`FleetError` (``bad-option``)."""
    check_options(options, _KINDS, "jetson")
    found = Options(
        engine=str(options.get("engine", TORCH_ENGINES[0])),
        precision=str(options.get("precision", PRECISIONS[0])),
        batch=int(options.get("batch", 0)),
        dynamic=bool(options.get("dynamic", False)),
        workspace_mb=int(options.get("workspace_mb", 0)),
        tf32=bool(options.get("tf32", False)),
        arch=str(options.get("arch", "")),
    )
    for name, value, known in (("engine", found.engine, ENGINES), ("precision", found.precision, PRECISIONS)):
        if value not in known:
            raise FleetError(
                f"there is no {name} '{value}' for jetson",
                code="bad-option",
                hint=f"{name} is one of: {', '.join(known)}",
            )
    if not 0 <= found.batch <= MAX_BATCH:
        raise FleetError(f"a batch is 1 to {MAX_BATCH}, not {found.batch}", code="bad-option")
    if not 0 <= found.workspace_mb <= 1 << 20:
        raise FleetError(f"a workspace is 0 to {1 << 20} MiB, not {found.workspace_mb}", code="bad-option")
    if found.dynamic and found.batch < 2:
        raise FleetError(
            "a dynamic batch needs its largest, 2 or more", code="bad-option", hint="for example --option batch=8"
        )
    if found.dynamic and found.engine == "torchscript":
        raise FleetError(
            "engine torchscript is traced for one batch", code="bad-option", hint="leave out the option 'dynamic'"
        )
    if found.dynamic and found.precision == "int8":
        raise FleetError("int8 is calibrated for one batch", code="bad-option", hint="leave out the option 'dynamic'")
    if found.arch and found.engine != "tvm":
        raise FleetError(f"engine {found.engine} is compiled on the board and needs no 'arch'", code="bad-option")
    return found
