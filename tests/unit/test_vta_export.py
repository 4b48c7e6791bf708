"""Programs as folders, ours and other people's."""

import json
from collections.abc import Callable
from pathlib import Path

import made_vta_program
import msgspec
import numpy as np
import pytest

from targets.base import FleetError
from targets.vta import export, isa
from targets.vta.config import DEFAULT, PAGE, load
from targets.vta.export import ExportError
from targets.vta.layout import pack, unpack
from targets.vta.program import Program
from targets.vta.simulator import Simulator

OLD = load(f"{DEFAULT.name}@0.0.1")


@pytest.fixture(scope="module")
def program() -> Program:
    return made_vta_program.relu()


@pytest.fixture
def folder(program: Program, tmp_path: Path) -> Path:
    export.export(program, tmp_path / "out", export.random_inputs(program, 1), "random numbers, seed 1")
    return tmp_path / "out"


def refused(do: Callable[[], object], code: str) -> FleetError:
    with pytest.raises(FleetError) as caught:
        do()
    assert caught.value.code == code, caught.value.message
    return caught.value


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_a_folder_holds(program: Program, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["insn.bin", "dram.bin", "dram_expected.bin", "layout.json"]
    )
    assert (folder / "insn.bin").read_bytes() == isa.encode(program.table, program.config)
    before = np.frombuffer((folder / "dram.bin").read_bytes(), np.int8)
    after = np.frombuffer((folder / "dram_expected.bin").read_bytes(), np.int8)
    layout = json.loads((folder / "layout.json").read_text())
    assert len(before) == len(after) == layout["dram_size"] == 5 * PAGE
    assert not before[:PAGE].any() and not after[:PAGE].any()
    assert layout["config"] == program.config.to_json()
    assert layout["instructions"] == len(program.table)
    assert layout["input_origin"] == "random numbers, seed 1"
    assert layout["counters"]["gemm_counter"] == made_vta_program.PIXELS
    places = {buffer["name"]: buffer for buffer in layout["buffers"]}
    assert {name: place["role"] for name, place in places.items()} == {
        "x": "input",
        "y": "output",
        "w": "weight",
        "u": "uop",
    }
    assert places["w"]["memory"] == "WGT"

    def tensor(memory: np.ndarray, name: str) -> np.ndarray:
        place = places[name]
        packed = memory[place["address"] : place["address"] + place["size"]]
        return unpack(packed, made_vta_program.SHAPE, DEFAULT)

    x, y = tensor(before, "x"), tensor(after, "y")
    assert x.min() < -100 and x.max() > 100
    assert np.array_equal(y, np.maximum(x, 0))
    # Nothing but the output has changed.
    changed = np.flatnonzero(before != after)
    assert changed.min() >= places["y"]["address"]
    assert changed.max() < places["y"]["address"] + places["y"]["size"]


@pytest.mark.parametrize("only_needed", [False, True])
def test_a_folder_runs_as_the_program_does(program: Program, folder: Path, only_needed: bool) -> None:
    if only_needed:
        (folder / "layout.json").unlink()
        (folder / "dram_expected.bin").unlink()
        # Zeros at the end need not be there.
        data = (folder / "dram.bin").read_bytes()
        (folder / "dram.bin").write_bytes(data.rstrip(b"\0"))
    found = export.import_folder(folder)
    assert found.config.identity == DEFAULT.identity
    assert found.name == ("out" if only_needed else "relu")
    assert np.array_equal(found.table, program.table)
    if not only_needed:
        assert export.first_difference(found) != ""
    counters = Simulator(found.config).run(found.table, found.dram)
    assert counters.bytes_moved == 4 + 2 * 256 + 256
    assert export.first_difference(found) == ""
    assert (found.expected is None) == only_needed
    x = found.dram[PAGE : PAGE + 256].view(np.int8)
    assert np.array_equal(found.dram[2 * PAGE : 2 * PAGE + 256].view(np.int8), np.maximum(x, 0))


def test_a_wrong_byte_is_found_and_named(folder: Path) -> None:
    found = export.import_folder(folder)
    Simulator(found.config).run(found.table, found.dram)
    found.dram[2 * PAGE + 7] ^= 0x55
    assert "1 bytes differ, the first at address 0x2007 in buffer 'y'" in export.first_difference(found)


def test_expected_memory_may_be_shorter_but_not_different(folder: Path) -> None:
    data = (folder / "dram_expected.bin").read_bytes()
    (folder / "dram_expected.bin").write_bytes(data[: 2 * PAGE])
    found = export.import_folder(folder)
    Simulator(found.config).run(found.table, found.dram)
    assert export.first_difference(found) == f"memory beyond address {2 * PAGE} is not 0"


def test_the_older_instruction_layout(tmp_path: Path) -> None:
    program = made_vta_program.relu(OLD)
    export.export(program, tmp_path, export.random_inputs(program, 1), "")
    found = export.import_folder(tmp_path)
    assert found.config.identity == OLD.identity
    assert np.array_equal(found.table, program.table)
    refused(lambda: export.import_folder(tmp_path, DEFAULT), "wrong-configuration")
    # Without its layout the folder is what one says it is.
    (tmp_path / "layout.json").unlink()
    assert np.array_equal(export.import_folder(tmp_path, OLD).table, program.table)


def test_inputs_that_do_not_fit(program: Program, tmp_path: Path) -> None:
    x = export.random_inputs(program, 0)
    for wrong in ([], [*x, *x], [x[0][:-1]], [x[0].view(np.uint8)]):
        with pytest.raises(ExportError):
            export.export(program, tmp_path / "never", wrong, "")
    assert not (tmp_path / "never").exists()


def test_random_inputs_are_the_same_everywhere(program: Program) -> None:
    (x,) = export.random_inputs(program, 0)
    expected = np.random.default_rng(0).integers(-127, 128, made_vta_program.SHAPE).astype(np.int8)
    assert np.array_equal(x, pack(expected, DEFAULT).reshape(-1))


@pytest.mark.parametrize("name", ["insn.bin", "dram.bin"])
def test_both_files_are_needed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refused(lambda: export.import_folder(folder), "bad-vta-folder")
    assert name in error.message
    (folder / name).mkdir()
    refused(lambda: export.import_folder(folder), "bad-vta-folder")


@pytest.mark.parametrize("data", [b"", bytes(15), bytes(17)])
def test_no_number_of_instructions(folder: Path, data: bytes) -> None:
    (folder / "insn.bin").write_bytes(data)
    refused(lambda: export.import_folder(folder), "bad-vta-folder")


def test_instructions_that_are_none(folder: Path) -> None:
    (folder / "insn.bin").write_bytes(b"\x07" + bytes(15))
    refused(lambda: export.import_folder(folder), "bad-vta-program")
    memory_7 = isa.table([isa.row(isa.Opcode.LOAD, memory=7, x_size=1, y_size=1)])
    (folder / "insn.bin").write_bytes(isa.encode(memory_7, DEFAULT))
    refused(lambda: export.import_folder(folder), "bad-vta-program")


def test_an_instruction_that_reaches_too_far_is_refused_before_memory_is_taken(folder: Path) -> None:
    far = isa.table([isa.row(isa.Opcode.STORE, memory=4, x_size=1, y_size=1, dram_base=(1 << 32) - 1)])
    (folder / "insn.bin").write_bytes(isa.encode(far, DEFAULT))
    assert "the most is" in refused(lambda: export.import_folder(folder), "bad-vta-folder").message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema": 2}, "bad-vta-folder"),
        ({"buffers": 1}, "bad-vta-folder"),
        ({"config": {"LOG_BLOCK": 9}}, "bad-vta-config"),
        ({"config": {"LOG_BLOK": 4}}, "bad-vta-config"),
        ({"config": {"LOG_BLOCK": "x"}}, "bad-vta-config"),
        ({"dram_size": 1 << 40}, "bad-vta-folder"),
        ({"layers": [{"name": "a", "operator": "b", "first": 0, "last": 99}]}, "bad-vta-folder"),
    ],
)
def test_layouts_that_are_none(folder: Path, changes: dict[str, object], code: str) -> None:
    change(folder / "layout.json", **changes)
    refused(lambda: export.import_folder(folder), code)


def test_a_layout_that_is_no_json(folder: Path) -> None:
    (folder / "layout.json").write_bytes(b"\xff\x00")
    refused(lambda: export.import_folder(folder), "bad-vta-folder")


def test_a_layout_may_say_little(folder: Path) -> None:
    (folder / "layout.json").write_bytes(msgspec.json.encode({"config": DEFAULT.to_json(), "comment": "by hand"}))
    found = export.import_folder(folder)
    assert (found.layers, found.buffers) == ((), ())
