"""The simulator's offline model: an ONNX network with frozen shapes behind a header of its own.

    magic (16 bytes) | length of the header (u32, little-endian) | header (JSON, :class:`Header`) | ONNX

A real offline model begins with ``IMOD``; neither tool chain takes the other's file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from targets.base import FleetError

MAGIC = b"FLEET-SIM-OM\x00\r\n\x01"
REAL_MAGIC = b"IMOD"
#: Behind the version of a toolkit that is simulated.
SIMULATED_VERSION = "+simulated"
MAX_HEADER = 1 << 20
#: An ONNX file is a protocol buffer, which ends here.
MAX_NETWORK = (2 << 30) - 1

Axis = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
Shape = Annotated[tuple[Axis, ...], msgspec.Meta(max_length=16)]
Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]


class Tensor(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An input or output as ais_bench sees it; an axis that a profile decides is -1."""

    name: str
    shape: Shape
    dtype: Dtype


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One choice of the open axes: ``gear`` as atc was told (batch, height and width, dims), ``shapes`` per input."""

    gear: tuple[int, ...]
    shapes: tuple[Shape, ...]


class Aipp(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Static pre-processing of one input; the fields of ATC's aipp_op that the simulator applies."""

    related_input_rank: int = 0
    input_format: Literal["YUV420SP_U8", "XRGB8888_U8", "RGB888_U8", "YUV400_U8"] = "RGB888_U8"
    src_image_size_w: int = 0
    src_image_size_h: int = 0
    crop: bool = False
    load_start_pos_w: int = 0
    load_start_pos_h: int = 0
    crop_size_w: int = 0
    crop_size_h: int = 0
    padding: bool = False
    left_padding_size: int = 0
    right_padding_size: int = 0
    top_padding_size: int = 0
    bottom_padding_size: int = 0
    csc_switch: bool = False
    matrix: tuple[int, ...] = (0,) * 9
    input_bias: tuple[int, ...] = (0, 0, 0)
    output_bias: tuple[int, ...] = (0, 0, 0)
    rbuv_swap_switch: bool = False
    ax_swap_switch: bool = False
    mean_chn: tuple[int, ...] = (0, 0, 0, 0)
    min_chn: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    var_reci_chn: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)


class Header(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What atc decided. ``network_inputs`` are the shapes inside the network, before AIPP."""

    soc_version: str
    cann: str
    precision_mode: str
    #: Whether weights were, and inputs are to be, rounded to half precision.
    fp16: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    network_inputs: tuple[Tensor, ...]
    kind: Literal["static", "batch", "image", "dims", "shape"]
    profiles: tuple[Profile, ...]
    aipp: tuple[Aipp, ...]
    size: int
    sha256: str
    #: Order of the axes of a picture inside the network.
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    simulated: Literal[True] = True


def is_simulated(path: Path) -> bool:
    """Whether a file is an offline model of the simulator, which no NPU can run."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def refuse_simulated(path: Path, toolkit: str) -> None:
    """For whoever is about to run a model with the ``toolkit`` of this version: a real one must get a real model.

    Raises:
        FleetError: code ``simulated-om``.
    """
    if not toolkit.endswith(SIMULATED_VERSION) and is_simulated(path):
        raise FleetError(
            f"{path.name} was made by the simulated atc: an NPU cannot run it",
            code="simulated-om",
            hint="convert the network with the board's own atc",
        )


def write(path: Path, header: Header, network: bytes) -> None:
    """Write a model, readable by its owner alone, as atc does.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    encoded = msgspec.json.encode(header)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, 0o600)
        file.write(MAGIC + struct.pack("<I", len(encoded)) + encoded)
        file.write(network)


def read(path: Path) -> tuple[Header, bytes]:
    """A model's header and its ONNX network, both checked.

    Raises:
        FleetError: code ``bad-om``: unreadable, a real model, cut short, damaged, or a header that makes no sense.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(len(MAGIC) + 4)
            if start[: len(REAL_MAGIC)] == REAL_MAGIC:
                raise _bad(path, "it is a real offline model, which only an NPU can run")
            if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
                raise _bad(path, "it is not an offline model of the simulator")
            (length,) = struct.unpack_from("<I", start, len(MAGIC))
            if not 0 < length <= MAX_HEADER:
                raise _bad(path, f"its header has {length} bytes")
            encoded = file.read(length)
            if total - len(start) - length > MAX_NETWORK:
                raise _bad(path, "it is larger than a network can be")
            network = file.read(MAX_NETWORK)
    except OSError as error:
        raise _bad(path, (error.strerror or str(error)).lower()) from None
    try:
        header = msgspec.json.decode(encoded, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _bad(path, f"its header is damaged: {error}") from None
    if len(network) != header.size or hashlib.sha256(network).hexdigest() != header.sha256:
        raise _bad(path, "its network is cut short or damaged")
    _check(path, header)
    return header, network


def _check(path: Path, header: Header) -> None:
    if not header.inputs or not header.outputs or len(header.inputs) != len(header.network_inputs):
        raise _bad(path, "its inputs and outputs make no sense")
    if header.kind in ("static", "shape"):
        sound = not header.profiles
    else:
        sound = bool(header.profiles) and all(
            len(profile.shapes) == len(header.inputs) and all(axis > 0 for shape in profile.shapes for axis in shape)
            for profile in header.profiles
        )
    if not sound or (header.kind == "static" and any(axis < 0 for tensor in header.inputs for axis in tensor.shape)):
        raise _bad(path, "its profiles make no sense")
    if any(not 0 <= aipp.related_input_rank < len(header.inputs) for aipp in header.aipp):
        raise _bad(path, "its AIPP names an input that it does not have")


def _bad(path: Path, why: str) -> FleetError:
    return FleetError(f"{path.name} cannot be loaded: {why}", code="bad-om", hint="convert the network again with atc")
