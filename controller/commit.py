"""Which commit the user's working directory is at: kept with every result."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: A status of a very large working tree is not worth waiting longer for, in seconds.
TIMEOUT = 5.0


def working_commit(directory: Path | None = None) -> str:
    """Full hash of ``HEAD`` in ``directory`` (else the current one), with ``+dirty`` when tracked files differ from it.

    Empty outside a git working tree, before the first commit, or without git.
    """
    head = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        return ""
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+dirty" if changes is None or changes else head


def _git(directory: Path | None, *words: str) -> str | None:
    command = ["git", *words]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
