"""The command line and an inventory of emulated boards: what a person has who sets boards up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from board_hosts import Board
from board_roots import ADMIN, cache_folder
from cli_fixtures import Called, Cli

from controller.inventory import Device
from controller.inventory_edit import add

#: Seconds for one command of `fleet` that has to do with an emulated board, of which nothing is fast.
DEADLINE = 900.0


class BoardFleet:
    """A controller's home with keys and results of its own; wheels and builds are shared by all board tests."""

    def __init__(self, root: Path) -> None:
        home = root / "home"
        home.mkdir(parents=True)
        shared = cache_folder() / "controller"
        shared.mkdir(parents=True, exist_ok=True)
        (home / "cache").symlink_to(shared)
        self.cli = Cli(home)
        self.inventory = root / "fleet.yaml"
        self.inventory.write_text("devices: []\n")

    def add(self, board: Board, target: str, *, user: str = ADMIN, **more: Any) -> Device:
        """Write a board into the inventory, as a person would."""
        device = board.device(target, user, **{"link": "ssh", **more})
        add(self.inventory, device)
        return device

    def __call__(self, *arguments: str | Path) -> Called:
        return self.cli(*arguments, deadline=DEADLINE)

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        """The JSON document of a command that has to succeed."""
        called = self(*arguments, "--json")
        assert called.code == 0, called.out + called.err
        return called.document

    def refused(self, *arguments: str | Path) -> Called:
        """A command that has to fail, with what it said for people."""
        called = self(*arguments)
        assert called.code == 1, called.out + called.err
        return called


def only(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (one,) = found
    return one
