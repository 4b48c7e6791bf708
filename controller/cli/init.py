"""``fleet init``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.session import Session, command
from targets.base import FleetError


def register(app: typer.Typer) -> None:
    @command(app, "init")
    def init(
        session: Session, force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False
    ) -> int:
        """Write a commented fleet.yaml."""
        from controller.inventory_file import template, write

        path = session.inventory or Path("fleet.yaml")
        if path.exists() and not force:
            raise FleetError(f"{path} exists", code="exists", hint="--force replaces it")
        try:
            write(path, template())
        except OSError as error:
            raise FleetError(f"cannot write {path}: {error.strerror}", code="usage") from None
        session.answer(
            {"inventory": str(path.absolute())},
            f"wrote {path}; now add boards with `fleet devices add`, or start simulated ones with `fleet sim up`",
        )
        return exits.GOOD
