"""Which Jetson this is: module, chip, L4T and what its JetPack brings. Read from files, without root or CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from targets.jetson.releases import CHIPS, MODULES, RELEASES, SERIES, Release
from targets.jetson.sysfs import Roots
from targets.sensors import text

#: Of ``dpkg-query``, in seconds.
DEADLINE = 5.0
_RELEASE = re.compile(r"#\s*R(\d{1,3})\s*\(release\)\s*,\s*REVISION:\s*(\d{1,3})(?:\.(\d{1,3}))?")
#: ``nvidia-l4t-core<TAB>36.4.3-20250107174145``
_PACKAGE = re.compile(r"\bnvidia-l4t-core\s+(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?\b")
_PART = re.compile(r"\bp\d{4}(?:-\d{4})?\b")


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a board; empty is what is not."""

    #: As the device tree says it: ``NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super``.
    model: str = ""
    #: Part number of the module, such as ``p3767-0005``, and its name.
    part: str = ""
    module: str = ""
    #: ``Orin``, and its GPU's compute capability: ``8.7``.
    chip: str = ""
    sm: str = ""
    #: ``36.4.3``, and what belongs to it; `release` says how well that is known.
    l4t: str = ""
    jetpack: str = ""
    #: What the JetPack installs; what programs use may be another.
    cuda: str = ""
    tensorrt: str = ""

    @property
    def is_jetson(self) -> bool:
        return bool(self.chip)

    def words(self) -> dict[str, str]:
        """What is known, as the conditions of a measurement keep it."""
        found = {
            "board": self.model,
            "module": f"{self.module} ({self.part})" if self.module else self.part,
            "chip": f"{self.chip} (sm_{self.sm.replace('.', '')})" if self.chip else "",
            "l4t": self.l4t,
            "jetpack": self.jetpack,
            "jetpack_cuda": self.cuda,
            "jetpack_tensorrt": self.tensorrt,
        }
        return {name: value for name, value in found.items() if value}


def find(roots: Roots | None = None) -> Identity:
    """Of this machine, or of a recorded tree."""
    here = roots is None
    roots = roots if roots is not None else Roots()
    tree = roots.proc / "device-tree"
    if not tree.is_dir():
        tree = roots.sys / "firmware/devicetree/base"
    compatible = text(tree / "compatible").replace("\0", " ")
    part = _part(f"{text(tree / 'nvidia,dtsfilename')} {compatible}")
    chip = next((chip for chip in CHIPS if chip.compatible in compatible.split()), None)
    l4t = parse_release(text(roots.etc / "nv_tegra_release"))
    if not l4t and here and chip is not None:
        l4t = parse_package(_dpkg())
    known = release(l4t)
    return Identity(
        model=_line(text(tree / "model")),
        part=part,
        module=_module(part),
        chip=chip.name if chip is not None else "",
        sm=chip.sm if chip is not None else "",
        l4t=l4t,
        jetpack=known.jetpack,
        cuda=known.cuda,
        tensorrt=known.tensorrt,
    )


def parse_release(printed: str) -> str:
    """L4T of the first line of ``/etc/nv_tegra_release``: ``# R36 (release), REVISION: 4.3, …`` is ``36.4.3``."""
    found = _RELEASE.search(printed[:4096])
    return f"{int(found[1])}.{int(found[2])}.{int(found[3] or 0)}" if found else ""


def parse_package(printed: str) -> str:
    """L4T of what ``dpkg-query --show nvidia-l4t-core`` prints."""
    found = _PACKAGE.search(printed[:4096])
    return f"{int(found[1])}.{int(found[2])}.{int(found[3] or 0)}" if found else ""


def release(l4t: str) -> Release:
    """What belongs to an L4T. One that is not listed is of JetPack ``6.x``, and has versions of its own minor only."""
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}\.\d{1,3}", l4t):
        return Release("", "", "", "")
    for known in RELEASES:
        if known.l4t == l4t:
            return known
    major, minor = l4t.split(".")[:2]
    series = SERIES.get(int(major))
    relatives = [known for known in RELEASES if known.l4t.startswith(f"{major}.{minor}.")]
    latest = relatives[-1] if relatives else Release(l4t, "", "", "")
    return Release(l4t, f"{series}.x" if series else "", latest.cuda, latest.tensorrt)


def _part(names: str) -> str:
    """Of all part numbers the module's: a board's has no name here."""
    parts = _PART.findall(names)
    return next((part for part in parts if _module(part)), "")


def _module(part: str) -> str:
    fitting = [start for start in MODULES if part.startswith(start)]
    return MODULES[max(fitting, key=len)] if fitting else ""


def _line(words: str) -> str:
    """Printable, of one line: it is shown as it is."""
    return "".join(character for character in words if character.isprintable())[:128]


def _dpkg() -> str:
    """Inside of a container the file is missing; the package may be there."""
    tool = shutil.which("dpkg-query")
    if tool is None:
        return ""
    try:
        done = subprocess.run(
            [tool, "--show", "nvidia-l4t-core"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
