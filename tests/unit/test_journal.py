"""The journal of results."""

import logging
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.journal import Journal
from agent.protocol import BenchSpec, LatencyStats, RunResult
from targets.base import FleetError
from targets.files import TEMPORARY


def result(run: str, samples: int = 3) -> RunResult:
    return RunResult(
        run=run,
        device="board",
        target="x86",
        simulated=True,
        model="net",
        bundle="ab" * 32,
        engine="time_evaluator",
        batch=1,
        started_at=12.5,
        verdict="VALID",
        latency_ms=LatencyStats(mean=1, std=0, min=1, p50=1, p90=1, p99=1, max=1, ci50=(1, 1)),
        throughput=1000.0,
        samples=[0.1 * i for i in range(samples)],
        spec=BenchSpec(),
        conditions={"before.temperature_c": 40.5, "governor": "performance"},
    )


def runs(journal: Journal, limit: int = 100) -> list[str]:
    return [r.run for r in journal.pending(limit)]


def test_results_are_kept_until_they_are_acknowledged(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    results = [result(f"run-{i}") for i in range(12)]
    for one in results:
        journal.add(one)
    for reader in (journal, Journal(tmp_path / "journal")):
        assert reader.count() == 12
        assert reader.pending(100) == results
        assert runs(reader, 3) == ["run-0", "run-1", "run-2"]
        assert runs(reader, 0) == []
    journal.ack(["run-1", "run-0", "run-0", "never", "../x"])
    for reader in (journal, Journal(tmp_path / "journal")):
        assert runs(reader) == [f"run-{i}" for i in range(2, 12)]
    journal.ack(f"run-{i}" for i in range(12))
    assert journal.count() == Journal(tmp_path / "journal").count() == 0
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_run_is_added_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(result("a"))
    journal.add(result("a", samples=9))
    again = Journal(tmp_path)
    again.add(result("a", samples=9))
    assert again.pending(9) == [result("a")]


def test_new_results_come_after_old_ones_whatever_was_acknowledged(tmp_path: Path) -> None:
    Journal(tmp_path).add(result("z"))
    journal = Journal(tmp_path)
    journal.add(result("y"))
    journal.ack(["z"])
    Journal(tmp_path).add(result("a"))
    assert runs(Journal(tmp_path)) == ["y", "a"]


@pytest.mark.parametrize("run", ["", "../a", "a/b", ".a", "a\0", "x" * 129, "a b", "é"])
def test_a_run_cannot_be_a_path(tmp_path: Path, run: str) -> None:
    with pytest.raises(FleetError) as caught:
        Journal(tmp_path).add(result(run))
    assert caught.value.code == "bad-run"
    assert list(tmp_path.iterdir()) == []


def test_not_more_than_fits_into_a_message(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(4):
        journal.add(result(f"run-{i}", samples=1000))
    size = len(msgspec.msgpack.encode(result("run-0", samples=1000)))
    assert [r.run for r in journal.pending(9, max_bytes=2 * size)] == ["run-0", "run-1"]
    # One is always given, or nothing would ever be.
    assert [r.run for r in journal.pending(9, max_bytes=1)] == ["run-0"]


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=50))
def test_a_damaged_result_is_put_aside_and_the_others_are_given(contents: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        journal = Journal(root)
        for run in "abc":
            journal.add(result(run))
        next(root.glob("*-b.run")).write_bytes(contents)
        (root / f"{TEMPORARY}d").write_bytes(b"unfinished")
        journal = Journal(root)
        assert runs(journal, 2) == ["a", "c"]
        assert journal.count() == 2
        assert next(root.glob("*.damaged")).read_bytes() == contents
        assert not list(root.glob(f"{TEMPORARY}*"))
        assert runs(Journal(root)) == ["a", "c"]


def test_a_result_that_somebody_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.add(result("a"))
    journal.add(result("b"))
    next(tmp_path.glob("*-a.run")).unlink()
    with caplog.at_level(logging.ERROR):
        assert runs(journal) == ["b"]
    assert "run a" in caplog.text
    journal.ack(["a", "b"])
    assert journal.count() == 0


def test_threads_may_add_and_acknowledge_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(10):
                journal.add(result(f"{name}{i}"))
                assert len(journal.pending(100)) >= 1
                if i % 2:
                    journal.ack([f"{name}{i}"])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    expected = {f"{name}{i}" for name in "abc" for i in range(0, 10, 2)}
    assert set(runs(journal)) == set(runs(Journal(tmp_path))) == expected
