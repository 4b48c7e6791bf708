"""What a person points ``vta`` at: a program file, a folder with one, or a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from controller.vta import arguments
from targets.base import FleetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.vta.checker import Finding
    from targets.vta.config import VtaConfig
    from targets.vta.export import Folder
    from targets.vta.isa import Table
    from targets.vta.program import Layer, Program

Kind = Literal["model", "program", "folder"]
_MODEL_SUFFIXES = (".onnx", ".pt2")


@dataclass(frozen=True, slots=True)
class Stream:
    """Instructions and where they come from."""

    name: str
    config: VtaConfig
    table: Table
    layers: Sequence[Layer]
    source: Program | Folder

    def memory(self) -> npt.NDArray[np.uint8]:
        """What it starts with, from address 0; inputs of a program are 0."""
        from targets.vta.program import Program

        return self.source.image() if isinstance(self.source, Program) else self.source.dram

    def check(self) -> list[Finding]:
        from targets.vta import checker
        from targets.vta.program import Program

        if isinstance(self.source, Program):
            return checker.check(self.source)
        return checker.check_stream(self.table, self.config, self.source.dram)


def kind(text: str) -> Kind:
    """What ``text`` names. A file or folder of that name goes before a model of the zoo, unless it cannot be meant."""
    from targets.vta.export import INSTRUCTIONS

    path = Path(text).expanduser()
    if path.is_dir() and ((path / INSTRUCTIONS).exists() or not _in_zoo(text)):
        return "folder"
    if path.is_file() and path.suffix.lower() not in _MODEL_SUFFIXES and not _in_zoo(text):
        return "program"
    return "model"


def program_or_folder(text: str, config: str) -> Stream:
    """The instructions of a program file or folder. Raises FleetError for a model, and for what is neither."""
    from targets.vta import export, program

    found = kind(text)
    path = Path(text).expanduser()
    wanted = arguments.configuration(config)
    if found == "folder":
        folder = export.import_folder(path, wanted)
        return Stream(folder.name, folder.config, folder.table, folder.layers, folder)
    if found == "model":
        raise FleetError(
            f"'{text}' is no program, and no folder that holds one",
            code="usage",
            hint=f"`vta build {text} -o FILE` makes a program of a model",
        )
    loaded = program.load(path)
    check_configuration(loaded, wanted, text)
    return Stream(loaded.model, loaded.config, loaded.table, loaded.layers, loaded)


def instructions(lines: Iterable[str], first: int, last: int) -> Iterator[str]:
    """Of a disassembly, the lines of the instructions from ``first`` to before ``last``, with what is said of them."""
    index = 0
    for line in lines:
        # A heading goes before its instruction, micro-ops go after theirs.
        owner = index - 1 if line.startswith(";  ") else index
        if first <= owner < last:
            yield line
        index += not line.startswith(";")


def check_configuration(program: Program, wanted: VtaConfig | None, source: str) -> None:
    """Raises FleetError ``wrong-configuration`` for a program that was built for another one than ``wanted``."""
    if wanted is not None and program.config.identity != wanted.identity:
        raise FleetError(
            f"{source} was built for {program.config.identity}, not for {wanted.identity}",
            code="wrong-configuration",
            hint="build it anew with this --config",
        )


def _in_zoo(text: str) -> bool:
    from controller import zoo

    return zoo.has(text)
