"""The driver of Ascend boards from data files: what a tool printed in, readings out; a job in, its command line out."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.ascend import ais_bench, atc, atc_errors, npu_smi, process, toolkit
from targets.ascend.plan import Plan, checked, decode, encode, tolerance
from targets.base import BundleError, FleetError

_DATA = Path(__file__).parent / "ascend_driver"


def _cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in json.loads((_DATA / name).read_text())]


# --- npu-smi ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _cases("npu_smi.json"))
def test_chips_of_a_table(case: dict[str, Any]) -> None:
    board = npu_smi.parse("\n".join(case["text"]))
    assert board.driver == case["driver"]
    assert [
        [
            *(chip.npu, chip.index, chip.device, chip.name, chip.health, chip.power_w, chip.temperature_c),
            *(chip.aicore_percent, chip.memory_used_mb, chip.memory_total_mb),
        ]
        for chip in board.chips
    ] == case["chips"]


@given(st.text(alphabet="|+-=: 0123456789NAOKabc.\n", max_size=400))
def test_no_table_is_too_strange(text: str) -> None:
    for chip in npu_smi.parse(text).chips:
        assert chip.npu >= 0 and chip.device >= 0


def test_the_chip_is_chosen_by_its_logic_id() -> None:
    board = npu_smi.parse("\n".join(json.loads((_DATA / "npu_smi.json").read_text())[2]["text"]))
    assert npu_smi.choose(board).npu == 2 and npu_smi.choose(board, "2").npu == 5
    with pytest.raises(FleetError) as caught:
        npu_smi.choose(board, "7")
    assert caught.value.code == "no-chip" and "0, 1, 2" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "board", "soc"),
    [
        ("310", "", "Ascend310"),
        ("310P3", "", "Ascend310P3"),
        ("910B", "", "Ascend910B"),
        ("Ascend910", "\tChip Name                      : Ascend910\n\tNPU Name    : 9382\n", "Ascend910_9382"),
    ],
)
def test_what_atc_calls_a_chip(name: str, board: str, soc: str) -> None:
    assert npu_smi.soc_version(npu_smi.Chip(0, 0, 0, name, "OK"), board) == soc


def test_a_chip_that_does_not_tell_its_kind() -> None:
    with pytest.raises(FleetError, match="does not say which"):
        npu_smi.soc_version(npu_smi.Chip(0, 0, 0, "Ascend910", "OK"), "This device does not support querying board.\n")


# --- atc ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _cases("atc_commands.json"))
def test_atcs_command_line(case: dict[str, Any]) -> None:
    plan = msgspec.convert(case["plan"], Plan)
    assert atc.command(plan, "/opt/bin/atc", case["soc"]) == case["command"]


@pytest.mark.parametrize("case", _cases("atc_errors.json"))
def test_why_atc_failed(case: dict[str, Any]) -> None:
    found = atc_errors.explain("\n".join(case["output"]), case["status"])
    assert found.code == case["code"]
    assert all(words in found.message for words in case["contains"]), found.message
    assert case["hint"] in found.hint


@given(st.text(max_size=300), st.integers(-20, 255))
def test_whatever_atc_prints_is_a_reason(text: str, status: int) -> None:
    assert atc_errors.explain(text, status).message


# --- ais_bench ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _cases("ais_bench_commands.json"))
def test_the_command_line_of_ais_bench(case: dict[str, Any]) -> None:
    fields = case["job"]
    job = ais_bench.Job(**{**fields, "inputs": tuple(fields["inputs"])})
    assert ais_bench.command(job, "python3") == case["command"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(1.12): 892.8571428571428",
            (1.0, 1.12, 892.8571428571428),
        ),
        (
            "\r[INFO] throughput 1000*batchsize(16)/NPU_compute_time.mean(0.6610000133514404): 24205.7",
            (16.0, 0.6610000133514404, 24205.7),
        ),
        ("[INFO] throughput 1000*batchsize.mean(x)/NPU_compute_time.mean(1.12): 892", None),
        ("[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(nan): 892", None),
        ("", None),
    ],
)
def test_the_throughput_that_it_prints(line: str, wanted: Any) -> None:
    assert ais_bench.throughput(f"[INFO] acl init success\n{line}\n[INFO] unload model success\n") == wanted


# --- Plans and options --------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = msgspec.convert(json.loads((_DATA / "atc_commands.json").read_text())[2]["plan"], Plan)
    assert decode(encode(plan)) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"inputs": [{"name": "a;--output=/etc/x", "shape": [1]}]},
        {"soc_version": "Ascend310 --mode=1"},
        {"precision_mode": "best"},
        {"batch": 0},
        {"batches": [1, 9999]},
        {"schema": 2},
    ],
)
def test_a_plan_of_a_stranger(change: dict[str, Any]) -> None:
    plan = {"inputs": [{"name": "image", "shape": [1, 3, 8, 8]}], "tensors": [], **change}
    with pytest.raises(BundleError):
        decode(json.dumps(plan).encode())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, (0, ())),
        ({"batch": 8}, (8, ())),
        ({"batches": "1, 4,8"}, (1, (1, 4, 8))),
        ({"batches": "4,1", "batch": 1, "tolerance": 1}, (1, (4, 1))),
    ],
)
def test_batches(options: dict[str, Any], wanted: Any) -> None:
    assert checked(options) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 4096},
        {"batches": "4"},
        {"batches": "1,1"},
        {"batches": "1;2"},
        {"batches": "1,4", "batch": 2},
        {"batches": "1,4", "aipp": True},
        {"soc_version": "310P3"},
        {"precision_mode": "int8"},
        {"tolerance": -1.0},
        {"colour": "red"},
        {"aipp": "yes"},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(FleetError) as caught:
        checked(options)
    assert caught.value.code == "bad-option"


def test_what_is_computed_in_half_precision_may_be_farther_off() -> None:
    assert tolerance({}) == tolerance({"precision_mode": "fp16"}) > tolerance({"precision_mode": "origin"})
    assert tolerance({"tolerance": 0.5}) == 0.5


# --- The toolkit --------------------------------------------------------------------------------


def _set_env(folder: Path, text: str) -> Path:
    path = folder / "set_env.sh"
    path.write_text(text)
    return path


def test_the_toolkits_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "latest"
    home.mkdir()
    (home / "version.cfg").write_text("# comment\nversion=8.0.RC1\n")
    path = _set_env(
        tmp_path,
        f"echo noise; false; unset NOT_THERE\nexport ASCEND_TOOLKIT_HOME={home}\nexport ASCEND_HOME_PATH={home}\n"
        'export LINES_OF="a\nb"\nexport PATH=/opt/ascend/bin:$PATH\n',
    )
    monkeypatch.setenv(toolkit.SET_ENV, str(path))
    monkeypatch.setenv("VIRTUAL_ENV", "/some/venv")
    monkeypatch.setenv("PATH", f"/some/venv/bin:{os.environ['PATH']}")
    found = toolkit.find()
    assert found.version == "8.0.RC1" and found.environment["LINES_OF"] == "a\nb"
    assert found.environment["PATH"].startswith("/opt/ascend/bin:") and "/some/venv" not in found.environment["PATH"]
    with pytest.raises(FleetError, match="has no atc") as caught:
        found.command("atc")
    assert caught.value.code == "no-toolkit" and "nnrt" in caught.value.hint


def test_no_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolkit.SET_ENV, str(tmp_path / "set_env.sh"))
    with pytest.raises(FleetError) as caught:
        toolkit.find()
    assert caught.value.code == "no-toolkit" and toolkit.SET_ENV in caught.value.hint


def test_a_toolkit_that_anybody_may_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _set_env(tmp_path, f"touch {tmp_path}/ran\n")
    path.chmod(0o666)
    monkeypatch.setenv(toolkit.SET_ENV, str(path))
    with pytest.raises(FleetError) as caught:
        toolkit.find()
    assert caught.value.code == "unsafe-toolkit" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("package_name=Ascend-cann-toolkit\nversion=8.0.0\ninnerversion=V100R001\n", "8.0.0"),
        ("# version: 1.0\nruntime_running_version=[7.0.0.1.242:8.0.RC1]\n", "8.0.RC1"),
        ("Version=6.3.RC2\n", "6.3.RC2"),
        ("nothing\n", "unknown"),
    ],
)
def test_versions_of_cann(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "version.cfg").write_text(text)
    assert toolkit.version({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == wanted


# --- Processes ----------------------------------------------------------------------------------


def test_lines_come_as_they_are_printed_and_carriage_returns_end_them() -> None:
    code = r"print('one\rtwo\x1b[31m red\nthree', end='', flush=True)"
    lines: list[str] = []
    done = process.run([sys.executable, "-c", code], deadline=30, on_line=lines.append)
    assert done.status == 0 and lines == ["one", "two red", "three"]


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_says_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_WAIT", 0.1)
    told: list[float] = []
    with pytest.raises(process.TimedOut):
        process.run(["sleep", "60"], deadline=1.5, on_wait=told.append)
    assert told and told == sorted(told) and told[0] >= 0.1 and told[-1] <= 1.5


def test_at_the_deadline_all_that_was_started_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"echo $$ > {pids}; sleep 300 & echo $! >> {pids}; (sleep 300 & echo $! >> {pids}; wait) & echo on; wait"
    begin = time.monotonic()
    with pytest.raises(process.TimedOut) as caught:
        process.run(["bash", "-c", script], deadline=1.0)
    assert time.monotonic() - begin < 20 and "on" in caught.value.output
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 3
    # A killed process is gone a moment after the signal.
    until = time.monotonic() + 20
    while any(map(_runs, started)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_runs, started))


def test_output_without_end_fills_neither_memory_nor_disk() -> None:
    code = (
        "import sys; block = b'x' * 65536\nfor _ in range(400): sys.stdout.buffer.write(block)\nprint(); print('end')"
    )
    log = io.BytesIO()
    done = process.run([sys.executable, "-c", code], deadline=60, log=log)
    assert done.output.endswith("end\n") and len(done.output) < 2 << 20 and len(log.getvalue()) <= 8 << 20


def test_what_a_command_leaves_running_is_not_waited_for() -> None:
    begin = time.monotonic()
    done = process.run(["bash", "-c", "sleep 20 & echo $!"], deadline=60)
    assert time.monotonic() - begin < 15 and done.status == 0
    process.end(int(done.output))


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FleetError) as caught:
        process.run(["/does/not/exist"], deadline=5)
    assert caught.value.code == "not-started"


# --- What is kept on the board ------------------------------------------------------------------


class _Toolkit:
    """A toolkit whose ATC is a script: it copies the model, or prints what it is told."""

    version = "8.0"

    def __init__(self, folder: Path, script: str) -> None:
        self._atc = folder / "atc"
        self._atc.write_text(f"#!/bin/sh\n{script}\n")
        self._atc.chmod(0o755)
        self.environment = dict(os.environ)

    def command(self, _name: str) -> str:
        return str(self._atc)


def _compile(tmp_path: Path, script: str) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / atc.MODEL).write_bytes(b"model")
    plan = msgspec.convert({"inputs": [{"name": "x", "shape": [1, 3]}], "tensors": []}, Plan)
    made = _Toolkit(tmp_path, script)
    log = tmp_path / "kept.log"
    return atc.compile_model(plan, made, "Ascend310", work, log, lambda _: None, lambda _: None)  # type: ignore[arg-type]


def test_atc_succeeded_if_it_says_so_and_there_is_a_model(tmp_path: Path) -> None:
    made = _compile(tmp_path, "echo 'ATC start working now'; cp model.onnx model.om; echo 'ATC run success, welcome'")
    assert made.read_bytes() == b"model"
    kept = (tmp_path / "kept.log").read_text()
    assert "--soc_version=Ascend310" in kept.splitlines()[0] and "ATC run success" in kept


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'ATC run success'; exit 0", "made no .om"),
        ("cp model.onnx model.om; echo 'ATC run success'; exit 3", "exit status 3"),
        ("cp model.onnx model.om; echo done", "exit status 0"),
    ],
)
def test_what_is_no_success(tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises(FleetError) as caught:
        _compile(tmp_path, script)
    assert caught.value.code == "atc-failed" and words in caught.value.message and "kept.log" in caught.value.hint


def test_without_room_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(atc.os, "statvfs", lambda _path: os.statvfs_result((*real[:3], 1, 1, *real[5:])))
    with pytest.raises(FleetError) as caught:
        _compile(tmp_path, f"touch {tmp_path}/ran")
    assert caught.value.code == "disk-full" and not (tmp_path / "ran").exists()


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(atc.DEADLINE_VARIABLE, "soon")
    with pytest.raises(FleetError, match="no number of seconds"):
        atc.seconds(atc.DEADLINE_VARIABLE, 1.0)
