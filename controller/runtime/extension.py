"""Wheels of extension modules that a board has none of, cross-compiled from their source distributions."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from controller.home import Home
from controller.runtime import architectures, objects
from controller.runtime.cpython import Headers
from controller.runtime.objects import Library, Unit
from controller.runtime.wheel import Wheel
from targets.base import FleetError

#: Seconds to download a source distribution of some hundred kilobytes.
_DOWNLOAD_DEADLINE = 300.0
#: Bytes that a source distribution may unpack to.
_MOST = 64 << 20

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Extension:
    """``module`` is the extension's path without suffix; its C files and Python package lie in ``package``."""

    package: str
    module: str
    sources: tuple[str, ...]


#: msgspec is all of the agent's needs that neither PyPI nor Debian has for armv7.
EXTENSIONS = {"msgspec": Extension("src/msgspec", "msgspec/_core", ("_core.c",))}


def build(
    name: str,
    version: str,
    arch: str,
    out: Path,
    *,
    python: str = "",
    python_include: Path | None = None,
    home: Home | None = None,
    progress: Progress = lambda stage, share: None,
) -> Path:
    """Make a wheel of ``name`` for ``arch`` and Python ``python``, as :func:`controller.runtime.build.build` does.

    Raises FleetError: ``no-extension`` for a package that this knows nothing of, ``download-failed``, and those of the
    runtime's build.
    """
    known = EXTENSIONS.get(name)
    if known is None:
        raise FleetError(
            f"nothing is known about how to build {name} for a board",
            code="no-extension",
            hint=f"known are: {', '.join(EXTENSIONS)}",
        )
    architecture, headers = architectures.find(arch), Headers.find(python, python_include)
    cache = (home or Home.find()).cache / "runtime"
    with tempfile.TemporaryDirectory(prefix="fleet-extension-") as given:
        folder = Path(given)
        root = _unpacked(_downloaded(name, version, cache / "sources"), folder)
        package = root / known.package
        include = headers.fit(architecture, folder / "python")
        units = tuple(Unit(package / source, ("-std=gnu11",), (include,)) for source in known.sources)
        library = Library("extension.so", units)
        made = objects.build([library], [], architecture, folder, cache / architecture.name, progress)
        suffix = f"cpython-{headers.tag.removeprefix('cp')}-{architecture.triple}.so"
        files = [(f"{known.module}.{suffix}", made["extension.so"].read_bytes())]
        for path in sorted((*package.rglob("*.py"), *package.rglob("*.pyi"), *package.rglob("py.typed"))):
            files.append((f"{package.name}/{path.relative_to(package).as_posix()}", path.read_bytes()))
        metadata = HeaderParser().parsestr((root / "PKG-INFO").read_text())
        wheel = Wheel(
            name=name,
            version=version,
            tag=f"{headers.tag}-{headers.tag}-{architecture.platform}",
            summary=str(metadata.get("Summary", "")),
            requires_python=f"=={headers.python}.*",
        )
        licences = [(path.name, path.read_bytes()) for path in sorted(root.glob("LICENSE*"))]
        progress("pack", 1.0)
        return wheel.write(out, files, licences)


def _downloaded(name: str, version: str, folder: Path) -> Path:
    """The source distribution, downloaded by pip if it is not in ``folder``: by its settings, from its index."""
    wanted = folder / f"{name}-{version}.tar.gz"
    if wanted.is_file():
        return wanted
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", name, "--dest", str(folder), f"{name}=={version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_DEADLINE)
        words = done.stderr.strip()[-500:]
    except subprocess.TimeoutExpired:
        words = f"it took longer than {_DOWNLOAD_DEADLINE:.0f} s"
    if not wanted.is_file():
        raise FleetError(
            f"the sources of {name} {version} cannot be downloaded: {words}",
            code="download-failed",
            hint="pip's index has to be reachable from this host once; then they are kept",
        )
    return wanted


def _unpacked(archive: Path, folder: Path) -> Path:
    """The root of an unpacked source distribution. Nothing of it leaves ``folder``."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        if sum(member.size for member in members) > _MOST:
            raise FleetError(f"{archive.name} is larger than any source distribution", code="download-failed")
        for member in members:
            # Python before 3.11.4 has no filter for hostile archives.
            target = (folder / member.name).resolve()
            if not (member.isfile() or member.isdir()) or not target.is_relative_to(folder.resolve()):
                raise FleetError(
                    f"{archive.name} holds '{member.name}', which is no plain file", code="download-failed"
                )
        tar.extractall(folder, members)
    roots = [path for path in folder.iterdir() if (path / "PKG-INFO").is_file()]
    if len(roots) != 1:
        raise FleetError(f"{archive.name} is no source distribution", code="download-failed")
    return roots[0]
