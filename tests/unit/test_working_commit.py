"""The commit that is kept with a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from controller.commit import working_commit


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_of_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    assert working_commit(tmp_path) == ""
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert working_commit(tmp_path) == head
    (tmp_path / "new").write_text("not tracked")
    assert working_commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert working_commit(tmp_path) == f"{head}+dirty"
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert working_commit() == f"{head}+dirty"


def test_no_repository_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_commit(tmp_path) == ""
    assert working_commit(tmp_path / "missing") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert working_commit() == ""
