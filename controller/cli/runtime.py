"""``fleet runtime``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli import exits
from controller.cli.session import Session, command, default
from controller.cli.view import view

_HELP = "TVM's runtime for boards that PyPI has no TVM for, or no room for the whole of it."


def register(app: typer.Typer) -> None:
    runtime = typer.Typer(help=_HELP)
    app.add_typer(runtime, name="runtime")

    @default(runtime)
    def plain(session: Session) -> int:
        """TVM's runtime for boards that PyPI has no TVM for, or no room for the whole of it."""
        from controller.runtime.architectures import ALL

        session.answer(
            {"architectures": list(ALL)},
            f"can be built for {', '.join(ALL)}: `fleet runtime build --arch ARCH` (a board's `uname -m`)",
        )
        return exits.GOOD

    @command(runtime, "build")
    def build(
        session: Session,
        arch: Annotated[
            list[str],
            typer.Option("--arch", metavar="ARCH", help="armv7l, aarch64 or x86_64: `uname -m` (repeatable)."),
        ],
        output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the wheels go.")] = Path(),
        python: Annotated[
            str, typer.Option(metavar="3.X", help="The board's Python; this one's, unless --python-include is given.")
        ] = "",
        python_include: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Folder of the headers of the board's Python.")
        ] = None,
    ) -> int:
        """Cross-compile the wheel of TVM's runtime and RPC from what the installed TVM carries; takes minutes once."""
        from controller.events import Progress
        from controller.home import Home
        from controller.runtime.build import build as build_one

        made: dict[str, Path] = {}
        with view("fleet runtime build") as listener:
            for one in dict.fromkeys(arch):

                def tell(stage: str, share: float, name: str = one) -> None:
                    listener(Progress(name, stage, share))

                made[one] = build_one(
                    one, output, python=python, python_include=python_include, home=Home.find(), progress=tell
                )
        sizes = {name: path.stat().st_size for name, path in made.items()}
        session.answer(
            {"wheels": [{"arch": name, "wheel": str(path), "bytes": sizes[name]} for name, path in made.items()]},
            *(f"{path} ({sizes[name] / 1e6:.1f} MB)" for name, path in made.items()),
        )
        return exits.GOOD
