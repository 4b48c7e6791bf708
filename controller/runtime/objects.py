"""Compiling and linking many files for another processor, in parallel; what was compiled is kept by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from controller.runtime.architectures import Architecture
from targets import zig
from targets.cores import usable

#: Of one file: the largest takes half a minute on a fast core, and emulated machines are slow.
_DEADLINE = 1800.0
_COMMON = ("-fPIC", "-O2", "-fno-sanitize=undefined", "-ffunction-sections", "-fdata-sections", "-DNDEBUG", "-w")

# Each library has C++'s runtime in it, with the exceptions that it knows of. On 32-bit ARM some of that is exported
# unless it is said to be local, and who throws and who cleans up would be of two libraries: the process ends.
_OWN = "{ local: __cxa_*; _Unwind_*; __aeabi_unwind_*; __gnu_unwind_*; };\n"

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Unit:
    """A file to compile, with flags of its own, and folders of headers that only it looks into."""

    source: Path
    flags: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    @property
    def driver(self) -> Literal["cc", "c++"]:
        return "cc" if self.source.suffix == ".c" else "c++"


@dataclass(frozen=True, slots=True)
class Library:
    """``needs`` are libraries of the same build that it is linked with."""

    name: str
    units: tuple[Unit, ...]
    needs: tuple[str, ...] = ()
    #: Whether the loader finds what it needs by this path relative to it; empty: beside it is enough.
    rpath: str = ""


def build(
    libraries: Sequence[Library],
    includes: Sequence[Path],
    architecture: Architecture,
    out: Path,
    cache: Path,
    progress: Progress,
) -> dict[str, Path]:
    """Compile and link ``libraries`` into ``out``, in the order in which they need one another.

    An object is compiled once for the same file, headers, flags and compiler, and kept in ``cache``. Raises
    :class:`targets.zig.LinkError` with the compiler's words.
    """
    cache.mkdir(parents=True, exist_ok=True)
    compiler = [version("ziglang"), architecture.triple, architecture.cpu, zig.GLIBC]
    common = _digest([*compiler, *_COMMON], _files(includes))
    units = [unit for library in libraries for unit in library.units]
    objects: dict[Unit, Path] = {}
    with ThreadPoolExecutor(usable().default) as pool:
        running: dict[Future[Path], Unit] = {
            pool.submit(_compile, unit, includes, architecture, common, cache): unit for unit in units
        }
        try:
            for done, future in enumerate(as_completed(running), 1):
                objects[running[future]] = future.result()
                progress("compile", done / (len(units) + len(libraries)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    made: dict[str, Path] = {}
    for number, library in enumerate(libraries, 1):
        made[library.name] = _link(library, [objects[unit] for unit in library.units], architecture, out, made)
        progress("link", (len(units) + number) / (len(units) + len(libraries)))
    return made


def _compile(unit: Unit, includes: Sequence[Path], architecture: Architecture, common: str, cache: Path) -> Path:
    near = [*sorted(unit.source.parent.glob("*.h")), *_files(unit.folders)]
    name = _digest([common, unit.driver, *unit.flags], [unit.source, *near])
    kept = cache / f"{unit.source.stem}-{name[:24]}.o"
    if kept.exists():
        return kept
    # Another build may be at the same file: each writes its own and the last rename wins.
    made = cache / f".{kept.name}.{id(unit)}"
    folders = [word for folder in (*unit.folders, *includes) for word in ("-I", str(folder))]
    arguments = [f"-mcpu={architecture.cpu}", *_COMMON, *unit.flags, *folders, "-c", str(unit.source), "-o", str(made)]
    try:
        zig.run(
            unit.driver,
            arguments,
            architecture.triple,
            f"compiling {unit.source.name} for {architecture.name}",
            _DEADLINE,
        )
        made.replace(kept)
    finally:
        made.unlink(missing_ok=True)
    return kept


def _link(
    library: Library, objects: Sequence[Path], architecture: Architecture, out: Path, made: Mapping[str, Path]
) -> Path:
    path, own = out / library.name, out / f"{library.name}.map"
    own.write_text(_OWN)
    arguments = ["-shared", "-fPIC", "-s", f"-mcpu={architecture.cpu}", "-Wl,--gc-sections", "-Wl,--build-id=none"]
    arguments += [
        f"-Wl,--version-script={own}",
        f"-Wl,-soname,{library.name}",
        *([f"-Wl,-rpath,{library.rpath}"] if library.rpath else []),
    ]
    arguments += ["-o", str(path), *map(str, objects), *(str(made[name]) for name in library.needs)]
    driver: Literal["cc", "c++"] = "c++" if any(unit.driver == "c++" for unit in library.units) else "cc"
    zig.run(driver, arguments, architecture.triple, f"linking {library.name} for {architecture.name}", _DEADLINE)
    return path


def _files(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def _digest(words: Iterable[str], files: Iterable[Path]) -> str:
    """Of words and of what is in files; not of where these lie."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
