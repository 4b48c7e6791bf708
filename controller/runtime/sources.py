"""What of the installed wheels of TVM goes into a runtime for a board."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from targets.base import FleetError

#: Of the virtual machine; the rest of its folder is for language models.
_VM = ("builtin", "bytecode", "executable", "vm")
#: For other systems, or for tests of TVM itself.
_UNUSED = ("backtrace_win", "testing")
#: What the runtime and RPC import of TVM's own Python, beside the package's ``__init__``.
_TVM_PYTHON = (
    "_version.py",
    "base.py",
    "error.py",
    "libinfo.py",
    "rpc/**/*.py",
    "runtime/**/*.py",
    "support/__init__.py",
    "support/cc.py",
    "support/libinfo.py",
    "support/popen_pool.py",
    "support/tar.py",
    "support/utils.py",
)
#: Of tvm_ffi's Python: nothing else imports these.
_FFI_UNUSED = ("testing", "stub")


@dataclass(frozen=True, slots=True)
class Sources:
    """Files of the installed ``apache-tvm`` and ``apache-tvm-ffi``."""

    tvm: Path
    ffi: Path
    version: str
    ffi_version: str
    #: Where the licences lie.
    information: tuple[Path, ...]

    @classmethod
    def find(cls) -> Sources:
        """Raises :class:`FleetError` (``no-tvm``) where they are not installed, or came without sources."""
        try:
            found = [distribution(name) for name in ("apache-tvm", "apache-tvm-ffi")]
        except PackageNotFoundError as error:
            raise _lacking(f"{error.name} is not installed") from None
        tvm, ffi = (Path(str(one.locate_file(package))) for one, package in zip(found, ("tvm", "tvm_ffi"), strict=True))
        for needed in (tvm / "src/runtime/vm/vm.cc", tvm / "include/tvm/runtime/tensor.h", ffi / "cython/core.pyx"):
            if not needed.is_file():
                raise _lacking(f"the installed TVM came without {needed.name}")
        return cls(tvm, ffi, found[0].version, found[1].version, tuple(map(_information, found)))

    @property
    def ffi_sources(self) -> list[Path]:
        """Of ``libtvm_ffi``."""
        folder = self.ffi / "src/ffi"
        return [path for path in sorted((*folder.glob("*.cc"), *folder.glob("extra/*.cc"))) if path.stem not in _UNUSED]

    @property
    def runtime(self) -> Path:
        """The folder of ``libtvm_runtime``'s sources, whose headers name others relative to it."""
        return self.tvm / "src/runtime"

    @property
    def runtime_sources(self) -> list[Path]:
        """Of ``libtvm_runtime``, relative to `runtime`."""
        found = [path for part in ("", "rpc", "memory") for path in sorted((self.runtime / part).glob("*.cc"))]
        found += [self.runtime / "vm" / f"{name}.cc" for name in _VM]
        return [path.relative_to(self.runtime) for path in found if path.stem not in _UNUSED]

    @property
    def includes(self) -> list[Path]:
        return [self.tvm / "include", self.ffi / "include", self.ffi / "3rdparty/dlpack/include"]

    @property
    def extension(self) -> Path:
        """The source of ``tvm_ffi.core``, in Cython."""
        return self.ffi / "cython/core.pyx"

    def python(self) -> Iterator[tuple[str, Path]]:
        """Modules of both packages, as (path inside the wheel, file)."""
        for pattern in _TVM_PYTHON:
            for path in sorted(self.tvm.glob(pattern)):
                yield f"tvm/{path.relative_to(self.tvm).as_posix()}", path
        for path in sorted(self.ffi.rglob("*.py")):
            inside = path.relative_to(self.ffi)
            if inside.parts[0] not in _FFI_UNUSED:
                yield f"tvm_ffi/{inside.as_posix()}", path

    def licences(self) -> Iterator[tuple[str, Path]]:
        """Texts that must go with the files, as (name, file)."""
        for folder in self.information:
            for path in sorted((*folder.rglob("LICENSE*"), *folder.rglob("NOTICE*"))):
                if path.is_file():
                    yield f"{folder.name.split('-')[0]}/{path.name}", path


def _information(found: Distribution) -> Path:
    """The folder of a distribution's metadata."""
    return Path(str(found.locate_file(f"{found.metadata['Name'].replace('-', '_')}-{found.version}.dist-info")))


def _lacking(why: str) -> FleetError:
    return FleetError(
        f"a runtime for boards is made of the sources in TVM's wheels, and {why}",
        code="no-tvm",
        hint="pip install 'fleet-edge[tvm]'",
    )
