"""Figures that others published for a network, to be printed beside what is measured here.

A target keeps them as ``published.json`` in its package. They were taken on another machine, by whoever ``source``
names: none of them is a result of this project.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

import msgspec

from targets.base import FleetError, find


class PublishedRow(msgspec.Struct, kw_only=True, frozen=True):
    """One figure: ``mean_ms`` per query of ``batch`` items, or ``images_per_second``; the other follows from it."""

    batch: int
    #: What ran it, by the names of `targets.base.Engine`, or on which chip.
    engine: str = ""
    precision: str = ""
    chip: str = ""
    mean_ms: float = 0.0
    images_per_second: float = 0.0

    @property
    def milliseconds(self) -> float:
        return self.mean_ms or 1e3 * self.batch / self.images_per_second

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.images_per_second or 1e3 * self.batch / self.mean_ms

    @property
    def words(self) -> str:
        return " ".join(filter(None, (self.engine, self.precision, self.chip)))


class Published(msgspec.Struct, kw_only=True, frozen=True):
    """One published table of one network."""

    #: Where it can be read.
    source: str
    #: The network's name here.
    model: str
    rows: tuple[PublishedRow, ...]
    #: What is known of the machine it was measured on.
    machine: str = ""
    protocol: Literal["", "fleet", "notebook"] = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.batch < 1 or not max(row.mean_ms, row.images_per_second) > 0:
                raise ValueError(f"a row of {self.source} has no figure: {row}")


def published(target: str, model: str) -> Published | None:
    """What was published of ``model`` on boards of this target; None when nothing is known.

    Raises :class:`FleetError`: ``unknown-target``, or ``bad-published`` for a file that cannot be read.
    """
    package = type(find(target)).__module__
    try:
        file = resources.files(package) / "published.json"
    except TypeError:
        # The target is a module by itself, without a folder for data.
        return None
    if not file.is_file():
        return None
    try:
        table = msgspec.json.decode(file.read_bytes(), type=Published)
    except msgspec.MsgspecError as error:
        raise FleetError(f"the published figures of {target} cannot be read: {error}", code="bad-published") from None
    return table if table.model == model else None
