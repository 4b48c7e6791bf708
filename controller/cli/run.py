"""``fleet run``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import arguments, exits
from controller.cli.running import run as run_async
from controller.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.fleet import Fleet
    from controller.inventory import Device
    from controller.reports import Answer


def register(app: typer.Typer) -> None:
    @command(app, "run", selects=True)
    def run(
        session: Session,
        model: arguments.Model,
        images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Pictures.")],
        output: Annotated[
            str,
            typer.Option("-o", "--output", metavar="FILE", help="Write the picture with its boxes; a folder for many."),
        ] = "",
        top: Annotated[int, typer.Option(min=1, help="How many labels.")] = 5,
        threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")] = 0.3,
        slot: arguments.Slot = "default",
        threads: arguments.Threads = 0,
    ) -> int:
        """Run a deployed model on pictures: on the devices selected, or on one that has it."""
        from controller.options import RunOptions

        fleet = session.fleet()
        options = RunOptions(top=top, threshold=threshold, output=output, slot=slot, threads=threads)

        name = _model_name(model)

        async def answers() -> list[Answer]:
            selection = session.select(fleet) if session.selects else [await _any_with(fleet, name)]
            return await fleet.run(name, images, selection, options)

        found = run_async(answers())
        if session.as_json:
            session.answer({"results": [_document(answer) for answer in found]})
        else:
            session.answer({}, *_tables(found))
        return exits.FAILED if any(answer.error for answer in found) else exits.GOOD


def _model_name(model: str) -> str:
    """What a release is called that was made of ``model``, which may be the name of its file."""
    from pathlib import Path

    path = Path(model)
    return path.stem if path.suffix in (".onnx", ".pt2", ".fleet") else model


async def _any_with(fleet: Fleet, model: str) -> Device:
    """A device that has a release of this model. Raises FleetError ``nothing-matched``."""
    from targets.base import FleetError

    selection = fleet.select(everything=True)
    for device, report in zip(selection, await fleet.status(selection), strict=True):
        if any(release.model == model for release in report.releases):
            return device
    raise FleetError(
        f"no reachable device runs '{model}'", code="nothing-matched", hint=f"`fleet deploy {model} --all` first"
    )


def _document(answer: Answer) -> dict[str, Any]:
    """The answer without the kind of result that this model does not give."""
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(answer)
    return {key: value for key, value in fields.items() if value is not None or key not in ("top", "boxes")}


def _tables(answers: Sequence[Answer]) -> list[RenderableType]:
    from rich.text import Text

    from controller.cli.tables import board, table

    parts: list[RenderableType] = []
    for answer in answers:
        head = f"{answer.image} on {board(answer.device, answer.simulated)}"
        if answer.error:
            parts.append(Text.assemble((head, "bold"), ": ", (answer.error, "red")))
            continue
        parts.append(Text.assemble((head, "bold"), f", {answer.model}, {1e3 * answer.seconds:.2f} ms"))
        if answer.top is not None:
            rows = [[top.label, str(top.index), f"{top.score:.4f}"] for top in answer.top]
            parts.append(table(["label", "index", "score"], rows, right=("index", "score")))
        if answer.boxes is not None:
            rows = [[box.label, f"{box.score:.4f}", *(f"{edge:.0f}" for edge in box.xyxy)] for box in answer.boxes]
            columns = ["label", "score", "left", "top", "right", "bottom"]
            parts.append(table(columns, rows, right=columns[1:]) if rows else "no boxes")
        if answer.output:
            parts.append(f"drawn to {answer.output}")
    return parts
