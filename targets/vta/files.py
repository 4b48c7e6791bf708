"""How programs lie in a bundle: the header of each, and every part of it as a file of its own.

So that retrained weights, which change some parts, cost their own bytes only when they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from targets.base import BuiltFile, LoadedBundle, TensorSpec

if TYPE_CHECKING:
    from targets.vta.program import Program

REPORT = "report.json"
BITSTREAM = "bitstream.bit"


def header_name(index: int) -> str:
    return f"program-{index}.json"


def part_name(index: int, position: int) -> str:
    """Of the part at this position in the header's list: a buffer's own name may not be a path."""
    return f"program-{index}/{position:05d}"


def program_files(programs: Sequence[Program], workdir: Path) -> list[BuiltFile]:
    """Write ``programs`` below ``workdir``."""
    files = []

    def write(name: str, data: bytes, weight: bool) -> None:
        path = workdir / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        # Packed as the accelerator reads it: bytes are all that can be said of its shape.
        tensor = TensorSpec(path.name, (len(data),), "uint8") if weight else None
        files.append(BuiltFile(name=name, path=str(path), role="weight" if weight else "extra", tensor=tensor))

    for index, program in enumerate(programs):
        write(header_name(index), msgspec.json.encode(program.header()), False)
        roles = {buffer.name: buffer.role for buffer in program.buffers}
        for position, (name, data) in enumerate(program.parts().items()):
            write(part_name(index, position), data, roles.get(name) in ("weight", "bias"))
    return files


def read_programs(bundle: LoadedBundle) -> list[Program]:
    """The programs of a bundle, in order. Raises :class:`targets.vta.program.ProgramError`."""
    names = {file.path for file in bundle.manifest.files}
    programs: list[Program] = []
    while (name := header_name(len(programs))) in names:
        programs.append(_read(bundle.path, len(programs), bundle.path(name).read_bytes(), names))
    return programs


def _read(path: Callable[[str], Path], index: int, header: bytes, names: set[str]) -> Program:
    from targets.vta.program import ProgramError, assemble, parse_header

    source = header_name(index)
    parsed = parse_header(header, source)
    positions = {part.name: position for position, part in enumerate(parsed.parts)}

    def read(part: str) -> bytes:
        name = part_name(index, positions[part])
        if name not in names:
            raise ProgramError(f"{source} has no part '{part}' in this bundle")
        return path(name).read_bytes()

    return assemble(parsed, read, source)
