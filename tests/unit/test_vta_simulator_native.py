"""The simulator's machine code: kept, found again without numba, and never believed when it is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets.vta import native

#: Runs a FINISH on the default configuration, says where machine code is looked for and whether numba was imported.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from targets.vta import isa
from targets.vta.config import DEFAULT
from targets.vta.simulator import Simulator
if len(sys.argv) > 1:
    from targets.vta import native
    native._folders = lambda: [Path(name) for name in sys.argv[1:]]
counters = Simulator(DEFAULT).run(isa.table([isa.row(isa.Opcode.FINISH)]), np.zeros(8192, np.uint8))
assert counters.gemm_counter == 0
print("numba" if "numba" in sys.modules else "linked")
"""


def run(*folders: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Block sizes that were compiled for; the compiler's answer is what it has once given."""
    answer = native._object(16)
    calls: list[int] = []

    def compile_again(block: int) -> tuple[str, bytes]:
        calls.append(block)
        return answer

    monkeypatch.setattr(native, "_compile", compile_again)
    return calls


def look_in(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setattr(native, "_folders", lambda: list(folders))


def test_compiled_once_then_linked(tmp_path: Path) -> None:
    assert run(tmp_path / "kept") == "numba"
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert run(tmp_path / "kept") == "linked"


def test_damaged_code_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[int]) -> None:
    look_in(monkeypatch, tmp_path)
    native.Loop(16)
    native.Loop(16)
    assert compiled == [16]
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        compiled.clear()
        native.Loop(16)
        assert compiled == [16]
        assert kept.read_bytes() == whole


def test_old_code_is_removed_and_other_processors_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[int]
) -> None:
    look_in(monkeypatch, tmp_path)
    old = tmp_path / f"vta-loop-16-{native._digest(*native._processor())[:16]}-old.o"
    other = tmp_path / "vta-loop-16-another-processor.o"
    old.write_bytes(b"old")
    other.write_bytes(b"another")
    native.Loop(16)
    assert not old.exists()
    assert other.read_bytes() == b"another"


def test_where_nothing_can_be_kept_it_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[int]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    look_in(monkeypatch, blocked / "below")
    native.Loop(16)
    native.Loop(16)
    assert compiled == [16, 16]
    second = tmp_path / "second"
    look_in(monkeypatch, blocked / "below", second)
    native.Loop(16)
    native.Loop(16)
    assert compiled == [16, 16, 16]
    assert len(list(second.iterdir())) == 1


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Path(native.__file__).parent / "__pycache__"
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    assert list(native._folders()) == [beside, tmp_path / "cache"]
    monkeypatch.delenv("FLEET_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(native._folders()) == [beside, tmp_path / "fleet"]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(native._folders()) == [beside, tmp_path / ".cache" / "fleet"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a folder to another user")
def test_a_folder_of_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 12345, -1)
    assert tmp_path / "cache" not in list(native._folders())


def test_who_starts_the_simulator_does_not_import_numba() -> None:
    run()
    assert run() == "linked"


@pytest.mark.parametrize("module", ["llvmlite", "numba"])
def test_what_is_not_installed_is_named(module: str, tmp_path: Path) -> None:
    script = f"import sys; sys.modules['{module}'] = None\n" + SCRIPT
    folders = [str(tmp_path)] if module == "numba" else []  # an empty one: there is nothing to link
    done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"FleetError: simulating the accelerator needs numba, and '{module}" in done.stderr
