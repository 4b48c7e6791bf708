"""The command line and an inventory of emulated boards: what a person has who sets boards up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_client import REPOSITORY
from board_hosts import Board
from board_roots import ADMIN, cache_folder
from cli_fixtures import Called, environment

from controller.inventory import Device
from controller.inventory_edit import add

#: Seconds for one command of `fleet` that has to do with an emulated board, of which nothing is fast.
DEADLINE = 1200.0
_PROGRAM = "import sys; from controller.cli.main import main; sys.exit(main())"


@dataclass
class BoardFleet:
    """A controller's home with keys and results of its own; wheels and builds are shared by all board tests."""

    root: Path
    #: Where the project's modules are taken from: agents of other sources are other agents.
    source: Path = REPOSITORY

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        self.inventory = self.root / "fleet.yaml"
        if not self.home.exists():
            self.home.mkdir(parents=True)
            shared = cache_folder() / "controller"
            shared.mkdir(parents=True, exist_ok=True)
            (self.home / "cache").symlink_to(shared)
            self.inventory.write_text("devices: []\n")

    def add(self, board: Board, target: str, *, user: str = ADMIN, **more: Any) -> Device:
        """Write a board into the inventory, as a person would."""
        device = board.device(target, user, **{"link": "ssh", **more})
        add(self.inventory, device)
        return device

    def popen(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
            env=environment(self.home, PYTHONPATH=str(self.source), PATH=_path()),
        )

    def __call__(self, *arguments: str | Path, deadline: float = DEADLINE) -> Called:
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=deadline)
        finally:
            process.kill()
        assert "Traceback" not in err, err
        return Called(process.returncode, out, err)

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        """The JSON document of a command that has to succeed."""
        called = self(*arguments, "--json")
        assert called.code == 0, called.out + called.err
        document: dict[str, Any] = called.document
        return document

    def one(self, *arguments: str | Path) -> dict[str, Any]:
        """What a command that has to succeed says of the only device it has to do with."""
        return only(self.good(*arguments)["results"])

    def failed(self, *arguments: str | Path) -> dict[str, Any]:
        """What a command that has to fail says of the only device it has to do with."""
        called = self(*arguments, "--json")
        assert called.code == 1, called.out + called.err
        return only(called.document["results"])

    def changed(self, folder: Path, file: str, before: str, after: str) -> BoardFleet:
        """The same controller with other sources: in ``file``, ``before`` is ``after``."""
        folder.mkdir()
        for package in ("agent", "bitstreams", "controller", "targets"):
            shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after, 1))
        return BoardFleet(self.root, source=folder)


def only(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (one,) = found
    return one


def _path() -> str:
    """Where programs are found: Ansible's are beside this Python."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
