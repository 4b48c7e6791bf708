"""Everything that an agent imports on one kind of board, as wheels: from the package index, or made here.

They are kept below the controller's cache, a folder for each machine, Python and C library, and taken from there as
long as what is asked for stays the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from controller.home import Home
from controller.printable import printable
from controller.provision.board import Board
from targets.base import FleetError
from targets.files import write_atomic

DISTRIBUTION = "fleet-edge"
#: TVM's runtime on the board: cross-compiled here, the package index's whole TVM, or none.
Runtime = Literal["own", "pypi", "none"]
Progress = Callable[[str, float], None]

#: What the index has no wheels of for 32-bit ARM, and Debian has: by its names there.
_DEBIAN = {
    "numpy": "python3-numpy",
    "pyzmq": "python3-zmq",
    "psutil": "python3-psutil",
    "zstandard": "python3-zstandard",
    "cryptography": "python3-cryptography",
}
_BUILT = frozenset({"msgspec"})
_DEADLINE = 900.0
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Wheels:
    """``files`` are to be installed; ``system`` are the distribution's packages that the rest comes from."""

    files: tuple[Path, ...]
    system: tuple[str, ...] = ()


class _Kept(msgspec.Struct):
    """``wheels.json``: what a folder of wheels was asked for, and what came."""

    asked: list[str]
    files: dict[str, str]


def collect(board: Board, runtime: Runtime, home: Home, progress: Progress) -> Wheels:
    """The wheels of an agent for ``board``.

    Raises FleetError ``download-failed``, ``no-runtime``, and those of :mod:`controller.runtime`.
    """
    folder = home.cache / "wheels" / board.tag
    made = _runtime(board, runtime, folder, home, progress)
    names = [_name(one) for one in requirements()]
    if board.machine != "armv7l":
        asked = [*names, *_tvm(board, runtime)]
        needed = {name for one in made for name in _needs(one)} - set(names)
        return Wheels(files=(*made, *_downloaded(board, [*asked, *sorted(needed)], folder, progress)))
    if runtime == "pypi":
        raise FleetError(
            "the package index has no TVM for 32-bit ARM", code="no-runtime", hint="leave out --runtime: ours is built"
        )
    from controller.runtime import extension

    for name in names:
        if name in _BUILT:
            version = importlib.metadata.version(name)
            python = ".".join(map(str, board.version))
            progress(f"build {name}", 0.0)
            made = (*made, extension.build(name, version, board.machine, folder / "made", python=python, home=home))
    system = tuple(_DEBIAN[name] for name in names if name not in _BUILT)
    needed = {_specified(one) for wheel in made for one in _requires(wheel) if _name(one) not in _DEBIAN}
    return Wheels(files=(*made, *_downloaded(board, sorted(needed), folder, progress)), system=system)


def requirements() -> list[str]:
    """What the agent's distribution says that it needs, without extras."""
    return [one for one in importlib.metadata.requires(DISTRIBUTION) or () if "extra ==" not in one]


def _runtime(board: Board, runtime: Runtime, folder: Path, home: Home, progress: Progress) -> tuple[Path, ...]:
    if runtime != "own":
        return ()
    from controller.runtime import build

    def told(stage: str, share: float) -> None:
        progress(f"TVM's runtime: {stage}", share)

    python = ".".join(map(str, board.version))
    try:
        return (build.build(board.machine, folder / "made", python=python, home=home, progress=told),)
    except FleetError as error:
        if error.code == "no-python-headers" and board.machine != "armv7l":
            hint = f"{error.hint}; or take --runtime pypi, the package index's TVM"
            raise FleetError(error.message, code=error.code, hint=hint) from None
        raise


def _tvm(board: Board, runtime: Runtime) -> list[str]:
    """The package index's TVM, at the versions of this machine's: a bundle asks for the very same."""
    if runtime != "pypi":
        return []
    wanted = [
        one for one in importlib.metadata.requires(DISTRIBUTION) or () if re.search(r"extra == ['\"]tvm['\"]", one)
    ]
    return [_specified(one) for one in wanted]


def _downloaded(board: Board, asked: Sequence[str], folder: Path, progress: Progress) -> list[Path]:
    """Wheels of the package index for the board, with what they need in turn."""
    place = folder / hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12]
    if not asked:
        return []
    if (kept := _kept(place, asked)) is not None:
        return kept
    progress(f"download {len(asked)} packages for {board.tag}", 0.0)
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--dest", str(place), *chosen(board), *asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise FleetError(
            f"the wheels for {board.tag} were not downloaded within {_DEADLINE:.0f} s", code="download-failed"
        ) from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise FleetError(
            f"the wheels for {board.tag} cannot be downloaded: {printable(' '.join(words[-2:]))[:500]}",
            code="download-failed",
            hint=f"pip reads its settings as always; wheels that lie in {place} are taken from there",
        )
    files = sorted(place.glob("*.whl"))
    kept_now = _Kept(asked=list(asked), files={path.name: digest(path) for path in files})
    write_atomic(place / "wheels.json", msgspec.json.encode(kept_now))
    return files


def chosen(board: Board) -> list[str]:
    """What tells pip to take wheels for the board and not for this machine."""
    tag = f"cp{board.version[0]}{board.version[1]}"
    words = ["--only-binary=:all:", "--python-version", ".".join(map(str, board.version)), "--implementation", "cp"]
    words += ["--abi", tag, "--abi", "abi3", "--abi", "none"]
    for minor in range(board.libc[1], 4, -1):
        words += ["--platform", f"manylinux_{board.libc[0]}_{minor}_{board.machine}"]
    return [*words, "--platform", f"manylinux2014_{board.machine}"]


def _kept(place: Path, asked: Sequence[str]) -> list[Path] | None:
    """The wheels that were downloaded before, if all of them are there as they were."""
    try:
        kept = msgspec.json.decode((place / "wheels.json").read_bytes(), type=_Kept)
        files = [place / name for name in sorted(kept.files)]
        whole = all(digest(path) == kept.files[path.name] for path in files)
    except (OSError, msgspec.MsgspecError):
        return None
    return files if whole and kept.asked == list(asked) else None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            whole.update(data)
    return whole.hexdigest()


def _requires(wheel: Path) -> list[str]:
    """What a wheel's metadata asks for, without extras."""
    import zipfile
    from email.parser import HeaderParser

    with zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        found = HeaderParser().parsestr(archive.read(name).decode())
    return [str(one) for one in found.get_all("Requires-Dist", ()) if "extra ==" not in str(one)]


def _needs(wheel: Path) -> list[str]:
    return [_specified(one) for one in _requires(wheel)]


def _specified(requirement: str) -> str:
    """A requirement without the conditions under which it holds."""
    return requirement.partition(";")[0].replace(" ", "")


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    assert found is not None, f"{requirement!r} of our own metadata begins with no name"
    return found[0].lower()
