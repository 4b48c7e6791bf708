"""The command `vta` without models: help, configurations, bitstreams, programs, and bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_vta_program
import msgspec
import numpy as np
import pytest
from made_bitstream import bit, listed
from typer.main import get_command

from controller.vta import subjects
from controller.vta.main import app, execute
from targets.vta import config as configurations
from targets.vta import isa
from targets.vta.config import DEFAULT
from targets.vta.export import export, random_inputs

HEAVY = ("numpy", "tvm", "torch", "numba", "sqlalchemy", "zmq", "PIL", "onnx", "scipy", "ruamel", "asyncio")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working directory of the test's own, with a program and its folder."""
    monkeypatch.setenv("FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    program = made_vta_program.relu()
    program.save(tmp_path / "relu.vta")
    export(program, tmp_path / "relu", random_inputs(program, 0), "")
    return tmp_path


class Vta:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        code = execute([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        code, out, err = self(*arguments, "--json")
        assert code == 0, out + err
        document: dict[str, Any] = json.loads(out)
        assert document.pop("schema") == 1
        return document

    def refused(self, *arguments: str | Path, code: str, status: int = 2) -> dict[str, str]:
        got, out, _ = self(*arguments, "--json")
        error: dict[str, str] = json.loads(out)["error"]
        assert (error["code"], got) == (code, status), error
        assert error["message"]
        return error


@pytest.fixture
def vta(capsys: pytest.CaptureFixture[str]) -> Vta:
    return Vta(capsys)


def test_every_command_has_help_and_json(vta: Vta) -> None:
    commands = getattr(get_command(app), "commands", {})
    assert {"build", "sim", "export", "disasm", "check", "config", "bitstream"} == set(commands)
    paths = [[name] for name in commands] + [["bitstream", name] for name in commands["bitstream"].commands]
    for path in paths:
        code, out, err = vta(*path, "--help")
        assert (code, err) == (0, "")
        assert "--json" in out and "--debug" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom controller.vta.main import execute\n"
        "for command in ([], ['sim'], ['build'], ['bitstream', 'list']): assert execute([*command, '--help']) == 0\n"
        f"print('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_a_command_that_is_none(vta: Vta) -> None:
    assert "vta" in vta.refused("simulate", code="usage")["hint"]


# --- Configurations -----------------------------------------------------------------------------


def test_the_configuration_of_a_board(vta: Vta) -> None:
    found = vta.good("config", "pynq")
    assert found["identity"] == "1x16_i8w8a32_15_15_18_17@0.0.2"
    assert found["config"]["TARGET"] == "pynq"
    assert {m["memory"]: (m["element_bytes"], m["depth"]) for m in found["memories"]} == {
        "UOP": (4, 8192),
        "INP": (16, 2048),
        "WGT": (256, 1024),
        "ACC": (64, 2048),
        "OUT": (16, 2048),
    }
    assert found["instructions"]["ALU"]["imm"] == [112, 16]
    assert vta.good("config", "pynq-4x8")["name"] == "4x8_i8w8a32_15_16_16_18"
    assert vta.good("config", f"{DEFAULT.name}@0.0.1")["instructions"]["ALU"]["imm"] == [111, 16]
    code, out, _ = vta("config")
    assert code == 0
    assert "LOG_BLOCK" in out and "channels in a block" in out


def test_a_written_configuration_is_read_again(vta: Vta, place: Path) -> None:
    vta.good("config", "ultra96", "-o", "vta_config.json")
    document = json.loads((place / "vta_config.json").read_text())
    assert document == vta.good("config", "vta_config.json")["config"] == vta.good("config", "ultra96")["config"]
    assert configurations.load("vta_config.json").target == "ultra96"


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"LOG_BLOCK": 3}, "LOG_WGT_BUFF_SIZE"),
        ({"LOG_BLOCK": 12}, "LOG_BLOCK"),
        ({"HW_VER": "0.0.9"}, "HW_VER"),
        ({"LOG_INP_WIDTH": 4}, "LOG_INP_WIDTH"),
        ({"LOG_BLOK": 4}, "LOG_BLOK"),
        ([], "not an object"),
    ],
)
def test_a_configuration_whose_fields_do_not_fit(vta: Vta, place: Path, document: object, names: str) -> None:
    (place / "c.json").write_text(json.dumps(document))
    assert names in vta.refused("config", "c.json", code="bad-vta-config")["message"]


def test_a_configuration_that_is_not_there(vta: Vta) -> None:
    for name in ("kv260", "../../etc/passwd", f"{DEFAULT.name}@9"):
        vta.refused("config", name, code="bad-vta-config")
    vta.refused("config", "-o", "no/such/folder.json", code="usage")


# --- Bitstreams ---------------------------------------------------------------------------------


def test_bitstreams_are_listed_by_board(vta: Vta) -> None:
    everything = vta.good("bitstream")["bitstreams"]
    assert everything == vta.good("bitstream", "list")["bitstreams"]
    pynq = vta.good("bitstream", "list", "--board", "pynq")["bitstreams"]
    assert pynq == [one for one in everything if one["board"] == "pynq"]
    assert all(one["path"] == "" for one in everything)
    assert all(len(one["sha256"]) == 64 for one in pynq)
    vta.refused("bitstream", "list", "--board", "x", code="unknown-board")
    code, out, _ = vta("bitstream")
    assert code == 0
    assert "0b24cdf9001d3495" in out


def test_a_file_is_checked(vta: Vta, place: Path) -> None:
    data = bit()
    (place / "x.bit").write_bytes(data)
    (place / "own.json").write_bytes(msgspec.json.encode([listed(data)]))
    vta.refused("bitstream", "check", "x.bit", code="unknown-bitstream")
    good = ("bitstream", "check", "x.bit", "--manifest", "own.json")
    found = vta.good(*good, "--board", "pynq", "--config", "pynq")["bitstream"]
    assert (found["part"], found["identity"], found["idcode"]) == ("7z020clg484", DEFAULT.identity, "0x03727093")
    vta.refused(*good, "--board", "ultra96", code="wrong-part")
    vta.refused(*good, "--config", "pynq-4x8", code="wrong-configuration")
    vta.refused(*good, "--config", f"{DEFAULT.name}@0.0.1", code="wrong-configuration")
    vta.refused(*good, "--sha256", "0" * 64, code="wrong-digest")
    assert vta.good("bitstream", "check", "x.bit", "--sha256", found["sha256"].upper())["bitstream"]["size"] == len(
        data
    )
    (place / "x.bit").write_bytes(data[:-4])
    vta.refused(*good, code="bad-bitstream")
    vta.refused("bitstream", "check", "none.bit", code="no-such-file")
    vta.refused("bitstream", "fetch", "nothing", code="unknown-bitstream")


# --- Programs -----------------------------------------------------------------------------------


def test_a_program_and_its_folder_read_alike(vta: Vta) -> None:
    program, folder = vta.good("disasm", "relu.vta"), vta.good("disasm", "relu")
    assert program == folder
    lines = program["instructions"]
    assert lines[0] == "; relu (conv2d)"
    assert "LOAD INP" in lines[2]
    code, out, _ = vta("disasm", "relu.vta")
    assert (code, out.splitlines()) == (0, lines)
    assert vta.good("disasm", "relu.vta", "--layer", "relu")["instructions"] == lines
    shown = vta.good("disasm", "relu.vta", "--uops")["instructions"]
    assert len(shown) == len(lines) + 1
    assert vta.good("disasm", "relu.vta", "--uops", "--layer", "relu")["instructions"] == shown
    assert "relu" in vta.refused("disasm", "relu.vta", "--layer", "x", code="usage")["hint"]


def test_a_layer_s_lines_are_those_between_its_bounds() -> None:
    lines = ["; a (conv2d)", "0 LOAD UOP", ";   uop 0", "1 GEMM", "; b (conv2d)", "2 LOAD UOP", ";   uop 0", "3 FINISH"]
    assert list(subjects.instructions(lines, 0, 1)) == lines[:3]
    assert list(subjects.instructions(lines, 0, 2)) == lines[:4]
    assert list(subjects.instructions(lines, 2, 4)) == lines[4:]
    assert list(subjects.instructions(lines, 2, 2)) == []


def test_an_unsafe_program_is_found_out(vta: Vta, place: Path) -> None:
    assert vta.good("check", "relu.vta") == {"program": "relu", "config": DEFAULT.identity, "findings": []}
    assert vta.good("check", "relu")["findings"] == []
    table = made_vta_program.relu().table.copy()
    table["push_next"][2] = 0
    (place / "relu" / "insn.bin").write_bytes(isa.encode(table, DEFAULT))
    code, out, _ = vta("check", "relu", "--json")
    findings = json.loads(out)["findings"]
    assert code == 1
    assert {"deadlock"} <= {finding["rule"] for finding in findings}
    assert set(findings[0]) == {"instruction", "rule", "message"}
    code, out, _ = vta("check", "relu")
    assert code == 1
    assert "deadlock" in out


@pytest.mark.parametrize("command", ["disasm", "check", "sim"])
def test_a_program_for_another_configuration(vta: Vta, command: str) -> None:
    for subject in ("relu.vta", "relu"):
        for other in ("pynq-4x8", f"{DEFAULT.name}@0.0.1"):
            vta.refused(command, subject, "--config", other, code="wrong-configuration")


@pytest.mark.parametrize("command", ["disasm", "check", "sim"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:4],
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"not a program",
        lambda data: b"",
    ],
    ids=["4 bytes", "30 bytes", "short", "long", "header", "part", "text", "empty"],
)
def test_a_truncated_or_altered_program(vta: Vta, place: Path, command: str, damage: Any) -> None:
    data = (place / "relu.vta").read_bytes()
    (place / "x.vta").write_bytes(damage(data))
    assert "x.vta" in vta.refused(command, "x.vta", code="bad-vta-program")["message"]


def test_what_is_no_program(vta: Vta, place: Path) -> None:
    vta.refused("disasm", "nothing", code="usage")
    (place / "empty").mkdir()
    for command in ("disasm", "check", "sim"):
        vta.refused(command, "empty", code="bad-vta-folder")
    vta.refused("export", "relu", "out", code="usage")
    vta.refused("export", "relu.vta", "relu.vta", code="usage")
    vta.refused("sim", "relu.vta", "--board", "x", code="unknown-board")
    vta.refused("sim", "relu.vta", "--timeline", "x.png", code="usage")
    vta.refused("sim", "relu.vta", "--dram-out", "relu", code="usage")
    vta.refused("sim", "relu.vta", "--weights", "random:0", code="usage")
    vta.refused("sim", "relu.vta", "--image", "x.png", code="usage")
    vta.refused("sim", "relu", "--input", "x.npy", code="usage")
    vta.refused("sim", "shapes-classifier", "--input", "x.npy", code="usage")


def test_inputs_of_a_program(vta: Vta, place: Path) -> None:
    x = np.random.default_rng(5).integers(-128, 128, made_vta_program.SHAPE).astype(np.int8)
    np.save(place / "x.npy", x)
    vta.good("export", "relu.vta", "out", "--input", "x.npy")
    memory = np.frombuffer((place / "out" / "dram_expected.bin").read_bytes(), np.int8)
    y = memory[0x2000 : 0x2000 + x.size].reshape(1, 4, 4, 16).transpose(0, 3, 1, 2)
    assert np.array_equal(y, np.maximum(x, 0))
    np.save(place / "float.npy", x.astype(np.float32))
    np.save(place / "small.npy", x[:, :8])
    np.save(place / "objects.npy", np.array([object()], dtype=object), allow_pickle=True)
    np.savez(place / "many.npz", x=x)
    (place / "text.npy").write_text("no array")
    for name in ("float.npy", "small.npy", "objects.npy", "many.npz", "text.npy", "none.npy"):
        assert name in vta.refused("export", "relu.vta", "never", "--input", name, code="bad-input")["message"]
    vta.refused("export", "relu.vta", "never", "--input", "x.npy", "--input", "x.npy", code="bad-input")
    assert not (place / "never").exists()
