"""Boards with VTA, simulated: the command line's whole path, and a release that must be what the integers say."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from build_fixtures import convnet
from cli_fixtures import ROOT, Cli, boards

from controller import calibration, dask_builds, sources
from controller.home import Home
from targets.base import Option
from targets.vta.config import DEFAULT
from targets.vta.counters import NAMES

NET = "shapes-classifier"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One simulated PYNQ on which the classifier is active."""
    for cli in boards(tmp_path_factory.mktemp("pynq") / "home", 1, "--target", "pynq"):
        (deployed,) = cli.good("deploy", NET, "--target", "pynq")["results"]
        assert (deployed["device"], deployed["status"], deployed["simulated"]) == ("sim-1", "active", True)
        assert deployed["target"] == "pynq"
        yield cli


def test_bench_shows_what_the_accelerator_counted_and_what_a_board_would_take(cli: Cli) -> None:
    (run,) = cli.good("bench", "--all", "--min-duration", "0.2", "--percentile", "50")["runs"]
    assert (run["target"], run["model"], run["simulated"]) == ("pynq", NET, True)
    counters = run["counters"]
    assert set(NAMES) <= set(counters)
    assert counters["gemm_counter"] > 0 and counters["alu_counter"] > 0
    assert counters["bytes_moved"] == sum(counters[name] for name in NAMES if name.endswith("nbytes"))
    # The model's figure is of a board at 100 MHz, whatever this machine is.
    assert counters["predicted_ms"] == pytest.approx(counters["cycles"] / 100e3)
    assert 0 < counters["accelerator_ms"] < run["latency_ms"]["max"]
    assert run["conditions"]["accelerator"] == f"VTA {DEFAULT.identity}, simulated pynq"
    text = cli("bench", "--all", "--min-duration", "0.2", "--percentile", "50")
    assert text.code == 0
    assert "predicted ms" in text.out and f"{counters['cycles']:,.0f}" in text.out
    # Kept with the result, and the same for every run of a program.
    (shown,) = [one for one in cli.good("results")["runs"] if one["id"] == run["id"]]
    assert shown["counters"] == counters


def test_a_picture(cli: Cli) -> None:
    path = cli.cwd / "star.png"
    command = [sys.executable, "-m", "controller.zoo.draw", "picture", "--shape", "star", "--seed", "7", "-o", path]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    (result,) = cli.good("run", NET, path, "--all")["results"]
    assert result["simulated"] and result["top"][0]["label"] == "star"


def test_the_build_says_what_it_was_calibrated_on_and_what_that_cost(cli: Cli) -> None:
    out = cli.cwd / "net.fleet"
    assert cli("build", NET, "--device", "sim-1", "-o", out).code == 0
    from targets.archive import read_archive
    from targets.blobs import BlobDir

    blobs = BlobDir(cli.cwd / "blobs")
    manifest, _ = read_archive(out, blobs)
    assert "sample pictures of the zoo's shapes-classifier" in manifest.toolchain["calibration"]
    assert manifest.requirements.accelerator == DEFAULT.identity
    assert manifest.golden.reference.startswith("integer evaluation")
    report = next(file for file in manifest.files if file.path == "report.json")
    figures = json.loads(blobs.path(report.sha256).read_bytes())
    assert figures["outputs"][0]["snr_db"] > 15
    assert figures["outputs"][0]["same_first"] == 1.0
    assert any("first" in note or "conv" in note for note in figures["notes"])
    weights = [file for file in manifest.files if file.path.startswith("program-0/") and file.role == "weight"]
    assert len(weights) > 2


def test_the_device_computes_what_the_integers_say_to_the_bit(cli: Cli) -> None:
    """In a process of its own, as a worker does: TVM's runtime library alone, the simulator as accelerator."""
    out = cli.cwd / "bits.fleet"
    assert cli("build", NET, "--device", "sim-1", "-o", out).code == 0
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_simulated.py"), out, cli.cwd / "bits"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == [0.0] * len(found["errors"]) and len(found["errors"]) >= 2
    assert not found["compiler"]
    assert found["refused"].startswith("input ")
    assert found["memory_mb"] < 1024


def test_a_build_for_the_real_board_is_refused_by_a_simulated_one(cli: Cli) -> None:
    out = cli.cwd / "arm.fleet"
    assert cli("build", NET, "--target", "pynq", "-o", out).code == 0
    called = cli("deploy", out, "--all", "--json")
    assert called.code == 1
    (result,) = called.document["results"]
    assert result["status"] == "failed" or result["status"] == "rolled-back"
    assert "the bundle is for armv7l" in result["reason"]


def test_configurations_and_options(cli: Cli) -> None:
    batched = ["--option", "config=4x8_i8w8a32_15_16_16_18", "--option", "batch=4", "--option", "weights=block"]
    (deployed,) = cli.good("deploy", NET, "--all", "--slot", "batched", *batched)["results"]
    assert deployed["status"] == "active", deployed["reason"]
    (run,) = cli.good("bench", "--all", "--slot", "batched", "--min-duration", "0.1", "--percentile", "50")["runs"]
    assert run["batch"] == 4 and "4x8" in run["conditions"]["accelerator"]
    for option, code in (("config=none.json", "bad-vta-config"), ("calibration=none", "bad-calibration")):
        called = cli("deploy", NET, "--all", "--option", option, "--json")
        assert (called.code, called.error["code"]) == (2, code), called.out


def test_a_calibration_set_of_the_wrong_shape(cli: Cli) -> None:
    path = cli.cwd / "wrong.npz"
    np.savez(path, image=np.zeros((4, 3, 5, 5), np.float32))
    called = cli("build", NET, "--target", "vta-sim", "--option", f"calibration={path}", "--json")
    assert (called.code, called.error["code"]) == (2, "bad-calibration")
    assert "[4, 3, 5, 5]" in called.error["message"]


def test_an_own_network_and_a_lying_accelerator(tmp_path: Path) -> None:
    """A file without any sample is calibrated on noise; outputs that are perturbed do not pass the proof."""
    net = convnet(tmp_path / "net.onnx")
    options = ["--option", "first_conv=true", "--option", "dense=true"]
    for cli in boards(tmp_path / "home", 1, "--target", "ultra96"):
        (deployed,) = cli.good("deploy", net, "--all", *options)["results"]
        assert deployed["status"] == "active", deployed["reason"]
        (run,) = cli.good("bench", "--all", "--min-duration", "0.1", "--percentile", "50")["runs"]
        assert run["counters"]["predicted_ms"] == pytest.approx(run["counters"]["cycles"] / 333e3)
        assert run["conditions"]["accelerator"].endswith("@0.0.1, simulated ultra96")
    for cli in boards(tmp_path / "home", 1, "--target", "ultra96", "--fault", "wrong-result"):
        called = cli("deploy", net, "--all", *options, "--json")
        assert called.code == 1
        assert "golden check" in called.document["results"][0]["reason"]


def test_a_worker_of_a_cluster_gets_every_file(tmp_path: Path) -> None:
    """What options and calibration name lies on the controller's machine alone."""
    config = tmp_path / "here" / "small.json"
    config.parent.mkdir()
    config.write_text('{"HW_VER": "0.0.2", "LOG_WGT_BUFF_SIZE": 17}')
    samples = config.with_name("samples.npz")
    np.savez(samples, image=np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    model = sources.resolve(str(convnet(tmp_path / "net.onnx")), home=Home.find(tmp_path))
    options: dict[str, Option] = {"config": str(config), "calibration": str(samples), "first_conv": True}
    chosen = calibration.choose(model, str(samples))
    workdir = tmp_path / "built"
    workdir.mkdir()
    with ThreadPoolExecutor(1) as cluster:
        done = dask_builds.run(cluster, model, "vta-sim", options, chosen, workdir, lambda *_: None, threading.Event())
    assert done.output.requirements.accelerator == "1x16_i8w8a32_15_15_17_17@0.0.2"
    names = {file.name for file in done.output.files}
    assert {"model.so", "program-0.json", "report.json"} <= names
    assert all(Path(file.path).parent == workdir for file in (*done.output.files, *done.golden_files))


def test_a_fault_that_there_is_not_is_wrong_usage(tmp_path: Path) -> None:
    called = Cli(tmp_path / "home")("sim", "up", "--target", "pynq", "--fault", "NONSENSE", "--json")
    assert (called.code, called.error["code"]) == (2, "usage")
    assert "NONSENSE" in called.error["message"] and "wrong-result" in called.error["message"]
