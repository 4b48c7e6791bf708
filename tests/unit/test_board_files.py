"""Files of device halves: a cache that the agent names, and scratch that does not outlive its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from targets import board_files
from targets.base import FleetError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_files.CACHE_VARIABLE, str(tmp_path))


def test_the_cache_is_where_the_agent_says(tmp_path: Path) -> None:
    assert board_files.cache_folder("ascend") == tmp_path / "ascend"
    assert (tmp_path / "ascend").is_dir()


def test_scratch_is_removed_when_it_is_closed() -> None:
    scratch = board_files.Scratch("ascend")
    (scratch.path / "file").write_text("x")
    assert scratch.path.stat().st_mode & 0o777 == 0o755
    scratch.close()
    assert not scratch.path.exists()
    scratch.close()


def test_scratch_of_a_killed_process_goes_and_that_of_a_living_one_stays() -> None:
    code = "import os; from targets.board_files import Scratch; print(Scratch('ascend').path, flush=True); os._exit(9)"
    left = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    )
    assert left.is_dir()
    mine = board_files.Scratch("ascend")
    assert not left.exists()
    other = board_files.Scratch("ascend")
    assert mine.path.is_dir() and other.path.is_dir()
    mine.close()
    other.close()


def test_a_cache_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(board_files.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(FleetError) as caught:
        board_files.cache_folder("ascend")
    assert caught.value.code == "disk-error"
