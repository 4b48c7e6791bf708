"""What a bundle for Ascend boards says to the compiler on the board: its entry file, one JSON document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from targets.base import BundleError, FleetError, Option, check_options

#: The bundle's entry, and its other files; what is in them `targets.ascend.onnx_parts` says.
ENTRY = "atc.json"
HEAD, GRAPH, AIPP = "model/head.pb", "model/graph.pb", "model/aipp.cfg"

OPTIONS = {
    "batch": int,
    "batches": str,
    "soc_version": str,
    "precision_mode": str,
    "aipp": bool,
    "opset": int,
    "tolerance": float,
}
#: ATC's flag for each precision mode, and the type in which weights then are; empty where that is for ATC to choose.
PRECISION_MODES = {
    "force_fp16": ("--precision_mode", "float16"),
    "force_fp32": ("--precision_mode", "float32"),
    "cube_fp16in_fp32out": ("--precision_mode", "float16"),
    "allow_fp32_to_fp16": ("--precision_mode", ""),
    "must_keep_origin_dtype": ("--precision_mode", "float32"),
    "allow_mix_precision": ("--precision_mode", ""),
    "allow_mix_precision_fp16": ("--precision_mode", ""),
    "allow_mix_precision_bf16": ("--precision_mode", ""),
    "allow_fp32_to_bf16": ("--precision_mode", ""),
    "fp16": ("--precision_mode_v2", "float16"),
    "origin": ("--precision_mode_v2", "float32"),
    "mixed_float16": ("--precision_mode_v2", ""),
    "mixed_bfloat16": ("--precision_mode_v2", ""),
}
#: What ATC does when nobody says otherwise.
DEFAULT_PRECISION = "force_fp16"
#: How far outputs may be from those in float32: half precision has 11 bits, and a network of fifty layers loses a few.
HALF_TOLERANCE, FULL_TOLERANCE = 2e-2, 1e-3
#: Of ATC: fewer are not a choice, more it refuses.
MIN_PROFILES, MAX_PROFILES, MAX_BATCH = 2, 100, 2048
MAX_ENTRY = 4 << 20
_SOC = re.compile(r"Ascend[A-Za-z0-9_]{1,40}")

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_./-]{1,255}$")]
_Extent = Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Input(msgspec.Struct, frozen=True):
    """A model's input by the name that ATC knows; -1 is a batch that is chosen when it runs."""

    name: _Name
    shape: tuple[_Extent, ...]


class Tensor(msgspec.Struct, frozen=True):
    """A weight: the ONNX tensor's name, extents and element type, and the file of the bundle that has its bytes."""

    name: str
    dims: tuple[_Size, ...]
    type: Annotated[int, msgspec.Meta(ge=1, le=255)]
    file: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of a build that is decided on the host."""

    schema: Literal[1] = 1
    inputs: Annotated[tuple[Input, ...], msgspec.Meta(min_length=1, max_length=64)]
    tensors: tuple[Tensor, ...]
    #: Pictures, or whatever it takes, in one query.
    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] = 1
    #: Batches that the compiled model can be set to; empty: it has the one.
    batches: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)], ...], msgspec.Meta(max_length=100)] = ()
    #: The chip to compile for; empty is the board's own.
    soc_version: str = ""
    #: Empty leaves it to ATC.
    precision_mode: str = ""
    #: Whether the bundle has a configuration of AIPP.
    aipp: bool = False


def encode(plan: Plan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def decode(data: bytes) -> Plan:
    """Raises :class:`BundleError` for what no build of ours writes."""
    try:
        plan = msgspec.json.decode(data[: MAX_ENTRY + 1], type=Plan)
        check_soc(plan.soc_version)
        check_precision(plan.precision_mode)
    except (msgspec.MsgspecError, FleetError) as error:
        raise BundleError(f"{ENTRY} of the bundle cannot be understood: {error}") from None
    return plan


def checked(options: Mapping[str, Option]) -> tuple[int, tuple[int, ...]]:
    """The batch, 0 for the model's own, and the batches to choose from. Raises FleetError ``bad-option``."""
    # A whole number is a good tolerance too.
    given = {
        name: float(value) if name == "tolerance" and type(value) is int else value for name, value in options.items()
    }
    check_options(given, OPTIONS, "ascend")
    batch = int(options.get("batch", 0))
    if not 0 <= batch <= MAX_BATCH:
        raise _bad(f"option 'batch' must be between 1 and {MAX_BATCH}")
    check_soc(str(options.get("soc_version", "")))
    check_precision(str(options.get("precision_mode", "")))
    if not 0 <= float(options.get("tolerance", 0.0)) <= 10:
        raise _bad("option 'tolerance' must be between 0 and 10")
    batches = _batches(str(options.get("batches", "")))
    if batches and options.get("aipp"):
        # They do go together in ATC; what AIPP does to a batch that is padded up is not known well enough.
        raise _bad("options 'batches' and 'aipp' cannot be given together", "build one bundle for each batch instead")
    if batches and batch and batch not in batches:
        raise _bad(f"batch {batch} is not one of the batches {', '.join(map(str, batches))}")
    return batch or (batches[0] if batches else 0), batches


def tolerance(options: Mapping[str, Option]) -> float:
    """How far outputs may be from the reference, relative and absolute."""
    mode = str(options.get("precision_mode", "")) or DEFAULT_PRECISION
    default = FULL_TOLERANCE if PRECISION_MODES[mode][1] == "float32" else HALF_TOLERANCE
    return float(options.get("tolerance", default))


def check_soc(soc: str) -> None:
    """Raises FleetError ``bad-option``."""
    if soc and not _SOC.fullmatch(soc):
        raise _bad(f"'{soc[:60]}' is no soc_version", "such as Ascend310, Ascend310P3, Ascend310B4")


def check_precision(mode: str) -> None:
    """Raises FleetError ``bad-option``."""
    if mode and mode not in PRECISION_MODES:
        raise _bad(f"there is no precision_mode '{mode[:60]}'", f"there are: {', '.join(PRECISION_MODES)}")


def _batches(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 5 for part in parts):
        raise _bad(f"option 'batches' is a list such as 1,4,8, not '{text[:60]}'")
    found = tuple(int(part) for part in parts)
    if len(set(found)) != len(found) or not MIN_PROFILES <= len(found) <= MAX_PROFILES:
        raise _bad(
            f"option 'batches' must name {MIN_PROFILES} to {MAX_PROFILES} different batches",
            "one batch is the option 'batch'",
        )
    if not all(1 <= each <= MAX_BATCH for each in found):
        raise _bad(f"every batch must be between 1 and {MAX_BATCH}")
    return found


def _bad(message: str, hint: str = "") -> FleetError:
    return FleetError(message, code="bad-option", hint=hint)
