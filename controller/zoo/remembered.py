"""Networks that were exported before, found again without importing what exported them.

Importing torch and torchvision takes seconds, and all that is asked of them for a network that lies in the cache is its
labels. What is remembered is the `SourceModel`; the file it names is still checked against its digest.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from targets.base import SourceModel
from targets.files import disk_errors, hash_file, make_directory, write_atomic

if TYPE_CHECKING:
    from controller.home import Home


def find(name: str, weights: str, home: Home) -> SourceModel | None:
    """The source that `keep` was given for the same network, weights and versions, if its file is still the same."""
    try:
        found = msgspec.json.decode(_path(name, weights, home).read_bytes(), type=SourceModel)
        return found if hash_file(Path(found.path)) == found.sha256 else None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def keep(weights: str, source: SourceModel, home: Home) -> None:
    """Remember ``source`` as what ``weights`` of the network of its name give."""
    path = _path(source.name, weights, home)
    with disk_errors(path.name):
        make_directory(path.parent)
        write_atomic(path, msgspec.json.encode(source))


def _path(name: str, weights: str, home: Home) -> Path:
    file = Path(weights).expanduser()
    parts = [name, weights, hash_file(file) if file.is_file() else "", _code(), _version("torch")]
    key = hashlib.sha256("\n".join((*parts, _version("torchvision"))).encode()).hexdigest()
    return home.cache / "zoo" / f"{name}-{key[:16]}.json"


@cache
def _code() -> str:
    """Digest of the networks' definitions."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
