"""Programs as files of a bundle, and what a device half says before it loads one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from targets import base
from targets.base import Requirements
from targets.vta import device as device_half
from targets.vta import files, isa
from targets.vta.config import DEFAULT, PAGE
from targets.vta.program import Buffer, Layer, Port, Program, ProgramError, Segment


def program(seed: int = 0) -> Program:
    """Only bytes: nothing here is executed."""
    data = np.random.default_rng(seed).integers(0, 256, 512, np.uint8).tobytes()
    return Program(
        model="net",
        config=DEFAULT,
        table=isa.decode(bytes(16) * 3, DEFAULT),
        segments=(Segment(PAGE, 2 * PAGE),),
        buffers=(
            Buffer("x", "input", isa.Memory.INP, PAGE, 16),
            Buffer("a/../b", "weight", isa.Memory.WGT, PAGE + 256, 512),
            Buffer("uop", "uop", isa.Memory.UOP, PAGE + 1024, 4),
        ),
        inputs=(Port("x", "x", (1, 16, 1, 1), -4),),
        outputs=(Port("x", "x", (1, 16, 1, 1), -4),),
        layers=(Layer("conv", "conv2d", 0, 3),),
        constants={"a/../b": data, "uop": b"\1\2\3\4"},
        notes=("said",),
    )


@dataclass
class Bundle:
    root: Path

    @property
    def manifest(self) -> Any:
        names = [str(path.relative_to(self.root)) for path in sorted(self.root.rglob("*")) if path.is_file()]
        return SimpleNamespace(files=[SimpleNamespace(path=name) for name in names])

    def path(self, name: str) -> Path:
        return self.root / name


def test_programs_come_back_as_they_were(tmp_path: Path) -> None:
    written = files.program_files([program(0), program(1)], tmp_path)
    assert [(file.name, file.role) for file in written[:4]] == [
        ("program-0.json", "extra"),
        ("program-0/00000", "extra"),
        ("program-0/00001", "weight"),
        ("program-0/00002", "extra"),
    ]
    found = files.read_programs(Bundle(tmp_path))
    assert [one.parts() for one in found] == [program(0).parts(), program(1).parts()]
    assert found[0].header() == program(0).header() and found[1].notes == ("said",)


def test_retrained_weights_change_their_own_file_and_the_header(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        files.program_files([program(seed)], tmp_path / str(seed))
    changed = [
        name
        for name in ("program-0.json", "program-0/00000", "program-0/00001", "program-0/00002")
        if (tmp_path / "0" / name).read_bytes() != (tmp_path / "1" / name).read_bytes()
    ]
    assert changed == ["program-0.json", "program-0/00001"]


def test_altered_and_missing_parts_are_refused(tmp_path: Path) -> None:
    files.program_files([program()], tmp_path)
    part = tmp_path / "program-0/00001"
    kept = part.read_bytes()
    part.write_bytes(kept[:-1] + b"\0" if kept[-1] else kept[:-1] + b"\1")
    with pytest.raises(ProgramError, match="altered"):
        files.read_programs(Bundle(tmp_path))
    part.unlink()
    with pytest.raises(ProgramError, match="no part"):
        files.read_programs(Bundle(tmp_path))
    header = tmp_path / "program-0.json"
    document = msgspec.json.decode(header.read_bytes())
    document["segments"][0]["size"] = 7
    header.write_bytes(msgspec.json.encode(document))
    with pytest.raises(ProgramError, match="segment"):
        files.read_programs(Bundle(tmp_path))


def test_what_a_device_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, simulated = base.device_half("pynq", False), base.device_half("pynq", True)
    wanted = Requirements(accelerator=DEFAULT.identity)
    assert "no bitstream" in real.unmet(wanted) and "vta bitstream fetch" in real.unmet(wanted)
    assert real.unmet(Requirements()) == "" and simulated.unmet(wanted) == ""
    assert "vax" in simulated.unmet(Requirements(machine="vax", accelerator=DEFAULT.identity))
    monkeypatch.setattr(device_half, "find_spec", lambda name: None)
    assert "numba is not installed" in simulated.unmet(wanted)
    assert isinstance(real, base.ExclusiveDevice) and real.exclusive
    assert isinstance(simulated, base.ExclusiveDevice) and not simulated.exclusive
