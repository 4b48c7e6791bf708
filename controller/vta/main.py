"""The console script ``vta``.

Imports only what parsing and help need, like ``fleet``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from controller.cli import errors
from controller.cli.running import terminate_like_interrupt
from controller.vta import bitstream, build, check, config, disasm, export, sim

app = typer.Typer(
    name="vta", no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=True
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from controller import __version__

        print(f"vta {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Compile for the VTA accelerator, simulate it, and look into its programs and bitstreams."""


for module in (build, sim, export, disasm, check, config, bitstream):
    module.register(app)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Prints every error itself."""
    try:
        code = get_command(app).main(list(arguments), prog_name="vta", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit:
        # Shell completion ends so.
        raise
    except BaseException as error:
        return errors.tell(error, arguments, program="vta")


def main() -> None:
    terminate_like_interrupt()
    for stream in (sys.stdout, sys.stderr):
        # A locale without the letter that a table needs must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(execute(sys.argv[1:]))
