"""How a failure is told: one message that says what to do next, or one JSON document; a traceback only on request."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import typer

from controller.cli import exits
from controller.cli.terminal import has_colour
from controller.printable import printable
from targets.base import FleetError


class ClosedPipe(Exception):
    """Nobody reads our standard output any more."""


class Interrupted(Exception):
    """Ctrl-C, or what is meant like it."""


def tell(error: BaseException, arguments: Sequence[str], program: str = "fleet") -> int:
    """Print ``error`` as the options among ``arguments`` of ``program`` ask for; the exit code that belongs to it.

    The arguments are looked at as they are because they may be the very thing that is wrong.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    if isinstance(error, BrokenPipeError | ClosedPipe):
        return _closed_pipe()
    if type(error).__name__ == "NoArgsIsHelpError":
        # Making it has printed the help.
        return exits.USAGE
    code, message, hint, exit_code = _explain(error, arguments, debug, program)
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    if as_json:
        from controller.cli.session import SCHEMA, write_json

        try:
            write_json({"schema": SCHEMA, "error": {"code": code, "message": message, "hint": hint}})
        except BrokenPipeError:
            return _closed_pipe()
    else:
        _print(message, hint, quiet=exit_code == exits.INTERRUPTED)
    return exit_code


def _explain(error: BaseException, arguments: Sequence[str], debug: bool, program: str) -> tuple[str, str, str, int]:
    """Code, message, hint and exit code."""
    if isinstance(error, FleetError):
        return error.code, error.message, error.hint, exits.of(error.code)
    if isinstance(error, KeyboardInterrupt | Interrupted | typer.Abort):
        return "interrupted", "interrupted", "", exits.INTERRUPTED
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else program
        return "usage", error.format_message(), f"`{command} --help` shows what there is", exits.USAGE
    if isinstance(error, ModuleNotFoundError) and (missing := _extra(error.name or "")):
        return (
            "missing-extra",
            f"this needs the Python package {error.name}, which is not installed",
            f"make setup, or pip install 'fleet-edge[{missing}]'",
            exits.USAGE,
        )
    where = "" if debug else _write_debug_log(error, arguments, program)
    hint = f"the traceback is in {where}" if where else ("" if debug else "run it again with --debug")
    return "internal", f"{program} failed unexpectedly: {type(error).__name__}: {error}", hint, exits.FAILED


def _extra(module: str) -> str:
    """The extra of our distribution that brings a top-level module; empty for those that no extra brings."""
    top = module.partition(".")[0]
    extras = {
        "controller": ("rich", "ruamel", "sqlalchemy", "PIL", "onnx", "ziglang"),
        "tvm": ("tvm", "tvm_ffi", "ml_dtypes", "cloudpickle", "tornado"),
        "torch": ("torch", "torchvision", "onnxruntime", "onnxscript", "pycocotools"),
        "stats": ("scipy",),
        "postgresql": ("psycopg",),
        "dask": ("distributed", "dask"),
        "vta": ("numba", "llvmlite"),
    }
    return next((name for name, modules in extras.items() if top in modules), "")


def _print(message: str, hint: str, quiet: bool) -> None:
    colour = has_colour(sys.stderr)
    message, hint = ("\n".join(printable(line) for line in text.splitlines()) for text in (message, hint))

    def styled(text: str, **style: bool | str) -> str:
        return typer.style(text, **style) if colour else text  # type: ignore[arg-type]

    lines = [styled(message, dim=True) if quiet else styled("error: ", fg="red", bold=True) + message]
    if hint:
        lines.append(styled("  next: ", fg="cyan") + hint)
    try:
        print("\n".join(lines), file=sys.stderr)
    except OSError:
        # Nobody reads: the exit code still tells.
        return


def _write_debug_log(error: BaseException, arguments: Sequence[str], program: str) -> Path | str:
    """Append the traceback to the debug log; its path, or nothing if it cannot be written."""
    from controller.home import Home

    try:
        path = Home.find().state / "debug.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            when = datetime.now(timezone.utc).isoformat(timespec="seconds")
            log.write(f"--- {when} {program} {' '.join(arguments)}\n")
            traceback.print_exception(type(error), error, error.__traceback__, file=log)
    except OSError:
        return ""
    return path


def _closed_pipe() -> int:
    """Standard output's reader has gone, as in ``| head``: say nothing, not even when the interpreter flushes."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return exits.BROKEN_PIPE
