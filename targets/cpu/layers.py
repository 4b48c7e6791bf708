"""What a library's kernels do: a table that travels with it, so that a profile can say what a millisecond bought."""

from __future__ import annotations

from pathlib import Path

import msgspec

from targets.base import BuiltFile, BundleError
from targets.files import read_bounded

#: The table's file in a bundle.
LAYERS = "layers.json"
#: A function of every library: multiply-adds in registers alone, which is the most that its instructions can do here.
PEAK = "fleet_peak"
#: Another one: numbers read and written once, which is the most that its memory can do.
STREAM = "fleet_stream"
MAX_BYTES = 16 * 1024 * 1024


class LayerRow(msgspec.Struct, kw_only=True, frozen=True):
    """One call of a kernel, in the order of the calls. ``kernel`` is the function's name in the library."""

    kernel: str
    #: What of the network it is: the operators that it stands for, as Relax calls them.
    operators: list[str]
    #: Shape of the result, N, C, H, W.
    output: list[int]
    #: Floating-point operations of its products; 0 for a kernel that has none.
    flops: int
    #: Bytes of its arguments and its result.
    bytes: int
    #: How the kernel does it: its algorithm and its tile.
    choice: str


class LayerTable(msgspec.Struct, kw_only=True, frozen=True):
    """Every call of a kernel in a library, and what one call of :data:`PEAK` and :data:`STREAM` does."""

    layers: list[LayerRow]
    #: Floating-point operations of one call of PEAK.
    peak_flops: int
    #: Its arguments are float32: numbers between -1 and 1 in (2, peak_lanes), sums in (peak_jobs, peak_lanes).
    peak_lanes: int
    peak_jobs: int
    #: Bytes that one call of STREAM reads and writes. Its two arguments are float32 of (stream_jobs, stream_numbers).
    stream_bytes: int
    stream_jobs: int
    stream_numbers: int


def write_layers(table: LayerTable, workdir: Path) -> BuiltFile:
    """The table as a file below ``workdir``."""
    path = workdir / LAYERS
    path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1))
    return BuiltFile(name=LAYERS, path=str(path), role="extra")


def read_layers(path: Path) -> LayerTable:
    """The table of a bundle. Raises BundleError for anything else."""
    try:
        return msgspec.json.decode(read_bounded(path, MAX_BYTES), type=LayerTable)
    except msgspec.ValidationError as error:
        raise BundleError(f"{LAYERS} is no table of layers: {error}") from error
