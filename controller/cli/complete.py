"""Shell completion of names that only this fleet knows. Never fails: a shell has nowhere to show an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Completion = Callable[[Any, list[str], str], list[str]]


def _quiet(names: Callable[[Path | None], Iterable[str]]) -> Completion:
    def completion(ctx: Any, args: list[str], incomplete: str) -> list[str]:
        try:
            return sorted({name for name in names(_inventory(ctx)) if name.startswith(incomplete)})
        except Exception:
            return []

    # typer recognises the three parameters by their names and types.
    completion.__annotations__ = {"ctx": Any, "args": list[str], "incomplete": str}
    return completion


def _inventory(ctx: Any) -> Path | None:
    """``--inventory`` as typed so far, after the command or before it."""
    while ctx is not None:
        given = (ctx.params or {}).get("inventory")
        if given:
            return Path(given)
        ctx = ctx.parent
    return None


def _fleet(inventory: Path | None) -> Any:
    from controller.fleet import Fleet

    return Fleet(inventory)


def _devices(inventory: Path | None) -> Iterable[str]:
    return (device.name for device in _fleet(inventory).select(everything=True))


def _targets(inventory: Path | None) -> Iterable[str]:
    from targets.base import names

    return names()


def _labels(inventory: Path | None) -> Iterable[str]:
    return (
        f"{key}={value}" for device in _fleet(inventory).select(everything=True) for key, value in device.labels.items()
    )


def _models(inventory: Path | None) -> Iterable[str]:
    from controller.zoo import names

    return [*names(), *_fleet(inventory).inventory.models]


def _runs(inventory: Path | None) -> Iterable[str]:
    from controller.home import Home
    from controller.results import Results

    return (row.id for row in Results(Home.find().results_url).list(limit=200))


def _simulated(inventory: Path | None) -> Iterable[str]:
    from controller import sim
    from controller.home import Home

    return (device.name for device in sim.devices(Home.find()))


devices = _quiet(_devices)
targets = _quiet(_targets)
labels = _quiet(_labels)
models = _quiet(_models)
runs = _quiet(_runs)
simulated = _quiet(_simulated)
