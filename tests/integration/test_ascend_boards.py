"""Ascend boards in whole: agents, the driver, real processes of the simulated toolchain; and what can go wrong there.

The published flow as commands is here too, with the small detector in the place of the large one.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from agent_client import wait_for
from fleet_fixtures import Yard, run, yard  # noqa: F401

from agent import protocol as p
from controller.datasets import shapes
from controller.inventory import Device
from controller.options import BenchOptions, DeployOptions, EvalOptions
from controller.reports import DeployReport, RunReport
from targets.ascend import ais_bench, atc
from targets.ascend.sim import board as boards
from targets.ascend.sim.board import Board, Card, Fault, Faults
from targets.ascend.sim.install import PREFIX, environment, install

# Compilers run in these, on machines that others load too.
pytestmark = pytest.mark.timeout(900)


class Simulated:
    """One board of a yard, and the description of its hardware, which may change while it runs."""

    def __init__(self, yard: Yard, prefix: Path, device: Device) -> None:  # noqa: F811
        self.yard, self.prefix, self.device = yard, prefix, device

    def change(self, **fields: object) -> None:
        boards.save(msgspec.structs.replace(boards.load(self.prefix), **fields), self.prefix)

    def deploy(self, model: str = "shapes-classifier", **options: str | int) -> DeployReport:
        fleet = self.yard.fleet()
        [report] = run(fleet.deploy(model, [self.device], DeployOptions(options=options)))
        return report

    def bench(self, **spec: float) -> p.RunResult | RunReport:
        chosen = p.BenchSpec(min_duration=0.0, percentile=50.0, warmup_max=1.0, max_other_load=1.0, **spec)
        [result] = run(self.yard.fleet().bench(None, [self.device], BenchOptions(spec=chosen)))
        return result

    def free(self) -> bool:
        """Nobody holds it."""
        return not self.yard.status(self.device).lease

    def scratch(self) -> list[Path]:
        """What runs have left behind."""
        folder = self.yard.home.sim / self.device.name / "cache" / "ascend" / "scratch"
        return [each for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []


@pytest.fixture
def simulated(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Simulated:  # noqa: F811
    monkeypatch.setenv(ais_bench.DEADLINE_VARIABLE, "60")
    [made] = yard.up(1, target="ascend")
    [device] = yard.everything
    prefix = yard.home.sim / made.name / PREFIX
    return Simulated(yard, prefix, device)


def _active(board: Simulated) -> str:
    return board.yard.active(board.device)


def test_build_prove_measure(simulated: Simulated) -> None:
    report = simulated.deploy()
    assert report.status == "active", report.reason
    result = simulated.bench()
    assert isinstance(result, p.RunResult), result
    assert result.engine == "ais_bench" and result.simulated and result.target == "ascend"
    assert result.conditions["weight_dtype"] == "float16" and "Ascend310P3" in str(result.conditions["device"])
    assert len(result.samples) >= 4 and all(np.array(result.samples) > 0)
    # The same once more: nothing is compiled, nothing travels.
    again = simulated.deploy()
    assert again.status == "unchanged" and again.bytes_sent == 0
    oms = list((simulated.yard.home.sim / simulated.device.name / "cache" / "ascend" / "om").glob("*.om"))
    assert len(oms) == 1


def test_telemetry_is_the_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from targets.ascend.device import AscendDevice

    install(tmp_path, Board(cards=(Card("310B4"),)))
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    found = AscendDevice().telemetry()
    assert {"npu0_power_w", "npu0_temperature_c", "npu0_aicore_percent", "npu0_memory_used_bytes"} <= found.keys()
    assert found["npu0_memory_total_bytes"] > found["npu0_memory_used_bytes"] > 1e8


def test_batches_of_one_compiled_model(simulated: Simulated) -> None:
    for batch in (4, 1):
        report = simulated.deploy(batches="1,4", batch=batch)
        assert report.status == "active", report.reason
    oms = list((simulated.yard.home.sim / simulated.device.name / "cache" / "ascend" / "om").glob("*.om"))
    assert len(oms) == 1


def test_the_published_flow_as_commands(simulated: Simulated, tmp_path: Path) -> None:
    report = simulated.deploy("shapes-ssd", batch=4)
    assert report.status == "active", report.reason
    data = tmp_path / "shapes-dataset"
    shapes.write(data, kind="detection", count=6, seed=5)
    options = EvalOptions(annotated=True)
    [found] = run(simulated.yard.fleet().eval("shapes-ssd", str(data), [simulated.device], options))
    assert not found.error and found.images == 6 and found.simulated
    value = found.metrics["mAP"]
    assert value is not None and value > 0.8


def test_pictures_as_bytes(simulated: Simulated, tmp_path: Path) -> None:
    report = simulated.deploy("shapes-ssd", aipp=True)
    assert report.status == "active", report.reason
    data = tmp_path / "shapes-dataset"
    shapes.write(data, kind="detection", count=3, seed=5)
    [found] = run(simulated.yard.fleet().eval("shapes-ssd", str(data), [simulated.device], EvalOptions()))
    value = found.metrics["mAP"]
    assert not found.error and value is not None and value > 0.8


# --- Bad input ----------------------------------------------------------------------------------


def _refused(board: Simulated, report: DeployReport, words: str, before: str) -> None:
    assert report.status in ("rolled-back", "failed"), report
    assert words in report.reason, report.reason
    assert _active(board) == before and board.free()


def test_a_board_without_a_toolkit(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    found = simulated.prefix / "usr/local/Ascend/ascend-toolkit/set_env.sh"
    found.rename(found.with_name("gone"))
    _refused(simulated, simulated.deploy("shapes-ssd"), "there is no CANN toolkit", before)


def test_a_board_without_atc(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    simulated.change(faults=Faults(atc=Fault("absent")))
    install(simulated.prefix.parent)
    report = simulated.deploy("shapes-ssd")
    _refused(simulated, report, "atc", before)


def test_a_board_whose_driver_is_not_loaded(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    simulated.change(faults=Faults(npu_smi=Fault("no-driver")))
    _refused(simulated, simulated.deploy("shapes-ssd"), "npu-smi found no NPU", before)


def test_a_board_with_another_chip_than_the_bundles(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    report = simulated.deploy("shapes-ssd", soc_version="Ascend310B4")
    _refused(simulated, report, "the bundle is for Ascend310B4, this board has Ascend310P3", before)
    simulated.change(cards=(Card("310B4"),))
    assert simulated.deploy("shapes-ssd", soc_version="Ascend310B4").status == "active"


def test_atc_fails_and_its_code_is_explained(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    simulated.change(unsupported=("Conv",))
    report = simulated.deploy("shapes-ssd")
    _refused(simulated, report, "EZ3003: an operator is not there for this chip", before)


def _start_again(simulated: Simulated, boards: Yard) -> None:
    """The agent, with what the environment says now: deadlines of tools are read from there."""
    boards.kill(simulated.device.name)
    boards.up(1, target="ascend")
    [simulated.device] = boards.everything


def test_atc_that_hangs(simulated: Simulated, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    before = simulated.deploy().bundle
    monkeypatch.setenv(atc.DEADLINE_VARIABLE, "3")
    _start_again(simulated, yard)
    simulated.change(faults=Faults(atc=Fault("hang")))
    begin = time.monotonic()
    _refused(simulated, simulated.deploy("shapes-ssd"), "atc did not end within 3 s", before)
    assert time.monotonic() - begin < 60
    wait_for(lambda: not _tools(simulated), "the end of atc")


def test_ais_bench_that_hangs(simulated: Simulated, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    before = simulated.deploy().bundle
    monkeypatch.setenv(ais_bench.DEADLINE_VARIABLE, "3")
    _start_again(simulated, yard)
    simulated.change(faults=Faults(ais_bench=Fault("hang")))
    result = simulated.bench()
    assert isinstance(result, RunReport) and "ais_bench did not end within 3 s" in result.reason
    _refused(simulated, simulated.deploy("shapes-ssd"), "ais_bench did not end within 3 s", before)
    wait_for(lambda: not _tools(simulated), "the end of ais_bench")
    simulated.change(faults=Faults())
    assert simulated.deploy("shapes-ssd").status == "active"
    wait_for(lambda: len(simulated.scratch()) <= 2, "scratch that is removed")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("garbage", "ais_bench did not do what it should"),
        ("cut-summary", "ais_bench did not do what it should: its summary"),
        ("fail", "ais_bench failed"),
        ("kill", "ais_bench was killed by signal"),
        ("absent", "No module named 'aclruntime'"),
        ("no-space", "no space"),
    ],
)
def test_ais_bench_that_fails(simulated: Simulated, kind: str, words: str) -> None:
    before = simulated.deploy().bundle
    simulated.change(faults=Faults(ais_bench=Fault(kind)))  # type: ignore[arg-type]
    install(simulated.prefix.parent)
    result = simulated.bench()
    assert isinstance(result, RunReport) and words in result.reason, result
    _refused(simulated, simulated.deploy("shapes-ssd"), words, before)


def test_no_space_while_compiling(simulated: Simulated) -> None:
    before = simulated.deploy().bundle
    simulated.change(faults=Faults(atc=Fault("no-space")))
    _refused(simulated, simulated.deploy("shapes-ssd"), "the disk is full", before)


def _tools(board: Simulated) -> list[psutil.Process]:
    """Processes of this board's toolchain that run."""
    marks = {str(board.prefix)}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if any(mark in words for mark in marks) and ("atc" in words or "ais_bench" in words):
            found.append(process)
    return found


def test_the_environment_names_what_the_driver_looks_for(tmp_path: Path) -> None:
    from targets.ascend import toolkit

    install(tmp_path, Board())
    assert Path(environment(tmp_path)[toolkit.SET_ENV]).is_file()
