"""The CANN toolkit of a board: where it is, its environment, its version, and its Python with ais_bench."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from targets.ascend.process import run
from targets.base import FleetError

#: Names the file to source where it is in another place than those below.
SET_ENV = "FLEET_ASCEND_ENV"
#: Names the Python that has ais_bench, where it is not the first on the toolkit's path.
PYTHON = "FLEET_ASCEND_PYTHON"
_ROOTS = ("/usr/local/Ascend", "~/Ascend")
#: Newer releases install to the first; `nnrt` is the runtime alone, without atc.
_PACKAGES = ("cann", "ascend-toolkit", "nnrt")
_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_DEADLINE = 30.0
_INFO = 64 << 10
#: What an agent in an environment of its own has, and the toolkit's Python must not.
_OWN = ("VIRTUAL_ENV", "PYTHONHOME", "BASH_ENV")


@dataclass(frozen=True, slots=True)
class Toolkit:
    """``environment`` is the whole one for its commands; ``version`` is CANN's, ``unknown`` where no file tells it."""

    set_env: Path
    environment: Mapping[str, str]
    version: str

    def command(self, name: str) -> str:
        """The path of a command on the toolkit's path. Raises :class:`FleetError` (``no-toolkit``)."""
        found = shutil.which(name, path=self.environment.get("PATH", ""))
        if found is None:
            raise FleetError(
                f"the toolkit of {self.set_env} has no {name}",
                code="no-toolkit",
                hint="a board with the runtime alone (nnrt) cannot compile: install the toolkit on it"
                if name == "atc"
                else f"install {name} on the board",
            )
        return found

    @property
    def python(self) -> str:
        """The Python that has ais_bench."""
        return os.environ.get(PYTHON) or self.command("python3")


def candidates(environment: Mapping[str, str]) -> list[Path]:
    """Files that may set the toolkit's environment, the first that is there counts."""
    if environment.get(SET_ENV):
        return [Path(environment[SET_ENV])]
    homes = [Path(environment[name]) for name in _HOMES if environment.get(name)]
    roots = [Path(root).expanduser() for root in _ROOTS]
    return [
        *(place / "set_env.sh" for home in homes for place in (home, home.parent)),
        *(root / package / "set_env.sh" for package in _PACKAGES for root in roots),
    ]


def find() -> Toolkit:
    """The toolkit of this board. Raises :class:`FleetError`: ``no-toolkit``, ``unsafe-toolkit``."""
    places = candidates(os.environ)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FleetError(
            f"there is no CANN toolkit: none of {', '.join(map(str, places))} is there",
            code="no-toolkit",
            hint=f"install it, or name its set_env.sh in {SET_ENV} where the agent is started",
        )
    if found.stat().st_mode & 0o002:
        raise FleetError(
            f"{found} can be written by everybody; it is not run",
            code="unsafe-toolkit",
            hint=f"chmod o-w {found}, after a look at what is in it",
        )
    environment = sourced(found)
    return Toolkit(found, environment, version(environment))


def sourced(path: Path) -> dict[str, str]:
    """This process's environment after ``path`` was sourced by bash. Raises :class:`FleetError` (``no-toolkit``)."""
    # Not under `set -e`: the vendor's scripts have commands that fail. What they print is theirs alone.
    script = 'source "$1" >/dev/null 2>&1; printf "\\0FLEET\\0"; exec env -0'
    before = {name: value for name, value in os.environ.items() if name not in _OWN}
    if own := os.environ.get("VIRTUAL_ENV"):
        kept = [part for part in before.get("PATH", "").split(os.pathsep) if Path(part) != Path(own) / "bin"]
        before["PATH"] = os.pathsep.join(kept)
    done = run(
        ["bash", "--noprofile", "--norc", "-c", script, "fleet", str(path)], deadline=_DEADLINE, environment=before
    )
    _, marker, values = done.output.partition("\0FLEET\0")
    if done.status != 0 or not marker:
        raise FleetError(f"bash could not read {path} (exit status {done.status})", code="no-toolkit")
    pairs = (entry.partition("=") for entry in values.split("\0") if entry)
    return {name: value for name, _, value in pairs if name not in ("_", "SHLVL", "PWD", "OLDPWD")}


def version(environment: Mapping[str, str]) -> str:
    """CANN's version as its files tell it; ``unknown`` where none does."""
    home = next((environment[name] for name in _HOMES if environment.get(name)), "")
    if home:
        for name in (f"{platform.machine()}-linux/ascend_toolkit_install.info", "version.cfg", "version.info"):
            try:
                with (Path(home) / name).open(errors="replace") as file:
                    found = _version(file.read(_INFO))
            except OSError:
                continue
            if found:
                return found
    return "unknown"


def _version(text: str) -> str:
    plain = re.search(r"^\s*[Vv]ersion\s*=\s*\[?([\w.:+-]+)", text, re.M)
    if plain is None:
        plain = re.search(r"version\w*\s*=\s*\[?([\w.:+-]+)", text)
    return plain[1].rpartition(":")[2] if plain else ""
