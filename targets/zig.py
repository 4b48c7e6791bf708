"""Linking for another machine with the compiler driver of the PyPI package ``ziglang``: no cross-toolchain needed.

Zig carries the stubs of every glibc, so a library can be linked for any Linux board from any host. The stubs of a
machine are made at its first link (a few seconds) and kept in ``cache``; after that a link takes tens of milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from targets.base import FleetError

# The oldest glibc that a board may have: Debian 10, Ubuntu 20.04, JetPack 5.
GLIBC = "2.28"
LINK_DEADLINE = 300.0


class LinkError(FleetError):
    code = "link-failed"


def cache_folder() -> Path:
    """Where Zig keeps what it makes: ``$FLEET_ZIG_CACHE`` (set by the controller), else the user's cache."""
    given = os.environ.get("FLEET_ZIG_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fleet" / "zig"


def link_shared(output: Path, objects: Sequence[Path], triple: str) -> None:
    """Link ``objects`` into the shared library ``output`` for ``triple``, such as ``aarch64-linux-gnu``.

    The result depends on the objects alone: no path of this host, no time and no build id is in it, so equal objects
    give equal bytes. Symbols of the TVM runtime stay undefined: the process that loads the library has them.

    Raises:
        LinkError: with the linker's own words.
    """
    # Without -s the library would name the folder that Zig lies in.
    arguments = ["-shared", "-fPIC", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none", "-o", str(output)]
    run("cc", [*arguments, *map(str, objects), "-lm"], triple, f"linking for {triple}", LINK_DEADLINE)


def run(driver: Literal["cc", "c++"], arguments: Sequence[str], triple: str, what: str, deadline: float) -> None:
    """Run one of Zig's compiler drivers for ``triple``, with the oldest glibc.

    Raises:
        LinkError: ``what`` failed, with the driver's own words.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ziglang", driver, "-target", f"{triple}.{GLIBC}", *arguments]
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=deadline)
    except subprocess.TimeoutExpired:
        raise LinkError(f"{what} took longer than {deadline:.0f} s") from None
    if done.returncode != 0:
        words = done.stderr.strip()[-2000:]
        missing = "No module named" in words and "ziglang" in words
        hint = "pip install 'fleet-edge[controller]'" if missing else f"Zig's cache is in {cache}; is its disk full?"
        raise LinkError(f"{what} failed: {words or f'exit status {done.returncode}'}", hint=hint)
