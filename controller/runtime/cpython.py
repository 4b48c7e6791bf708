"""The headers of CPython, made to fit another processor.

They are the same for all of them but ``pyconfig.h``, and that differs in the sizes of C's types.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from controller.runtime.architectures import Architecture
from targets.base import FleetError

#: C's types that are as wide as a pointer, and those of files and of time, by the names that ``pyconfig.h`` gives them.
_WORDS = ("LONG", "SIZE_T", "UINTPTR_T", "VOID_P", "PTHREAD_T", "PTHREAD_KEY_T", "TIME_T")
_FIXED = {"PTHREAD_KEY_T": 4, "LONG_DOUBLE": {4: 8, 8: 16}}
_VERSION = re.compile(r'^#define\s+PY_VERSION\s+"(\d+)\.(\d+)', re.MULTILINE)
_SIZE = re.compile(r"^#define\s+(SIZEOF|ALIGNOF)_(\w+)\s+\d+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Headers:
    """``folder`` holds ``Python.h`` of the version ``python``, such as ``3.11``."""

    folder: Path
    python: str

    @classmethod
    def find(cls, python: str = "", folder: Path | None = None) -> Headers:
        """Those of this very Python, or in ``folder``.

        Raises :class:`FleetError` (``no-python-headers``): there are none, or of another version than ``python``.
        """
        where = folder or Path(sysconfig.get_paths()["include"])
        try:
            version = _VERSION.search((where / "patchlevel.h").read_text())
        except OSError:
            version = None
        if version is None:
            raise FleetError(
                f"there are no headers of Python in {where}",
                code="no-python-headers",
                hint="install them (Debian: python3-dev), or name the folder of Python.h with --python-include",
            )
        found = f"{version[1]}.{version[2]}"
        if python and python != found:
            raise FleetError(
                f"the board has Python {python}, and the headers in {where} are of Python {found}",
                code="no-python-headers",
                hint=f"copy /usr/include/python{python} of a board here and name it with --python-include",
            )
        return cls(where, found)

    @property
    def tag(self) -> str:
        """The Python and ABI tag of wheels, such as ``cp311``."""
        return "cp" + self.python.replace(".", "")

    def fit(self, architecture: Architecture, folder: Path) -> Path:
        """Copy them to ``folder`` as they are on ``architecture``; ``folder``."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        config = folder / "pyconfig.h"
        try:
            text = config.read_text()
        except OSError:
            # Debian keeps it apart, by architecture; this Python's own knows where.
            text = Path(sysconfig.get_config_h_filename()).read_text()
        config.unlink(missing_ok=True)
        config.write_text(fitted(text, architecture))
        return folder


def fitted(config: str, architecture: Architecture) -> str:
    """The text of a ``pyconfig.h`` with the sizes that C's types have on ``architecture``."""

    def size(match: re.Match[str]) -> str:
        kind, name = match.groups()
        fixed = _FIXED.get(name)
        if isinstance(fixed, dict):
            fixed = fixed[architecture.word]
        if fixed is None and name not in _WORDS:
            return match[0]
        return f"#define {kind}_{name} {fixed or architecture.word}"

    return _SIZE.sub(size, config)


def this_python() -> str:
    """The version of Python that this process runs on, such as ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
