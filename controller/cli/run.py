"""``fleet run``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import arguments, exits
from controller.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from controller.reports import Answer
    from targets.pictures.found import Box

#: More pictures have one line each instead of a table, and a view of how far they are.
_FEW = 8
#: Boxes of a picture that such a line tells.
_TOLD = 5


def register(app: typer.Typer) -> None:
    @command(app, "run", selects=True)
    def run(
        session: Session,
        model: arguments.Model,
        images: Annotated[
            list[str], typer.Argument(metavar="PICTURE…", help="Pictures, and folders of pictures or video frames.")
        ],
        output: Annotated[
            str,
            typer.Option(
                "-o",
                "--output",
                metavar="FILE|FOLDER",
                help="Draw boxes and masks: to this file, or for several pictures into this folder, by their names.",
            ),
        ] = "",
        top: Annotated[
            int | None, typer.Option(min=1, help="So many labels (5) or boxes (all) of a picture at most.")
        ] = None,
        threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")] = 0.3,
        slot: arguments.Slot = "default",
        threads: arguments.Threads = 0,
    ) -> int:
        """Run a deployed model on pictures: on the devices selected, or on one that has it."""
        from controller.cli.deployed import any_with, model_name
        from controller.cli.running import run as run_async
        from controller.cli.view import run_viewed
        from controller.options import RunOptions

        fleet = session.fleet()
        options = RunOptions(top=top, threshold=threshold, output=output, slot=slot, threads=threads)
        name = model_name(model)
        selection = session.select(fleet) if session.selects else [run_async(any_with(fleet, name))]
        if len(images) <= _FEW and not any(Path(image).is_dir() for image in images):
            found = run_async(fleet.run(name, images, selection, options))
        else:
            found = run_viewed("fleet run", fleet, selection, lambda: fleet.run(name, images, selection, options))
        if session.as_json:
            session.answer({"results": [_document(answer) for answer in found]})
        else:
            session.answer({}, *(_tables(found) if len(found) <= _FEW else map(_line, found)))
        return exits.FAILED if any(answer.error for answer in found) else exits.GOOD


def _document(answer: Answer) -> dict[str, Any]:
    """The answer without the kind of result that this model does not give."""
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(answer)
    lacking = {"top": answer.top is None, "boxes": answer.boxes is None, "left_out": answer.boxes is None}
    return {key: value for key, value in fields.items() if not lacking.get(key)}


def _tables(answers: Sequence[Answer]) -> list[RenderableType]:
    from rich.text import Text

    from controller.cli.tables import board, table
    from controller.printable import printable

    parts: list[RenderableType] = []
    for answer in answers:
        head = printable(f"{answer.image} on {board(answer.device, answer.simulated)}")
        if answer.error:
            parts.append(Text.assemble((head, "bold"), ": ", (printable(answer.error), "red")))
            continue
        parts.append(Text.assemble((head, "bold"), f", {answer.model}, {1e3 * answer.seconds:.2f} ms"))
        if answer.top is not None:
            rows = [[top.label, str(top.index), f"{top.score:.4f}"] for top in answer.top]
            parts.append(table(["label", "index", "score"], rows, right=("index", "score")))
        if answer.boxes is not None:
            columns = ["label", "score", "left", "top", "right", "bottom"]
            masks = any(box.mask for box in answer.boxes)
            rows = [[*_cells(box), *([_area(box)] if masks else [])] for box in answer.boxes]
            columns += ["mask pixels"] if masks else []
            parts.append(table(columns, rows, right=columns[1:]) if rows else "no boxes")
        if answer.left_out:
            parts.append(f"{answer.left_out} more score less than --threshold or come after --top")
        if answer.output:
            parts.append(f"drawn to {answer.output}")
    return parts


def _cells(box: Box) -> list[str]:
    return [box.label, f"{box.score:.4f}", *(f"{edge:.0f}" for edge in box.xyxy)]


def _area(box: Box) -> str:
    return str(sum(box.mask.counts[1::2])) if box.mask else "—"


def _line(answer: Answer) -> Text:
    """One picture's answer among many."""
    from rich.text import Text

    from controller.printable import printable

    head = (printable(f"{answer.image} on {answer.device}"), "bold")
    if answer.error:
        return Text.assemble(head, ": ", (printable(answer.error), "red"))
    if answer.boxes is None:
        words = [f"{top.label} {top.score:.4f}" for top in answer.top or []]
    else:
        words = [f"{box.label} {box.score:.4f}" for box in answer.boxes[:_TOLD]] or ["no boxes"]
        more = len(answer.boxes) - _TOLD
        words += [f"{more} more"] if more > 0 else []
        words += [f"{answer.left_out} left out"] if answer.left_out else []
    return Text.assemble(head, ": ", printable(", ".join(words)))
