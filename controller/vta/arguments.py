"""Arguments and options that several commands of ``vta`` share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import complete
from targets.base import FleetError

if TYPE_CHECKING:
    from targets.vta.config import VtaConfig

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A zoo model, or an .onnx or .pt2 file.", autocompletion=complete.models),
]
Program = Annotated[str, typer.Argument(metavar="PROGRAM|DIR", help="A program file, or a folder that holds one.")]
Subject = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|PROGRAM|DIR",
        help="A zoo model, an .onnx or .pt2 file; a program file; or a folder that holds one.",
        autocompletion=complete.models,
    ),
]
Config = Annotated[
    str,
    typer.Option(
        "--config", metavar="C", help="VTA configuration: a board, a published name (NAME@HW_VER), or a JSON file."
    ),
]
Board = Annotated[str, typer.Option("--board", metavar="B", help="Board whose speed is predicted.")]


def configuration(text: str) -> VtaConfig | None:
    """The configuration that ``--config`` names; None for the empty string. Raises FleetError ``bad-vta-config``."""
    if not text:
        return None
    from importlib.resources import files

    from targets.vta import config

    # Boards, and other builds for them, have their files with this program.
    folder = files("bitstreams").joinpath("configurations")
    if text.replace("-", "").isalnum() and (ours := folder.joinpath(f"{text}.json")).is_file():
        return config.parse(ours.read_bytes(), text)
    if text.partition("@")[0] not in config.PUBLISHED and not Path(text).exists():
        boards = sorted(file.name.removesuffix(".json") for file in folder.iterdir())
        raise FleetError(
            f"there is no VTA configuration '{text}'",
            code="bad-vta-config",
            hint=f"give a JSON file, or one of: {', '.join((*boards, *config.PUBLISHED))}",
        )
    return config.load(text)


def check_writable(path: Path) -> None:
    """Raises FleetError ``usage`` for a file that cannot be made: said before the work, not after it."""
    if path.is_dir():
        raise FleetError(f"{path} is a folder", code="usage", hint="name a file")
    if not path.absolute().parent.is_dir():
        raise FleetError(f"there is no folder {path.parent}", code="usage", hint="make it first")
