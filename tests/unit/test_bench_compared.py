"""Engines and batch sizes beside one another and beside published figures: reports, tables, pictures, refusals."""

from __future__ import annotations

import io
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from rich.console import Console

from agent.protocol import BenchSpec, LatencyStats, RunResult
from controller import engines
from controller.cli.compared import engine_tables, sweep_tables
from controller.compare import check_protocol, compare_runs
from controller.reports import EngineComparison, EngineReport, RunReport
from controller.results import Results, report
from controller.sweep import series, sweeps
from controller.sweep_picture import picture
from targets import published as published_module
from targets.base import Engine, FleetError, find, names
from targets.published import Published, PublishedRow, published
from targets.statistics import summarise

NOTEBOOK = Published(
    source="a notebook",
    model="net",
    machine="another board",
    rows=(
        PublishedRow(engine="eager", precision="fp32", batch=8, mean_ms=160.0),
        PublishedRow(engine="fast", precision="fp16", batch=8, mean_ms=40.0),
    ),
)
CHIPS = Published(
    source="a model's page",
    model="net",
    rows=tuple(
        PublishedRow(chip=chip, batch=batch, images_per_second=rate)
        for chip, batch, rate in (("310", 1, 711.0), ("310", 4, 825.5), ("310P", 1, 960.2), ("310P", 4, 1435.2))
    ),
)


def result(run: str, median_ms: float, **other: Any) -> RunResult:
    rng = np.random.default_rng([1, *run.encode()])
    samples = (median_ms * np.exp(0.002 * rng.standard_normal(200))).tolist()
    blocks = [10] * 20
    found = summarise(samples, blocks)
    stats = LatencyStats(**{name: getattr(found, name) for name in LatencyStats.__struct_fields__})
    batch = other.pop("batch", 8)
    values = {"golden_error": 1e-3, "golden_mismatch": "", "weight_dtype": "float16", "input_dtype": "float16"}
    conditions = {**values, **other.pop("conditions", {})}
    return RunResult(
        run=run,
        device="board",
        target="jetson",
        simulated=True,
        model="net",
        bundle=run * 8,
        engine=other.pop("engine", "fast"),
        batch=batch,
        started_at=1.0,
        verdict="VALID",
        latency_ms=stats,
        throughput=batch * 1e3 / stats.mean,
        samples=samples,
        blocks=blocks,
        spec=other.pop("spec", BenchSpec()),
        conditions=conditions,
        **other,
    )


def printed(parts: Iterable[Any]) -> str:
    console = Console(file=io.StringIO(), width=250, no_color=True)
    for part in parts:
        console.print(part)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def comparison(*reports: EngineReport, protocol: Any = "fleet") -> EngineComparison:
    return EngineComparison(
        device="board",
        target="jetson",
        simulated=True,
        model="net",
        batch=8,
        protocol=protocol,
        engines=list(reports),
        published=NOTEBOOK,
    )


def filled(run: RunResult, base: RunResult | None, results: Results, **names: Any) -> EngineReport:
    one = EngineReport(engine=run.engine, precision="fp16", **names)
    engines._fill(one, run)
    if base is not None:
        engines._speed_up(one, run, base, results)
    return one


@pytest.fixture
def results(tmp_path: Any) -> Any:
    store = Results(f"sqlite:///{tmp_path}/results.db")
    yield store
    store.close()


def test_speed_ups_are_ratios_of_medians_with_an_interval(results: Results) -> None:
    base = result("aa", 160.0, engine="eager", interleaved_with="bb")
    run = result("bb", 40.0, interleaved_with="aa")
    for one in (base, run):
        results.add(one)
    one = filled(run, base, results)
    assert one.speed_up == pytest.approx(4.0, rel=0.01) and one.interleaved
    assert one.speed_up_ci is not None and one.speed_up_ci[0] <= one.speed_up <= one.speed_up_ci[1]
    assert (one.ran, one.weight_dtype, one.output_error) == ("fast", "float16", 1e-3)
    assert filled(base, base, results).speed_up == 1.0


def test_the_notebooks_speed_ups_are_ratios_of_means(results: Results) -> None:
    spec = BenchSpec(protocol="notebook")
    base, run = result("aa", 160.0, spec=spec), result("bb", 40.0, spec=spec)
    one = filled(run, base, results)
    assert one.speed_up == base.latency_ms.mean / run.latency_ms.mean
    assert one.speed_up_ci is None and not one.interleaved


@pytest.mark.parametrize("wrong", ["run", "base", "unchecked"])
def test_no_speed_up_where_outputs_are_wrong_or_were_not_checked(wrong: str, results: Results) -> None:
    bad = {"golden_mismatch": "output 'y' is off by 3"}
    base = result("aa", 160.0, conditions=bad if wrong == "base" else {})
    run = result("bb", 40.0, conditions=bad if wrong == "run" else {})
    if wrong == "unchecked":
        del run.conditions["golden_mismatch"]
    one = filled(run, base, results)
    assert one.speed_up is None and one.mean_ms is not None


def test_the_table_has_every_engine_and_says_why_one_is_not_there(results: Results) -> None:
    base, run = result("aa", 160.0, engine="eager", conditions={"weight_dtype": "float32"}), result("bb", 40.0)
    for one in (base, run):
        results.add(one)
    absent = EngineReport(engine="tensorrt", precision="fp16", reason="TensorRT is not installed on this board")
    rows = [
        filled(base, base, results, baseline=True, published_ms=160.0, published_speed_up=1.0),
        filled(run, base, results, published_ms=40.0, published_speed_up=4.0),
        absent,
    ]
    text = printed(engine_tables(comparison(*rows)))
    assert "net on board (simulated), batch 8, protocol fleet" in text
    (missing,) = [line for line in text.splitlines() if line.startswith("tensorrt fp16")]
    assert "not there" in missing and missing.endswith("TensorRT is not installed on this board")
    (fast,) = [line for line in text.splitlines() if line.startswith("fast fp16")]
    assert "fast fp16" in fast[10:] and "4.00 (" in fast and "40.00" in fast and "0.001" in fast
    (eager,) = [line for line in text.splitlines() if line.startswith("eager")]
    assert "fp32, inputs fp16" in eager
    assert "published figures: a notebook; batch 8, on another board; they were not measured here" in text
    assert "ratios of medians against eager fp16" in text


def test_without_the_baseline_the_table_says_that_there_are_no_speed_ups(results: Results) -> None:
    run = result("bb", 40.0)
    rows = [EngineReport(engine="eager", precision="fp32", baseline=True, reason="lost"), filled(run, None, results)]
    assert "no speed-ups: the engine that they are against was not measured" in printed(
        engine_tables(comparison(*rows))
    )


class TwoEngines:
    """A target with a table, and nothing else of a target that is looked at here."""

    name = "two"
    engines = (
        Engine("eager", "fp32", {"engine": "eager", "precision": "fp32"}, baseline=True),
        Engine("fast", "fp32", {"engine": "fast", "precision": "fp32"}),
        Engine("fast", "fp16", {"engine": "fast", "precision": "fp16"}),
    )


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["all"], ["eager fp32", "fast fp32", "fast fp16"]),
        (["fast"], ["fast fp32", "fast fp16"]),
        (["fast:fp16", "eager"], ["eager fp32", "fast fp16"]),
        (["fast", "fast:fp16", "all"], ["eager fp32", "fast fp32", "fast fp16"]),
    ],
)
def test_engines_are_chosen_by_name_and_precision(
    names: list[str], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find", lambda name: TwoEngines())
    assert [engine.words for engine in engines.chosen("two", names)] == found
    for wrong in ("slow", "fast:int8", "", "all:fp16"):
        with pytest.raises(FleetError) as refused:
            engines.chosen("two", [wrong])
        assert refused.value.code == "unknown-engine" and "fast:fp16" in refused.value.hint


def test_a_target_without_a_table_has_one_engine() -> None:
    (one,) = engines.chosen("x86", ["all"])
    assert one.baseline and not one.options
    with pytest.raises(FleetError) as refused:
        engines.chosen("x86", ["eager"])
    assert refused.value.code == "unknown-engine"


# --- Batch sizes --------------------------------------------------------------------------------


def swept(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("controller.sweep.published", lambda target, model: CHIPS)
    runs = [report(result(f"r{batch}", 2.0 * batch**0.8, batch=batch, engine="ais_bench")) for batch in (8, 1, 4)]
    failed = msgspec.structs.replace(runs[0], id="", latency_ms=None, failed=True, batch=16)
    (sweep,) = sweeps([*runs, failed])
    return sweep


def test_a_sweep_is_beside_what_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = swept(monkeypatch)
    assert [row.batch for row in sweep.rows] == [1, 4, 8]
    lines = series(sweep)
    assert list(lines) == ["measured", "310", "310P"] and lines["310P"] == {1: 960.2, 4: 1435.2}
    text = printed(sweep_tables(sweep))
    assert "310 published" in text and "published figures: a model's page; batch 1 to 4, on another machine" in text
    (four,) = [line for line in text.splitlines() if line.split()[:1] == ["4"] and "VALID" in line]
    assert four.split()[-2:] == ["826", "1435"]
    bars = [line for line in text.splitlines() if "━" in line]
    assert len(bars) == 3 + 2 + 2
    # Each line's own best fills the bar.
    assert max(line.count("━") for line in bars[:3]) == 40 == bars[4].count("━")


def test_one_batch_alone_is_no_sweep() -> None:
    assert sweeps([report(result("a", 2.0)), report(result("b", 2.1))]) == []


def test_the_picture_of_a_sweep_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = swept(monkeypatch)
    hostile = msgspec.structs.replace(sweep, device="<b>&\x1b[31m", published=None)
    root = ElementTree.fromstring(picture([sweep, hostile]))
    space = "{http://www.w3.org/2000/svg}"
    fields = root.findall(f"{space}g")
    assert len(fields) == 2
    assert len(fields[0].findall(f"{space}circle")) == 3 + 4 and len(fields[1].findall(f"{space}circle")) == 3
    words = [element.text or "" for element in root.iter(f"{space}text")]
    assert any("published by a model's page, on another machine" in word for word in words)
    assert any(word.startswith("310P: 1435/s at 4") for word in words)
    assert not any("\x1b" in word for word in words)


# --- Published figures --------------------------------------------------------------------------


def test_what_was_published_of_ssd300() -> None:
    table = published("jetson", "ssd300_resnet50")
    assert table is not None and table.protocol == "notebook" and "TensorRT" in table.source
    rows = {(row.engine, row.precision): row for row in table.rows}
    assert rows["eager", "fp32"].mean_ms == 167.31 and rows["torchscript", "fp32"].mean_ms == 166.59
    assert rows["torch-tensorrt", "fp16"].mean_ms == 46.21
    assert {row.batch for row in table.rows} == {128}
    assert rows["eager", "fp32"].throughput == pytest.approx(765, abs=1)
    assert published("jetson", "resnet18") is None and published("x86", "ssd300_resnet50") is None


@pytest.mark.parametrize("name", names())
def test_published_files_can_be_read(name: str) -> None:
    published(name, "no such model")
    target = find(name)
    for engine in getattr(target, "engines", ()):
        assert isinstance(engine, Engine)
    assert sum(engine.baseline for engine in getattr(target, "engines", ())) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"source":"s","model":"m","rows":[{"batch":1}]}',
        '{"source":"s","model":"m","rows":[{"batch":0,"mean_ms":1}]}',
    ],
)
def test_a_damaged_file_of_figures_is_named(text: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published.json").write_text(text)
    monkeypatch.setattr(published_module, "resources", SimpleNamespace(files=lambda package: tmp_path))
    with pytest.raises(FleetError) as refused:
        published("jetson", "m")
    assert refused.value.code == "bad-published"


# --- Protocols ----------------------------------------------------------------------------------


def test_runs_of_different_protocols_are_not_compared(results: Results) -> None:
    for one in (result("aa", 2.0), result("bb", 2.0, spec=BenchSpec(protocol="notebook"))):
        results.add(one)
    stored = results.get("bb")
    assert stored.protocol == "notebook" and stored.spec.protocol == "notebook"
    with pytest.raises(FleetError) as refused:
        compare_runs(results, "aa", "bb")
    assert refused.value.code == "other-protocol" and "notebook" in refused.value.message
    check_protocol(stored, "notebook")


def test_a_report_says_which_protocol() -> None:
    assert report(result("aa", 2.0)).protocol == "fleet"
    one: RunReport = report(result("aa", 2.0, spec=BenchSpec(protocol="notebook")))
    assert one.protocol == "notebook"
