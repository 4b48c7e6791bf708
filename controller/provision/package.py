"""The agent as one file for a kind of board: a Python environment's packages, complete, unpacked where it is to run.

A board needs no pip, no index and no compiler: it makes an empty environment of its own Python and unpacks this there.
The name says what is inside, so the same content is never sent twice, and several agents lie beside one another.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from controller.home import Home
from controller.printable import printable
from controller.provision.board import Board
from controller.provision.wheels import DISTRIBUTION, Progress, Runtime, Wheels, chosen, collect, digest
from targets.base import FleetError
from targets.files import write_atomic

#: What of this distribution a board needs.
_PACKAGES = ("agent", "bitstreams", "targets")
#: Part of each name: another number when packages are laid out in another way.
_LAYOUT = 1
_DEADLINE = 300.0
#: The oldest time that every archive can say: the same content gives the same bytes.
_TIME = 315532800


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """An agent for a kind of board. ``path`` is a ``.tar.gz`` of what belongs into ``site-packages``."""

    id: str
    version: str
    path: str
    sha256: str
    size: int
    #: Bytes on the board.
    installed: int
    machine: str
    #: The board's interpreter, of which its environment is made.
    python: str
    python_version: str
    #: The distribution's packages that it needs beside it; with any, the environment sees the board's own packages.
    system: tuple[str, ...] = ()
    #: Whether modules are compiled already. If not, the board does it.
    compiled: bool = False


def make(board: Board, home: Home, progress: Progress, *, runtime: Runtime = "own") -> Package:
    """The agent for ``board``; what was made before is taken from the cache. Raises FleetError as `collect` does."""
    wheels = collect(board, runtime, home, progress)
    version = importlib.metadata.version(DISTRIBUTION)
    name = f"{version}-{_identity(board, wheels)}"
    folder = home.cache / "agents"
    file, about = folder / f"{name}.tar.gz", folder / f"{name}.json"
    try:
        found = msgspec.json.decode(about.read_bytes(), type=Package)
        if found.sha256 == digest(file):
            return msgspec.structs.replace(found, path=str(file), python=board.python)
    except (OSError, msgspec.MsgspecError):
        pass
    progress(f"pack {name}", 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fleet-package-") as temporary:
        tree = Path(temporary) / "site-packages"
        _install(board, wheels, tree)
        for path, data in _own():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        compiled = _compile(board, tree)
        installed = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        write_atomic(file, _packed(tree))
    package = Package(
        id=name,
        version=version,
        path=str(file),
        sha256=digest(file),
        size=file.stat().st_size,
        installed=installed,
        machine=board.machine,
        python=board.python,
        python_version=".".join(map(str, board.version)),
        system=wheels.system,
        compiled=compiled,
    )
    write_atomic(about, msgspec.json.encode(package))
    return package


def _identity(board: Board, wheels: Wheels) -> str:
    whole = hashlib.sha256(f"{_LAYOUT} {board.version} {wheels.system}".encode())
    for path in wheels.files:
        whole.update(f"{path.name} {digest(path)}\n".encode())
    for name, data in _own():
        whole.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def _own() -> Iterator[tuple[str, bytes]]:
    """The files of this distribution that a board needs, by their places; the same whichever way it is installed."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, f"{package} is part of {DISTRIBUTION}"
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()
    found = importlib.metadata.distribution(DISTRIBUTION)
    information = f"{DISTRIBUTION.replace('-', '_')}-{found.version}.dist-info"
    yield f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {found.version}\n".encode()
    yield f"{information}/INSTALLER", b"fleet\n"
    targets = [one for one in found.entry_points if one.group == "fleet.targets"]
    lines = ["[fleet.targets]", *sorted(f"{one.name} = {one.value}" for one in targets)]
    yield f"{information}/entry_points.txt", ("\n".join(lines) + "\n").encode()


def _install(board: Board, wheels: Wheels, tree: Path) -> None:
    """Lay the wheels out as pip on the board would, without what only tests of theirs need."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-compile", "--target", str(tree), *chosen(board)]
    command += [str(path) for path in wheels.files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise FleetError(
            f"the wheels for {board.tag} cannot be unpacked: {printable(done.stderr.strip()[-500:])}",
            code="bad-wheel",
            hint="remove the folder of wheels below the cache, and they are fetched anew",
        )
    # Their commands would be for this machine's Python.
    shutil.rmtree(tree / "bin", ignore_errors=True)
    for folder in sorted(tree.rglob("tests")):
        if folder.is_dir():
            shutil.rmtree(folder)


def _compile(board: Board, tree: Path) -> bool:
    """Compile the modules with a Python of the board's version, if this machine has one: its code is the same there."""
    if board.version == sys.version_info[:2]:
        python: str | None = sys.executable
    else:
        python = shutil.which(f"python{board.version[0]}.{board.version[1]}")
    if python is None:
        return False
    command = [python, "-I", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    # Paths in tracebacks as they are on the board, below its environment.
    command += ["-s", str(tree), "-p", "site-packages", str(tree)]
    # A module that is not for this Python is never imported on the board either.
    subprocess.run(command, capture_output=True, timeout=_DEADLINE, stdin=subprocess.DEVNULL)
    return True


def _packed(tree: Path) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            entry = tarfile.TarInfo(path.relative_to(tree).as_posix())
            entry.size, entry.mtime = path.stat().st_size, _TIME
            entry.mode = 0o755 if ".so" in path.suffixes else 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return buffer.getvalue()
