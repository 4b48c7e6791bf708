"""Fixtures of emulated boards; import those that a test module needs. Without root, or tools, its tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from board_fleet import BoardFleet
from board_hosts import Board
from board_roots import ARCHITECTURES, EMULATED, alone, cache_folder, missing, roots

Boards = Callable[..., Board]


def board_root(name: str) -> Path:
    """The root file system of an architecture, by Debian's name of it; skips where its boards cannot run."""
    kind = ARCHITECTURES[name]
    # Setting one up is one process after the other: those that take minutes are made together.
    together = EMULATED if kind.emulator else {name: kind}
    reason = missing(together.values())
    if reason:
        pytest.skip(reason)
    return roots(together.values())[name]


def own_runtime(fleet: BoardFleet, machine: str) -> None:
    """TVM's runtime for a machine is compiled, or was before: not by two workers at once."""
    with alone(cache_folder() / "runtime.lock"):
        fleet.good("runtime", "build", "--arch", machine, "-o", fleet.root)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """Makes boards, running and reachable by SSH, that are gone after the last test of the module."""
    made: list[Board] = []

    def make(architecture: str, name: str = "", **more: Any) -> Board:
        name = name or f"{architecture}-{len(made) + 1}"
        folder = tmp_path_factory.mktemp("board") / name
        made.append(Board(ARCHITECTURES[architecture], board_root(architecture), folder, name, **more))
        return made[-1].start()

    yield make
    for board in made:
        board.stop()
        shutil.rmtree(board.folder / "disk", ignore_errors=True)
