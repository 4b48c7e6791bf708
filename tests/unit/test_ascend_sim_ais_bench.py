"""What the simulated ais_bench prints and writes, with a clock that the test holds: one file per command line."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ascend_sim_networks import write
from hypothesis import given
from hypothesis import strategies as st

from targets.ascend.sim import ais_bench, atc, bench_files, bench_model, bench_report, bench_stdout

CASES = sorted((Path(__file__).parent / "ascend/ais_bench").glob("*.json"))


@pytest.fixture(autouse=True)
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading n of the session's clock is n(n+1)/2 ticks of 1/1024 s; the progress bar's advances by half a second."""
    readings = (n * (n + 1) / 2048 for n in itertools.count())
    halves = (n / 2 for n in itertools.count())
    monkeypatch.setattr(bench_model, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    monkeypatch.setattr(bench_stdout, "time", SimpleNamespace(monotonic=lambda: next(halves)))
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)


def prepare(folder: Path, case: dict[str, object]) -> None:
    network = str(case["network"])
    write(folder, network)
    (folder / "board.json").write_text("{}")
    flags = ["--framework=5", f"--model={network}.onnx", "--output=net", "--soc_version=Ascend310P3"]
    assert atc.main(folder, [*flags, *case["atc"]]) == 0  # type: ignore[misc]
    (folder / "board.json").write_text(json.dumps(case["board"]))
    for name, size in case["inputs"].items():  # type: ignore[attr-defined]
        path = folder / name
        path.parent.mkdir(exist_ok=True, mode=0o755)
        path.write_bytes(bytes(size))
        path.chmod(0o644)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_says_and_writes_what_the_real_one_does(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = json.loads(path.read_text())
    prepare(tmp_path, case)
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["ais_bench/__main__.py", *case["arguments"]])
    raised = ""
    try:
        assert ais_bench.main(tmp_path, case["arguments"]) == 0
    except Exception as error:
        raised = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    said = capfd.readouterr()
    assert raised == case["raises"]
    if case["stdout"] is not None:
        assert said.out.split("\n") == [*case["stdout"], ""]
    for name, size in case["outputs"].items():
        assert (tmp_path / name).stat().st_size == size
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    if case["outputs"]:
        folder = (tmp_path / next(iter(case["outputs"]))).parent
        assert folder.stat().st_mode & 0o777 == 0o750
        assert len(list(folder.iterdir())) == len(case["outputs"])
    if case["summary"] is not None:
        summary = json.loads((tmp_path / "result_summary.json").read_text())
        assert list(summary) == [
            "filesinfo", "args", "NPU_compute_time", "H2D_latency", "D2H_latency", "npu_compute_time_list",
            "throughput", "pid",
        ]  # fmt: skip
        assert summary.pop("args") == sys.argv
        assert summary.pop("pid") > 0
        assert summary == case["summary"]


@pytest.mark.parametrize(
    ("arguments", "stdout", "stderr"),
    [
        ([], "", "the following arguments are required: --model/-m"),
        (
            ["--model", "x.om"],
            "[ERROR] path: x.om not exist, please check if file or dir is exist\n",
            "argument --model/-m: om path:x.om is illegal. Please check.",
        ),
        (["--model", "net.om", "--debug", "maybe"], "", "Boolean value expected true, 1, false, 0"),
        (["--model", "net.om", "--outfmt", "MEM"], "", "invalid choice: 'MEM'"),
        (["--model", "net.om", "--loop", "0"], "", "argument --loop/-l"),
        (["--model", "net.om", "--device", "256"], "", "argument --device/-d"),
        (["--model", "link.om"], "[ERROR] path :link.om is a soft link", "om path:link.om is illegal"),
        (["--model", "open.om"], "[ERROR] The file open.om is group writable", "om path:open.om is illegal"),
        (["--model", "a b.om"], "[ERROR] path:a b.om contains illegal char", "om path:a b.om is illegal"),
        (["--model", "net.onnx"], "[ERROR] path:net.onnx is not one of .om", "om path:net.onnx is illegal"),
        (
            ["--model", "net.om", "--input", "gone"],
            "[ERROR] path: gone not exist, please check if file or dir is exist\n",
            "argument --input/-i: input path:gone is illegal. Please check.",
        ),
        (["--model", "net.om", "--input", "in"], "[ERROR] The file in/0.bin is group writable", "input path:in/0.bin"),
    ],
)
def test_what_argparse_refuses_ends_with_2(
    arguments: list[str], stdout: str, stderr: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "board.json").write_text("{}")
    for name in ("net.om", "open.om", "a b.om", "net.onnx", "in/0.bin"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, mode=0o755)
        path.write_bytes(b"x")
        path.chmod(0o664 if name in ("open.om", "in/0.bin") else 0o644)
    (tmp_path / "link.om").symlink_to("net.om")
    with pytest.raises(SystemExit) as end:
        ais_bench.main(tmp_path, arguments)
    assert end.value.code == 2
    said = capfd.readouterr()
    assert said.out.startswith(stdout)
    assert stderr in said.err


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "line"),
    [
        (0, 5, 0.0, "x:   0%|          | 0/5 [00:00<?, ?it/s]"),
        (4952, 4952, 20.3, "x: 100%|██████████| 4952/4952 [00:20<00:00, 243.94it/s]"),
        (1, 3, 2.0, "x:  33%|███▎      | 1/3 [00:02<00:04,  2.00s/it]"),
        (50, 100, 7200.0, "x:  50%|█████     | 50/100 [2:00:00<2:00:00, 144.00s/it]"),
    ],
)
def test_the_progress_bar_is_tqdms(
    done: int, total: int, elapsed: float, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bar = bench_stdout.Progress("x", total)
    for _ in range(done):
        bar.advance()
    assert bar.line(elapsed) == line


def test_files_are_sorted_as_people_count(tmp_path: Path) -> None:
    for name in ("img10.bin", "img9.bin", "IMG1.npy", "b.BIN", "a.txt"):
        (tmp_path / name).touch()
    (found,) = bench_files.of_inputs([str(tmp_path)], 1)
    assert [Path(name).name for name in found] == ["b.BIN", "IMG1.npy", "img9.bin", "img10.bin"]


@given(count=st.integers(1, 40), per_run=st.integers(1, 9), inputs=st.integers(1, 3))
def test_every_file_is_in_one_run_and_runs_are_full(count: int, per_run: int, inputs: int) -> None:
    files = [[f"{rank}/{number}" for number in range(count)] for rank in range(inputs)]
    size = bench_files.size
    try:
        bench_files.size = lambda path: 8
        made = bench_files.batches(files, 8 * per_run, single=False)
    finally:
        bench_files.size = size
    assert made.per_run == per_run
    assert len(made.runs) == -(-count // per_run)
    for rank in range(inputs):
        names = [name for run in made.runs for name in run[rank]]
        assert [name for name in names if name != bench_files.PADDING] == files[rank]
        assert all(len(run[rank]) == per_run and run[rank][0] != bench_files.PADDING for run in made.runs)


def test_padding_repeats_the_first_file_of_its_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0]], np.float32))
    joined = bench_files.joined([str(tmp_path / "a.npy"), bench_files.PADDING], 16)
    np.testing.assert_array_equal(joined, [[1, 2], [1, 2]])


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        bench_files.load(str(tmp_path / "a.npy"))


@given(times=st.lists(st.floats(0.001, 1e4), max_size=30))
def test_statistics_are_numpys(times: list[float]) -> None:
    found = bench_report.statistics(times)
    assert found["count"] == len(times)
    if times:
        assert found["percentile(99%)"] == np.percentile(times, 99)
        # A mean may leave the range of its values by a rounding.
        assert found["min"] <= found["median"] <= found["max"]
        assert found["mean"] == pytest.approx(sum(times) / len(times))
    else:
        assert set(found.values()) == {0}
