"""``fleet dataset``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.session import Session, command, default
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    dataset = typer.Typer(help="Data sets to measure accuracy on.")
    app.add_typer(dataset, name="dataset")

    @default(dataset)
    def plain(session: Session) -> int:
        """Data sets to measure accuracy on."""
        raise FleetError("say what to draw", code="usage", hint="`fleet dataset shapes FOLDER`")

    @command(dataset, "shapes")
    def shapes(
        session: Session,
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
        count: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures.")] = 200,
        seed: Annotated[int, typer.Option(min=0, help="Draws the same again.")] = 2,
        kind: Annotated[
            str, typer.Option(metavar="K", help="detection (COCO) or classification (a folder for each class).")
        ] = "detection",
    ) -> int:
        """Draw pictures of shapes, of which all is known: what shapes-ssd and shapes-classifier are measured on."""
        from controller.datasets.shapes import KINDS, write

        chosen = next((known for known in KINDS if known == kind), None)
        if chosen is None:
            raise FleetError(f"--kind {kind}: expected {' or '.join(KINDS)}", code="usage")
        write(folder, kind=chosen, count=count, seed=seed)
        document = {"dataset": str(folder), "kind": kind, "images": count, "seed": seed}
        session.answer(document, f"drew {count} pictures; `fleet eval MODEL {folder}` measures on them")
        return exits.GOOD
