"""What a command that uses a release needs to know of it: what it is called, and who has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from targets.base import FleetError

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.inventory import Device


def model_name(model: str) -> str:
    """What a release is called that was made of ``model``, which may be the name of its file or of a function."""
    path = Path(model)
    if path.suffix in (".onnx", ".pt2", ".fleet"):
        return path.stem
    # package.module:function
    return model.rpartition(":")[2]


async def any_with(fleet: Fleet, model: str) -> Device:
    """A device that has a release of this model. Raises FleetError ``nothing-matched``."""
    selection = fleet.select(everything=True)
    for device, report in zip(selection, await fleet.status(selection), strict=True):
        if any(release.model == model for release in report.releases):
            return device
    raise FleetError(
        f"no reachable device runs '{model}'", code="nothing-matched", hint=f"`fleet deploy {model} --all` first"
    )
