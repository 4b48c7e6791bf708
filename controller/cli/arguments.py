"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import complete

OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL|FILE",
        help="A zoo model, an .onnx, .pt2 or .fleet file; what the inventory assigns if left out.",
        autocompletion=complete.models,
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A zoo model, or an .onnx or .pt2 file.", autocompletion=complete.models),
]
Slot = Annotated[str, typer.Option("--slot", metavar="NAME", help="Slot of the device to use.")]
Weights = Annotated[str, typer.Option("--weights", metavar="W", help="pretrained, a file, or random:SEED.")]
BuildOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="K=V", help="Build option (repeatable), such as board=rpi4.")
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads on the device; 0 for the inventory's, or one a core.")
]
Jobs = Annotated[int, typer.Option("--jobs", min=0, help="Build processes; 0 for one a core.")]
Scheduler = Annotated[str, typer.Option("--scheduler", metavar="tcp://HOST:PORT", help="Dask scheduler to build on.")]
Wait = Annotated[float, typer.Option("--wait", min=0, metavar="S", help="Wait so long for a device someone holds.")]
