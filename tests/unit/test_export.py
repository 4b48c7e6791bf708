"""Exported runs can be read back by the programs they are for."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import numpy.typing as npt
import pytest

from agent.protocol import BenchSpec, LatencyStats
from controller.export import FORMATS, export
from controller.results import StoredRun
from targets.base import FleetError

LATENCIES = [1.5, 1.25, 1.75]


def run(name: str, **changes: object) -> StoredRun:
    fields: dict[str, object] = {
        "id": name,
        "device": "board",
        "target": "pynq",
        "model": "net",
        "bundle": "ab" * 32,
        "engine": "time_evaluator",
        "batch": 1,
        "verdict": "VALID",
        "reason": "",
        "latency_ms": LatencyStats(mean=1.5, std=0.2, min=1.25, p50=1.5, p90=1.75, p99=1.75, max=1.75, ci50=(1.4, 1.6)),
        "throughput": 666.7,
        "samples": 3,
        "counters": {},
        "simulated": True,
        "started_at": 1_700_000_000.0,
        "spec": BenchSpec(),
        "conditions": {"before.temperature_c": 45.5},
        "commit": "c0ffee",
    }
    return StoredRun(**(fields | changes))  # type: ignore[arg-type]


def samples(name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    return np.array(LATENCIES), np.array([1, 2], dtype=np.int32)


RUNS = [run("one"), run("two", device="=cmd()", conditions={"after.governor": "performance"}, reason='a "b", c\nd')]


def test_csv_has_a_row_a_run_and_a_column_a_condition() -> None:
    out = io.StringIO()
    export(RUNS, "csv", out)
    one, two = csv.DictReader(io.StringIO(out.getvalue()))
    assert one["id"] == "one"
    assert one["started"] == "2023-11-14T22:13:20+00:00"
    assert float(one["p50_ms"]) == 1.5
    assert (float(one["ci50_low_ms"]), float(one["ci50_high_ms"])) == (1.4, 1.6)
    assert (one["before.temperature_c"], one["after.governor"]) == ("45.5", "")
    assert (two["before.temperature_c"], two["after.governor"]) == ("", "performance")
    assert two["reason"] == 'a "b", c\nd'
    assert two["device"] == "'=cmd()"
    assert one["simulated"] == "true"


def test_csv_of_samples_has_a_row_a_sample() -> None:
    out = io.StringIO()
    export(RUNS[:1], "csv", out, samples=samples)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [(row["id"], row["index"], row["block"], float(row["latency_ms"])) for row in rows] == [
        ("one", "0", "0", 1.5),
        ("one", "1", "1", 1.25),
        ("one", "2", "1", 1.75),
    ]


def test_json_lines() -> None:
    out = io.StringIO()
    export(RUNS, "jsonl", out, samples=samples)
    documents = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [document["id"] for document in documents] == ["one", "two"]
    assert documents[0]["latencies_ms"] == LATENCIES
    assert documents[0]["blocks"] == [1, 2]
    assert documents[0]["latency_ms"]["ci50"] == [1.4, 1.6]
    assert documents[1]["device"] == "=cmd()"


@pytest.mark.parametrize("runs", [[], RUNS])
def test_json_is_one_document(runs: list[StoredRun]) -> None:
    out = io.StringIO()
    export(runs, "json", out)
    document = json.loads(out.getvalue())
    assert document["schema"] == 1
    assert [found["id"] for found in document["runs"]] == [one.id for one in runs]
    assert all("latencies_ms" not in found for found in document["runs"])


def test_markdown_is_a_table_that_text_from_a_device_cannot_break() -> None:
    out = io.StringIO()
    export([run("three", device="a|b", model="<script>", reason="x\ny", verdict="INVALID", batch=8)], "md", out)
    head, rule, row = out.getvalue().splitlines()
    unescaped = row.replace("\\|", "")
    assert head.count("|") == rule.count("|") == unescaped.count("|")
    assert "a\\|b (simulated)" in row
    assert "&lt;script> × 8" in row
    assert "INVALID: x y" in row
    assert "1.5 (1.4 to 1.6)" in row


def test_what_cannot_be_exported() -> None:
    for form, wanted in (("md", samples), ("xml", None)):
        with pytest.raises(FleetError) as error:
            export(RUNS, form, io.StringIO(), samples=wanted)  # type: ignore[arg-type]
        assert error.value.code == "bad-export"
    assert FORMATS == ("csv", "jsonl", "json", "md")
