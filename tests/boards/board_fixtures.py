"""Fixtures of emulated boards; import those that a test module needs. Without root, or tools, its tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from board_fleet import BoardFleet
from board_hosts import Board
from board_roots import ARCHITECTURES, alone, cache_folder, missing, roots

Boards = Callable[..., Board]


@pytest.fixture(scope="session")
def board_roots() -> dict[str, Path]:
    """The root file systems, by Debian's names of the architectures."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    return roots(ARCHITECTURES.values())


@pytest.fixture(scope="session")
def own_runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    """TVM's runtime for armv7 is compiled, or was before: not by two workers at once."""
    fleet = BoardFleet(tmp_path_factory.mktemp("runtime"))
    with alone(cache_folder() / "runtime.lock"):
        fleet.good("runtime", "build", "--arch", "armv7l", "-o", fleet.root)


@pytest.fixture(scope="module")
def boards(board_roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """Makes boards, running and reachable by SSH, that are gone after the last test of the module."""
    made: list[Board] = []

    def make(architecture: str, name: str = "", **more: Any) -> Board:
        name = name or f"{architecture}-{len(made) + 1}"
        folder = tmp_path_factory.mktemp("board") / name
        made.append(Board(ARCHITECTURES[architecture], board_roots[architecture], folder, name, **more))
        return made[-1].start()

    yield make
    for board in made:
        board.stop()
        shutil.rmtree(board.folder / "disk", ignore_errors=True)
