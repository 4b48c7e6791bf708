"""What every command has in common: its options, the fleet it works on, and how it answers."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import complete, exits
from controller.cli.errors import ClosedPipe, Interrupted
from targets.base import FleetError, Option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.events import Listener
    from controller.fleet import Fleet
    from controller.inventory import Device

SCHEMA = 1
_PANEL = "Common options"


@dataclass(frozen=True, slots=True)
class Session:
    """The common options of one call of ``fleet``, and how a command answers."""

    as_json: bool = False
    inventory: Path | None = None
    debug: bool = False
    devices: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    everything: bool = False

    def merged(self, other: Session) -> Session:
        """This session with what ``other`` adds: options may come before the command and after it."""
        return Session(
            as_json=self.as_json or other.as_json,
            inventory=other.inventory or self.inventory,
            debug=self.debug or other.debug,
            devices=self.devices + other.devices,
            targets=self.targets + other.targets,
            labels={**self.labels, **other.labels},
            everything=self.everything or other.everything,
        )

    @property
    def selects(self) -> bool:
        return bool(self.devices or self.targets or self.labels or self.everything)

    def fleet(self, listener: Listener | None = None) -> Fleet:
        from controller.events import ignore
        from controller.fleet import Fleet

        return Fleet(self.inventory, listener=listener or ignore)

    def select(self, fleet: Fleet, *, all_by_default: bool = False, targets: bool = True) -> list[Device]:
        """The devices that the options name. Without options: all of them, or FleetError ``nothing-selected``.

        With ``targets`` false, ``--target`` has another meaning in the command and does not select.
        """
        chosen = self if targets else replace(self, targets=())
        if all_by_default and not chosen.selects:
            chosen = replace(chosen, everything=True)
        return fleet.select(chosen.devices, chosen.targets, chosen.labels, chosen.everything)

    def answer(self, document: Mapping[str, Any], *parts: RenderableType) -> None:
        """Print the command's result: the JSON document, or ``parts`` for people."""
        if self.as_json:
            write_json({"schema": SCHEMA, **document})
            return
        from rich.text import Text

        from controller.cli.terminal import console
        from controller.printable import printable

        out = console()
        for part in parts:
            if isinstance(part, str):
                # Neither markup nor our line breaks: names and keys must come out as they are.
                out.print(Text(printable(part)), soft_wrap=True)
            else:
                out.print(part)


def write_json(document: Mapping[str, Any]) -> None:
    """One JSON document on standard output, and nothing else."""
    import msgspec

    data = msgspec.json.encode(document)
    if sys.stdout.isatty():
        data = msgspec.json.format(data, indent=2)
    print_data(data + b"\n")


def print_data(data: bytes) -> None:
    """Write UTF-8 to standard output, whatever the locale is: it is for other programs."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """``K=V`` arguments as a dict. Raises FleetError for anything else."""
    result = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise FleetError(f"{option} {value}: expected KEY=VALUE", code="usage", hint=f"such as {option} room=lab")
        result[key] = text
    return result


def build_options(values: Sequence[str]) -> dict[str, Option]:
    """``--option K=V`` arguments, each value as the number, truth value or text that it looks like."""
    return {key: _option(text) for key, text in pairs(values, "--option").items()}


def _option(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# --- Options ------------------------------------------------------------------------------------

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.", rich_help_panel=_PANEL)]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_PANEL)]
_Inventory = Annotated[
    Path | None,
    typer.Option("--inventory", metavar="PATH", help="Inventory instead of ./fleet.yaml.", rich_help_panel=_PANEL),
]
_Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device", metavar="NAME", help="Only this device (repeatable).", autocompletion=complete.devices,
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
_Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="T", help="Only this kind of board (repeatable).", autocompletion=complete.targets,
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
_Label = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="K=V", help="Only devices with this label (repeatable).", autocompletion=complete.labels,
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
_All = Annotated[bool, typer.Option("--all", help="All devices.", rich_help_panel=_PANEL)]

_BASE = {"as_json": (_Json, False), "inventory": (_Inventory, None), "debug": (_Debug, False)}
_SELECTING = {
    "devices": (_Device, None),
    "targets": (_Target, None),
    "labels": (_Label, None),
    "everything": (_All, False),
}


def _collect(values: dict[str, Any]) -> Session:
    """Take the common options out of a command's arguments."""
    given = {name: values.pop(name) for name in (*_BASE, *_SELECTING) if name in values}
    return Session(
        as_json=given["as_json"],
        inventory=given["inventory"],
        debug=given["debug"],
        devices=tuple(given.get("devices") or ()),
        targets=tuple(given.get("targets") or ()),
        labels=pairs(given.get("labels") or (), "--label"),
        everything=given.get("everything", False),
    )


def _with_options(
    function: Callable[..., int], body: Callable[..., int], options: Mapping[str, tuple[Any, Any]]
) -> Callable[..., int]:
    """``body`` under the name of ``function``, with its parameters (but for the session) and ``options`` as well.

    typer reads a command's options from its signature, so this is the one way to give twenty commands the same ones.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *own, *common]

    @functools.wraps(function)
    def wrapper(**values: Any) -> int:
        try:
            return body(**values)
        # typer would end the program in its own way: without a word, and for a pipe as if a device had failed.
        except BrokenPipeError as error:
            raise ClosedPipe from error
        except KeyboardInterrupt as error:
            raise Interrupted from error

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def command(
    app: typer.Typer, name: str, *, selects: bool = False, **settings: Any
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a function as command ``name``. Its first parameter is the :class:`Session`; it returns the exit code.

    ``selects`` says whether the command works on chosen devices and so has ``--device`` and its like.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        def body(ctx: typer.Context, **values: Any) -> int:
            session = _root(ctx).merged(_collect(values))
            if session.selects and not selects:
                raise FleetError(f"`{ctx.command_path}` takes no devices", code="usage")
            return function(session, **values)

        options = {**_BASE, **(_SELECTING if selects else {})}
        app.command(name, **settings)(_with_options(function, body, options))
        return function

    return register


def default(app: typer.Typer, *, selects: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register what a group of commands does when none of them is named. Its options may also stand before theirs."""

    def register(function: Callable[..., int]) -> Callable[..., int]:
        def body(ctx: typer.Context, **values: Any) -> int:
            session = _root(ctx).merged(_collect(values))
            if ctx.invoked_subcommand:
                ctx.find_root().obj = session
                return exits.GOOD
            if session.selects and not selects:
                raise FleetError(f"`{ctx.command_path}` takes no devices", code="usage")
            return function(session, **values)

        options = {**_BASE, **(_SELECTING if selects else {})}
        app.callback(invoke_without_command=True)(_with_options(function, body, options))
        return function

    return register


def root(app: typer.Typer) -> None:
    """Let the common options also stand before the command, and answer ``--version``."""

    def start(session: Session, version: _Version = False) -> int:
        """Put neural networks on a fleet of edge boards, prove that they work there, and measure them."""
        return exits.GOOD

    def body(ctx: typer.Context, **values: Any) -> int:
        values.pop("version")
        ctx.obj = _collect(values)
        return exits.GOOD

    app.callback()(_with_options(start, body, {**_BASE, **_SELECTING}))


def _root(ctx: typer.Context) -> Session:
    given: Session | None = ctx.find_root().obj
    return given or Session()


def _print_version(wanted: bool) -> None:
    if wanted:
        from controller import __version__

        print(f"fleet {__version__}")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)]
