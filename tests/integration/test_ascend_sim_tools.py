"""The installed executables of the simulated CANN as a driver starts them: shells, pipes, faults, several devices."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.ascend.sim import board as boards
from targets.ascend.sim import install, om
from targets.ascend.sim.board import Board, Card, Chip, Fault, Faults

PICTURE = (3, 8, 8)


class Machine:
    """A board with the tools, and a scratch folder in which they run."""

    def __init__(self, folder: Path, board: Board) -> None:
        folder.chmod(0o755)
        self.prefix = folder / "home" / install.PREFIX
        self.environment = {**os.environ, **install.install(folder / "home", board)}
        self.scratch = folder / "scratch"
        self.scratch.mkdir(mode=0o755)
        onnx.save(network(), self.scratch / "net.onnx")

    def command(self, *arguments: str) -> list[str]:
        """What a driver runs: the toolkit's environment, then the tool."""
        return ["bash", "-c", f'source "$FLEET_ASCEND_ENV" && exec {shlex.join(arguments)}']

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.scratch,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def atc(self, *flags: str) -> subprocess.CompletedProcess[str]:
        soc = boards.load(self.prefix).socs()[0]
        return self.run("atc", "--framework=5", "--model=net.onnx", f"--soc_version={soc}", *flags)

    def bench(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return self.run("python3", "-m", "ais_bench", *flags)

    def break_with(self, **faults: Fault) -> None:
        boards.save(Board(faults=Faults(**faults)), self.prefix)

    def pictures(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        values = np.random.default_rng(3).normal(size=(count, *PICTURE)).astype(np.float32)
        (self.scratch / "in").mkdir(mode=0o755)
        for number, value in enumerate(values):
            value.tofile(self.scratch / f"in/{number}.bin")
            (self.scratch / f"in/{number}.bin").chmod(0o644)
        return values


def network() -> onnx.ModelProto:
    kernels = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernels"], ["sums"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["sums"], ["found"], name="sigmoid"),
        ],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", *PICTURE))],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ("batch", 4, 8, 8))],
        [numpy_helper.from_array(kernels, "kernels")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def reference(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(network().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": values})[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, Board())


def outputs(folder: Path, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([np.fromfile(folder / f"{number}_0.bin", np.float32).reshape(4, 8, 8) for number in range(count)])


@pytest.mark.parametrize("flags", [("--precision_mode=force_fp32",), ()], ids=["single", "half"])
def test_a_network_from_onnx_to_files(machine: Machine, flags: tuple[str, ...]) -> None:
    made = machine.atc("--output=out/net_bs4", "--input_shape=image:4,3,8,8", *flags)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines()[-1] == "ATC run success, welcome to the next use."
    pictures = machine.pictures(6)
    done = machine.bench(
        "--model", "out/net_bs4.om", "--input", "in", "--output", ".", "--output_dirname", "result", "--batchsize", "4"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (machine.scratch / "result").iterdir()) == [f"{n}_0.bin" for n in range(6)]
    found, expected = outputs(machine.scratch / "result", 6), reference(pictures)
    if flags:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        # Half precision shows, and shows no more than it must.
        assert 1e-6 < np.abs(found - expected).max() < 1e-2
    summary = json.loads((machine.scratch / "result_summary.json").read_text())
    assert [summary["filesinfo"][str(n)]["infiles"] for n in range(6)] == [[f"in/{n}.bin"] for n in range(6)]
    assert summary["NPU_compute_time"]["count"] == 2
    rate = re.search(r"throughput 1000\*batchsize\.mean\(4\)/NPU_compute_time\.mean\((\S+)\): (\S+)", done.stdout)
    assert rate
    assert float(rate[1]) == summary["NPU_compute_time"]["mean"]
    assert float(rate[2]) == summary["throughput"] == pytest.approx(4000 / float(rate[1]))


def test_through_a_pipe_the_librarys_lines_come_last(machine: Machine) -> None:
    machine.atc("--output=net", "--input_shape=image:1,3,8,8")
    lines = machine.bench("--model", "net.om", "--loop", "3").stdout.splitlines()
    assert lines.index("[INFO] acl init success") > lines.index("[INFO] warm up 1 done")
    assert lines[-1] == "[INFO] end to finalize acl"
    assert "\rloop inference exec: (3/3)" in "\n".join(lines) or "loop inference exec: (3/3)" in lines


def test_batch_profiles_one_model_for_several_batches(machine: Machine) -> None:
    machine.atc(
        "--output=net", "--input_shape=image:-1,3,8,8", "--dynamic_batch_size=1,2,3", "--precision_mode=force_fp32"
    )
    expected = reference(machine.pictures(3))
    for batch in (1, 2, 3):
        done = machine.bench(
            "--model",
            "net.om",
            "--dymBatch",
            str(batch),
            "--input",
            "in",
            "--output",
            ".",
            "--output_dirname",
            f"r{batch}",
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(outputs(machine.scratch / f"r{batch}", 3), expected, rtol=1e-6, atol=1e-6)
    refused = machine.bench("--model", "net.om", "--dymBatch", "4")
    assert refused.returncode == 1
    assert "[ERROR] model has dynamic batch size:{[1][2][3]}, please set correct dynamic batch size" in refused.stdout
    assert refused.stderr.splitlines()[-1] == "RuntimeError: [1][ACL: invalid parameter] "


def test_dynamic_shapes_follow_the_files(machine: Machine) -> None:
    machine.atc("--output=net", "--input_shape=image:-1,3,8,8", "--precision_mode=force_fp32")
    values = machine.pictures(3)
    np.save(machine.scratch / "all.npy", values)
    (machine.scratch / "all.npy").chmod(0o644)
    done = machine.bench(
        "--model", "net.om", "--auto_set_dymshape_mode", "1", "--input", "all.npy", "--output", ".",
        "--output_dirname", "r", "--outfmt", "NPY",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(machine.scratch / "r/all_0.npy"), reference(values), rtol=1e-6, atol=1e-6)
    assert "batchsize.mean(3.0)" in done.stdout


def test_aipp_takes_pictures_and_normalises_them(machine: Machine) -> None:
    (machine.scratch / "aipp.cfg").write_text(
        """aipp_op {
          aipp_mode: static
          input_format: RGB888_U8
          rbuv_swap_switch: true
          crop: true
          load_start_pos_h: 1 load_start_pos_w: 2
          crop_size_h: 8 crop_size_w: 8
          src_image_size_h: 10 src_image_size_w: 12
          min_chn_0: 123.675 min_chn_1: 116.28 min_chn_2: 103.53
          var_reci_chn_0: 0.0171247538 var_reci_chn_1: 0.0175070028 var_reci_chn_2: 0.0174291939
        }"""
    )
    made = machine.atc(
        "--output=net", "--input_shape=image:1,3,8,8", "--insert_op_conf=aipp.cfg", "--precision_mode=force_fp32"
    )
    assert made.returncode == 0, made.stdout
    picture = np.random.default_rng(5).integers(0, 256, (1, 10, 12, 3), np.uint8)
    picture.tofile(machine.scratch / "p.bin")
    (machine.scratch / "p.bin").chmod(0o644)
    done = machine.bench("--model", "net.om", "--input", "p.bin", "--output", ".", "--output_dirname", "r")
    assert done.returncode == 0, done.stderr
    cut = picture[:, 1:9, 2:10, ::-1].astype(np.float32)
    mean, factor = np.float32([123.675, 116.28, 103.53]), np.float32([0.0171247538, 0.0175070028, 0.0174291939])
    expected = reference(np.ascontiguousarray(((cut - mean) * factor).transpose(0, 3, 1, 2)))
    found = np.fromfile(machine.scratch / "r/p_0.bin", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_several_devices_measure_together(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Board(cards=(Card("310", npu=8, chips=(Chip(), Chip())),)))
    machine.atc("--output=net", "--input_shape=image:1,3,8,8")
    machine.pictures(2)
    done = machine.bench(
        "--model", "net.om", "--device", "0,1", "--input", "in", "--output", ".", "--output_dirname", "r"
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (machine.scratch / "r").iterdir()} == {
        "device0_0", "device1_1", "device0_0_summary.json", "device1_1_summary.json",
    }  # fmt: skip
    rates = [float(rate) for rate in re.findall(r"i:\d device_\d throughput:(\S+) start_time", done.stdout)]
    total = re.search(r"summary throughput:(\S+)", done.stdout)
    assert total
    assert len(rates) == 2
    assert float(total[1]) == pytest.approx(sum(rates))
    missing = machine.bench("--model", "net.om", "--device", "0,2")
    assert missing.returncode == 1
    assert "result:1" in missing.stdout


def test_energy_needs_a_line_that_says_dissipation(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Board(cards=(Card("310", npu=8),)))
    machine.atc("--output=net", "--input_shape=image:1,3,8,8")
    done = machine.bench("--model", "net.om", "--energy_consumption", "1", "--npu_id", "8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\[INFO\] NPU ID:8 energy consumption\(J\):\d", done.stdout)
    wrong = machine.bench("--model", "net.om", "--energy_consumption", "1", "--npu_id", "3")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("RuntimeError: Invalid npu id:3")


def test_another_chips_or_a_real_model_does_not_load(machine: Machine) -> None:
    machine.run("atc", "--framework=5", "--model=net.onnx", "--output=net", "--soc_version=Ascend310B4",
                "--input_shape=image:1,3,8,8")  # fmt: skip
    other = machine.bench("--model", "net.om")
    assert other.returncode == 1
    assert "Model soc version is not support in this device." in other.stdout
    (machine.scratch / "real.om").write_bytes(om.REAL_MAGIC + bytes(4096))
    (machine.scratch / "real.om").chmod(0o600)
    real = machine.bench("--model", "real.om")
    assert real.returncode == 1
    assert "real.om cannot be loaded: it is a real offline model" in real.stdout
    assert "[ERROR] load model from file failed, model file is real.om" in real.stdout


def test_npu_smi_without_a_driver_and_without_itself(machine: Machine) -> None:
    machine.break_with(npu_smi=Fault("no-driver"))
    refused = machine.run("npu-smi", "info")
    assert refused.returncode == 187
    assert "dcmi module initialize failed. ret is -8005" in refused.stdout
    machine.break_with(npu_smi=Fault("absent"))
    assert machine.run("npu-smi", "info").returncode == 127
    machine.break_with()
    assert machine.run("npu-smi", "info").returncode == 0


def test_atc_that_fails_is_killed_or_talks_nonsense(machine: Machine) -> None:
    flags = ("--output=net", "--input_shape=image:1,3,8,8")
    machine.break_with(atc=Fault("fail", code="EZ3003", text="No supported Ops kernel and engine are found for [x]."))
    failed = machine.atc(*flags)
    assert failed.returncode == 255
    assert re.search(r"^EZ3003: .*No supported Ops kernel", failed.stdout, re.MULTILINE)
    machine.break_with(atc=Fault("kill"))
    assert machine.atc(*flags).returncode == -signal.SIGKILL
    machine.break_with(atc=Fault("garbage"))
    assert machine.atc(*flags).returncode == 0
    assert not (machine.scratch / "net.om").exists()
    machine.break_with(atc=Fault("no-driver"))
    unlinked = machine.atc(*flags)
    assert unlinked.returncode == 127
    assert "error while loading shared libraries: libascend_hal.so" in unlinked.stderr


def test_ais_bench_that_is_killed_cut_off_or_talks_nonsense(machine: Machine) -> None:
    machine.atc("--output=net", "--input_shape=image:1,3,8,8")
    machine.pictures(4)
    flags = ("--model", "net.om", "--input", "in", "--output", ".", "--output_dirname", "r")
    machine.break_with(ais_bench=Fault("kill", after=2))
    killed = machine.bench(*flags)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in (machine.scratch / "r").iterdir()} == {"0_0.bin", "1_0.bin"}
    assert not (machine.scratch / "r_summary.json").exists()
    machine.break_with(ais_bench=Fault("cut-summary"))
    assert machine.bench(*flags).returncode == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads((machine.scratch / "r_summary.json").read_text())
    machine.break_with(ais_bench=Fault("garbage"))
    assert "throughput" not in machine.bench(*flags).stdout
    machine.break_with(ais_bench=Fault("fail"))
    assert machine.bench(*flags).stderr.splitlines()[-1] == "RuntimeError: [507015][ACL: aicore exception] "
    machine.break_with(ais_bench=Fault("no-space"))
    assert "No space left on device" in machine.bench(*flags).stderr


@pytest.mark.parametrize("tool", ["atc", "ais_bench"])
def test_a_tool_that_hangs_ends_when_it_is_told_to(machine: Machine, tool: str) -> None:
    machine.atc("--output=net", "--input_shape=image:1,3,8,8")
    machine.break_with(**{tool: Fault("hang")})
    command = {
        "atc": "atc --framework=5 --model=net.onnx --soc_version=Ascend310P3 --output=x --input_shape=image:1,3,8,8",
        "ais_bench": "python3 -m ais_bench --model net.om",
    }[tool].split()
    with subprocess.Popen(
        machine.command(*command), cwd=machine.scratch, env=machine.environment, stdout=subprocess.PIPE
    ) as process:
        try:
            # Asleep in sigsuspend or pause, not at work: that is where it hangs.
            _until(lambda: Path(f"/proc/{process.pid}/wchan").exists() and _waits(process.pid))
            assert process.poll() is None
        finally:
            process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def _waits(pid: int) -> bool:
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return number == str(_PAUSE)


#: pause(2) on x86-64; arm64 has ppoll in its place.
_PAUSE = 34 if os.uname().machine == "x86_64" else 73


def _until(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never hung"
        time.sleep(0.05)


def test_help_and_a_closed_pipe(machine: Machine) -> None:
    assert machine.bench("--help").returncode == 0
    assert machine.atc("--help").returncode == 0
    cut = subprocess.run(
        ["bash", "-c", "npu-smi info | head -1; exit ${PIPESTATUS[0]}"],
        env=machine.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert cut.stdout.startswith("+---")
    assert "Traceback" not in cut.stderr


def test_installing_twice_keeps_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = install.install(tmp_path, Board(cards=(Card("310B4"),)))
    assert install.install(tmp_path) == first
    assert boards.load(tmp_path / install.PREFIX).cards[0].name == "310B4"
    described = tmp_path / "described.json"
    described.write_text('{"cards": [{"name": "910B4"}]}')
    monkeypatch.setenv(install.BOARD_VARIABLE, str(described))
    install.install(tmp_path)
    assert boards.load(tmp_path / install.PREFIX).cards[0].name == "910B4"


def test_a_folder_with_blanks_and_quotes_works(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Board())
    odd = tmp_path / "it's a home"
    machine.environment |= install.install(odd, Board(cards=(Card("310B4"),)))
    assert "310B4" in machine.run("npu-smi", "info").stdout
    assert machine.run("atc", "--help").returncode == 0
    assert machine.bench("--help").returncode == 0


def test_a_board_that_makes_no_sense_is_said_plainly(machine: Machine) -> None:
    (machine.prefix / boards.FILE_NAME).write_text('{"cards": 3}')
    for done in (machine.run("npu-smi", "info"), machine.run("atc"), machine.bench()):
        assert done.returncode == 125
        assert "the description of the simulated Ascend board is not valid" in done.stderr
        assert "Traceback" not in done.stderr
