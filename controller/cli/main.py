"""The console script ``fleet``.

Imports only what parsing and help need: every command imports what it works with when it is called.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer
from typer.main import get_command

from controller.cli import (
    bench,
    build,
    dataset,
    deploy,
    devices,
    doctor,
    errors,
    inventory,
    keys,
    logs,
    profile,
    provision,
    results,
    run,
    runtime,
    session,
    sim,
    top,
    tracker,
    tune,
)
from controller.cli import eval as eval_command
from controller.cli import init as init_command
from controller.cli.running import terminate_like_interrupt

app = typer.Typer(
    name="fleet", no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=True
)
session.root(app)
for module in (
    init_command,
    devices,
    sim,
    build,
    deploy,
    bench,
    profile,
    tune,
    run,
    eval_command,
    dataset,
    top,
    results,
    logs,
    tracker,
    runtime,
    doctor,
    keys,
    inventory,
    provision,
):
    module.register(app)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Prints every error itself."""
    try:
        code = get_command(app).main(list(arguments), prog_name="fleet", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit:
        # Shell completion ends so.
        raise
    except BaseException as error:
        return errors.tell(error, arguments)


def main() -> None:
    terminate_like_interrupt()
    for stream in (sys.stdout, sys.stderr):
        # A locale without the letter that a table needs must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    code = execute(sys.argv[1:])
    sys.exit(code)
