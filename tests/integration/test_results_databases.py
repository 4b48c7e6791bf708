"""The results database on both of its engines, each a real one, with several writers at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from postgres_fixtures import PASSWORD, USER, server
from sqlalchemy import URL, create_engine, inspect, text

from agent.protocol import BenchSpec, LatencyStats, RunResult
from controller import tables
from controller.evaluation.store import Evaluations
from controller.reports import ClassReport, EvalReport
from controller.results import Results
from targets.base import FleetError
from targets.statistics import summarise


def result(
    run: str, *, device: str = "board", model: str = "net", started_at: float = 1000.0, size: int = 300
) -> RunResult:
    samples = [float(x) for x in np.random.default_rng(size).normal(10, 0.1, size)]
    return RunResult(
        run=run,
        device=device,
        target="x86",
        simulated=True,
        model=model,
        bundle="ab" * 32,
        engine="time_evaluator",
        batch=1,
        started_at=started_at,
        verdict="INVALID",
        reason="other processes used 41 % of the CPU (bound 25 %)",
        latency_ms=LatencyStats(**dataclasses.asdict(summarise(samples))),
        throughput=99.5,
        samples=samples,
        blocks=[100, size - 100],
        spec=BenchSpec(percentile=99.0),
        conditions={"before.temperature_c": 51.5, "before.governor": "performance", "runtime": "tvm ä 0.27"},
        counters={"loads": 3.0},
        agent_version="0.1",
    )


@pytest.fixture(scope="module")
def postgres() -> Iterator[URL]:
    with server() as (host, port):
        yield URL.create("postgresql+psycopg", USER, PASSWORD, host, port, "postgres")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    if request.param == "sqlite":
        yield URL.create("sqlite", database=str(tmp_path / "deep" / "results.db"))
        return
    base: URL = request.getfixturevalue("postgres")
    name = f"t{abs(hash(str(tmp_path))):x}"
    admin = create_engine(base, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield base.set(database=name)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def results(url: URL) -> Iterator[Results]:
    opened = Results(url)
    yield opened
    opened.close()


def test_a_run_comes_back_as_it_was(results: Results) -> None:
    given = result("run-1")
    assert results.add(given, commit="c0ffee+dirty", versions={"apache-tvm": "0.27"}, origin="zoo:net")
    found = results.get("run-1")
    for name in ("device", "model", "verdict", "reason", "latency_ms", "conditions", "counters", "spec", "throughput"):
        assert getattr(found, name) == getattr(given, name), name
    assert (found.commit, found.versions, found.origin) == ("c0ffee+dirty", {"apache-tvm": "0.27"}, "zoo:net")
    samples, blocks = results.samples("run-1")
    assert samples.tolist() == given.samples
    assert blocks.tolist() == [100, 200]
    assert found.samples == 300


def test_adding_again_changes_nothing(results: Results) -> None:
    assert results.add(result("same"), commit="first")
    assert not results.add(result("same", device="other"), commit="second")
    assert [(run.device, run.commit) for run in results.list()] == [("board", "first")]


def test_filters_and_order(results: Results) -> None:
    for index in range(6):
        results.add(result(f"r{index}", device=f"b{index % 2}", model=f"m{index % 3}", started_at=index))
    assert [run.id for run in results.list(limit=3)] == ["r5", "r4", "r3"]
    assert [run.id for run in results.list(limit=0)] == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert [run.id for run in results.list(devices=["b1"])] == ["r5", "r3", "r1"]
    assert [run.id for run in results.list(models=["m0", "m1"], since=3)] == ["r4", "r3"]
    assert results.list(targets=["arm64"]) == []
    assert results.list(verdict="VALID") == []
    assert len(results.list(bundle="abab")) == 6
    assert results.list(bundle="ab%") == []


def test_a_unique_beginning_is_enough(results: Results) -> None:
    for run in ("aa11", "aa22", "b", "bc", "A_1"):
        results.add(result(run))
    assert results.get("aa1").id == "aa11"
    assert results.get("b").id == "b"
    with pytest.raises(FleetError, match=r"aa11 \(net on board\), aa22 \(net on board\)") as ambiguous:
        results.get("aa")
    assert ambiguous.value.code == "ambiguous-run"
    for wrong in ("zz", "%", "_", "", "a" * 100, "A_2"):
        with pytest.raises(FleetError) as unknown:
            results.get(wrong)
        assert unknown.value.code == "unknown-run"


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""},
        {"run": "x" * 65},
        {"run": "a;b"},
        {"blocks": [1]},
        {"blocks": [301, -1]},
        {"throughput": float("nan")},
        {"samples": [float("inf")], "blocks": []},
    ],
)
def test_a_bad_run_is_refused(results: Results, change: dict[str, object]) -> None:
    with pytest.raises(FleetError) as error:
        results.add(msgspec.structs.replace(result("good"), **change))
    assert error.value.code == "bad-run"
    assert results.list() == []


def test_nothing_is_half_stored(results: Results) -> None:
    with results._engine.begin() as connection:
        connection.execute(text("DROP TABLE samples"))
    with pytest.raises(FleetError):
        results.add(result("half"))
    assert results.list() == []


def test_several_commands_at_once_open_and_write(url: URL) -> None:
    """Each process makes the tables or finds them made, adds one run of its own and one that all of them have."""
    code = """
import sys, msgspec
from agent.protocol import RunResult
from controller.results import Results
given = msgspec.json.decode(sys.stdin.buffer.read(), type=list[RunResult])
results = Results(sys.argv[1])
print(sum(results.add(run) for run in given))
"""
    address = url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    for index, process in enumerate(processes):
        assert process.stdin
        process.stdin.write(msgspec.json.encode([result(f"own{index}"), result("common")]))
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    assert sorted(int(output) for output in outputs) == [1, 1, 1, 1, 1, 2]
    results = Results(url)
    assert len(results.list()) == 7
    results.close()


def test_an_older_layout_is_brought_up_to_date(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Results(url)
    first.add(result("old"))
    first.close()
    known = tables.MIGRATIONS
    monkeypatch.setattr(tables, "MIGRATIONS", (*known, ("ALTER TABLE runs ADD COLUMN note TEXT",)))
    for _ in range(2):
        second = Results(url)
        assert second.get("old").device == "board"
        with second._engine.begin() as connection:
            assert connection.execute(text("SELECT note FROM runs")).scalar_one() is None
            assert connection.execute(text("SELECT version FROM fleet_schema")).scalar_one() == len(known) + 2
        second.close()
    monkeypatch.setattr(tables, "MIGRATIONS", known)
    newer = f"layout {len(known) + 2}, this fleet knows layouts up to {len(known) + 1}"
    with pytest.raises(FleetError, match=newer) as error:
        Results(url)
    assert error.value.code == "results-newer"


def accuracy(device: str, *, started_at: float = 1000.0, digest: str = "d" * 64) -> EvalReport:
    return EvalReport(
        device=device,
        target="x86",
        simulated=True,
        model="net",
        bundle="ab" * 32,
        dataset="folder/ä",
        dataset_digest=digest,
        metric="mAP",
        value=0.1 + 0.2,
        images=7,
        metrics={"mAP": 0.1 + 0.2, "AP_small": None},
        classes=[ClassReport(name="dog", truth=3, metrics={"AP": None, "AP50": 1.0})],
        started_at=started_at,
        notes=["a note"],
    )


def test_accuracies_come_back_as_they_were(results: Results) -> None:
    store = Evaluations(results)
    given = [accuracy("one"), accuracy("two", started_at=2000.0), accuracy("one", digest="e" * 64)]
    for report in given:
        store.add(report)
    assert len({report.id for report in given}) == 3
    assert store.get(given[0].id) == given[0] and store.get(given[1].id[:12]) == given[1]
    assert [one.device for one in store.list(limit=1)] == ["two"]
    assert [one.id for one in store.list(devices=["one"], digest="d" * 64)] == [given[0].id]
    assert store.list(models=["other"]) == []
    for wrong in ("zz", "%", "_", "", "a" * 100):
        with pytest.raises(FleetError) as error:
            store.get(wrong)
        assert error.value.code in ("unknown-run", "ambiguous-run")


def test_a_database_from_before_accuracies_gets_them(url: URL) -> None:
    first = Results(url)
    first.add(result("old"))
    with first.transaction(write=True) as connection:
        connection.execute(text("DROP TABLE evaluations"))
        connection.execute(text("UPDATE fleet_schema SET version = 1"))
    first.close()
    second = Results(url)
    given = accuracy("one")
    Evaluations(second).add(given)
    assert Evaluations(second).list() == [given] and second.get("old").device == "board"
    # The same columns as in a database that is made anew.
    columns = {column["name"]: column["nullable"] for column in inspect(second._engine).get_columns("evaluations")}
    assert columns == {column.name: column.nullable for column in tables.evaluations.columns}
    second.close()


def test_a_wrong_password_is_said_without_it(postgres: URL) -> None:
    with pytest.raises(FleetError) as error:
        Results(postgres.set(password="hunter2secret"))
    assert "hunter2secret" not in error.value.message + error.value.hint
    assert "password authentication failed" in error.value.message
    assert "***" in error.value.message
