"""`fleet bench` beside one engine and one batch: engines in turn, sweeps and protocols, on running boards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_client import NUMPY_TARGET
from cli_fixtures import Cli
from fleet_fixtures import Yard, run, yard

from agent.protocol import BenchSpec, RunResult
from controller.fleet import BenchOptions
from controller.reports import EngineComparison, EngineReport
from targets.base import FleetError

# Compilers run in these, on machines that others load too.
pytestmark = pytest.mark.timeout(900)

__all__ = ["yard"]

#: Other tests share this machine: its load is no reason here.
QUICK = BenchSpec(min_duration=0.3, max_other_load=1.0, warmup_max=2.0)
NOTEBOOK = msgspec.structs.replace(QUICK, protocol="notebook")


@pytest.fixture
def network(yard: Yard, tmp_path: Path) -> Iterator[str]:
    sys.path.insert(0, str(NUMPY_TARGET))
    try:
        from numpy_engines import network

        yield str(network(tmp_path / "product.onnx"))
    finally:
        sys.path.remove(str(NUMPY_TARGET))


def compare(yard: Yard, network: str, spec: BenchSpec = QUICK, **more: Any) -> tuple[list[Any], EngineComparison]:
    fleet = yard.fleet()
    options = BenchOptions(spec=spec, **{"engines": ("all",), **more})
    found, (comparison,) = run(fleet.compare_engines(network, fleet.select(everything=True), options))
    return found, comparison


def rows(comparison: EngineComparison) -> dict[str, EngineReport]:
    return {f"{one.engine} {one.precision}": one for one in comparison.engines}


def test_engines_are_measured_in_turn_and_checked(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    found, comparison = compare(yard, network, batches=(2,))
    assert (comparison.model, comparison.batch, comparison.protocol) == ("product", 2, "fleet")
    engines = rows(comparison)
    assert list(engines) == ["plain fp32", "quick fp16", "wrong fp32", "absent fp16"]
    plain, quick, wrong, absent = engines.values()
    assert plain.baseline and plain.speed_up == 1.0 and plain.weight_dtype == "float32"
    assert quick.interleaved and quick.weight_dtype == "float16" and quick.speed_up == pytest.approx(3.4, rel=0.35)
    assert quick.speed_up_ci is not None and quick.speed_up_ci[0] < quick.speed_up < quick.speed_up_ci[1]
    assert plain.output_error is not None and quick.output_error is not None
    assert plain.output_error < quick.output_error < 1e-2
    assert wrong.speed_up is None and wrong.mean_ms is not None and wrong.output_error == pytest.approx(1, rel=1e-3)
    assert wrong.verdict == "INVALID" and "golden check" in wrong.reason
    assert absent.run == "" and absent.mean_ms is None and "this device has no abacus of brass" in absent.reason
    # The baseline by itself, and with each of the others that ran.
    assert sum(isinstance(one, RunResult) for one in found) == 5
    assert all(
        one.conditions["golden_mismatch"] == "" or one.verdict == "INVALID"
        for one in found
        if one.bundle != "" and isinstance(one, RunResult)
    )


def test_a_board_that_holds_one_model_measures_them_one_after_the_other(
    yard: Yard, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMPY_EXCLUSIVE", "1")
    yard.up(target="numpy-engines")
    _, comparison = compare(yard, network, engines=("plain", "quick:fp16"))
    plain, quick = comparison.engines
    assert plain.run and quick.run and not quick.interleaved
    assert quick.speed_up == pytest.approx(3.4, rel=0.35) and quick.verdict == "VALID"


def test_the_notebooks_protocol_compares_means(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    found, comparison = compare(yard, network, NOTEBOOK, engines=("plain", "quick"))
    plain, quick = comparison.engines
    assert comparison.protocol == "notebook" and len(found) == 2
    assert all(len(one.samples) == 100 and one.spec.protocol == "notebook" for one in found)
    assert plain.mean_ms is not None and quick.mean_ms is not None
    assert quick.speed_up == plain.mean_ms / quick.mean_ms and quick.speed_up_ci is None


def test_engines_that_are_not_there_or_named_twice_are_refused(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    for options, code in (
        ({"engines": ("steam",)}, "unknown-engine"),
        ({"options": {"precision": "fp16"}}, "usage"),
    ):
        with pytest.raises(FleetError) as refused:
            compare(yard, network, **options)
        assert refused.value.code == code


def test_the_command_prints_the_table_and_the_document(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    cli = Cli(yard.root)
    quick = ("--all", "--min-duration", "0.2", "--max-other-load", "1")
    called = cli("bench", network, "--engine", "plain,absent", *quick)
    assert called.code == 0
    (absent,) = [line for line in called.out.splitlines() if line.startswith("absent fp16")]
    assert "not there" in absent and "no abacus of brass" in absent
    assert "speed-ups are ratios of medians against plain fp32" in called.out
    document = cli.good("bench", network, "--engine", "quick", "--protocol", "notebook", *quick)
    (comparison,) = document["engines"]
    assert comparison["protocol"] == "notebook" and comparison["simulated"]
    (one,) = comparison["engines"]
    assert (one["engine"], one["precision"], one["weight_dtype"], one["speed_up"]) == ("quick", "fp16", "float16", None)
    assert document["runs"][0]["protocol"] == "notebook" and document["runs"][0]["conditions"]["clock"] == "engine"
    nothing = cli("bench", network, "--engine", "absent", *quick)
    assert nothing.code == 1 and "abacus of brass" in nothing.out


def test_a_sweep_and_its_picture(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    cli = Cli(yard.root)
    quick = ("--all", "--min-duration", "0.2", "--max-other-load", "1")
    document = cli.good("bench", network, "--batch", "1,2,4", "-o", "sweep.svg", *quick)
    (sweep,) = document["sweeps"]
    assert [row["batch"] for row in sweep["rows"]] == [1, 2, 4] and sweep["simulated"]
    assert [row["run"] for row in sweep["rows"]] == [one["id"] for one in document["runs"]]
    assert (cli.cwd / "sweep.svg").read_text().startswith("<svg")
    called = cli("bench", network, "--batch", "1,2", *quick)
    assert called.code == 0 and "images/s by batch, measured" in called.out


def test_runs_of_two_protocols_are_not_compared(yard: Yard, network: str) -> None:
    yard.up(target="numpy-engines")
    cli = Cli(yard.root)
    quick = ("bench", network, "--all", "--min-duration", "0.2", "--max-other-load", "1")
    usual = cli.good(*quick)["runs"][0]
    notebook = cli.good(*quick, "--protocol", "notebook")["runs"][0]
    assert (usual["protocol"], notebook["protocol"]) == ("fleet", "notebook")
    assert notebook["samples"] == 100
    refused = cli("results", "compare", usual["id"], notebook["id"], "--json")
    assert refused.code != 0 and refused.error["code"] == "other-protocol"
    before = len(cli.good("results")["runs"])
    refused = cli(*quick, "--protocol", "notebook", "--baseline", usual["id"], "--json")
    assert refused.error["code"] == "other-protocol" and len(cli.good("results")["runs"]) == before
    listed = cli("results", "show", notebook["id"])
    assert "protocol    notebook" in listed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "--all", "--engine", "all"), "name the model"),
        (("bench", "net.onnx", "--all", "--protocol", "legacy"), "fleet or notebook"),
        (("bench", "--all", "--ab", "a", "b", "--protocol", "notebook"), "one after the other"),
        (("bench", "net.onnx", "--all", "-o", "sweep.svg"), "--batch 1,4,8"),
        (("bench", "net.onnx", "--all", "--batch", "1,2", "-o", "sweep.pdf"), ".svg"),
    ],
)
def test_options_that_do_not_go_together(yard: Yard, arguments: tuple[str, ...], words: str) -> None:
    yard.up()
    called = Cli(yard.root)(*arguments, "--json")
    assert called.code == 2 and words in str(called.error)
