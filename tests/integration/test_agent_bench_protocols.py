"""Bench runs of an agent beside the usual one: the notebooks' protocol, engines with starts, and checked outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_client import Agent, Client, Refused, make_bundle, results_of, running_agent

from agent import protocol as p
from targets.bench import BLOCKED_BLOCKS, MIN_BLOCKS

SPEC = p.BenchSpec(min_duration=0.5, max_other_load=1.0, warmup_max=3.0)
NOTEBOOK = msgspec.structs.replace(SPEC, protocol="notebook")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def bench(client: Client, spec: p.BenchSpec, *bundles: str) -> list[p.RunResult]:
    client.ask(p.Bench(token=client.lease, spec=spec, bundles=list(bundles)), p.BenchDone, seconds=90)
    return results_of(client.payload)


def test_the_notebooks_protocol_on_the_hosts_clock(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(bundle := make_bundle(sleep=0.002, queue=True))
        client.events.clear()
        (result,) = bench(client, NOTEBOOK, bundle.id)
        assert result.spec.protocol == "notebook" and len(result.samples) == 100
        assert result.conditions["clock"] == "host" and result.conditions["measured_on_host"] == "100"
        # One query before it, fifty together, and each of the hundred.
        assert result.conditions["waits"] == "102"
        assert 2.0 <= result.latency_ms.mean < 20 and result.throughput == pytest.approx(2e3 / result.latency_ms.mean)
        streamed = [event.values for event in client.events if isinstance(event, p.Samples)]
        assert sum(map(len, streamed)) == 100


def test_an_engine_without_the_hosts_clock_says_whose_it_was(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(bundle := make_bundle(sleep=0.001))
        (result,) = bench(client, NOTEBOOK, bundle.id)
        assert len(result.samples) == 100 and result.conditions["clock"] == "engine"


def test_the_notebooks_protocol_interleaves_nothing(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(bundle := make_bundle())
        with pytest.raises(Refused) as refused:
            bench(client, NOTEBOOK, bundle.id, bundle.id)
        assert refused.value.code == "bad-spec" and client.status().state == "leased"


def test_an_engine_with_starts_is_started_seldom(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(bundle := make_bundle(sleep=0.002, start=0.2))
        client.events.clear()
        (result,) = bench(client, SPEC, bundle.id)
        assert len(result.blocks) == BLOCKED_BLOCKS < MIN_BLOCKS
        assert int(result.conditions["starts"]) <= BLOCKED_BLOCKS + 6
        assert min(result.blocks) >= 50
        streamed = [event for event in client.events if isinstance(event, p.Samples)]
        assert len(streamed) == BLOCKED_BLOCKS and [event.share for event in streamed][-1] == 1.0


def test_a_slow_engine_with_starts_really_takes_longer(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--simulated", "--fault", "slow:3") as slow, slow.session(lease=True) as client:
        client.push(bundle := make_bundle(sleep=0.002, start=0.2))
        (result,) = bench(client, SPEC, bundle.id)
        assert result.latency_ms.p50 >= 6.0 and int(result.conditions["starts"]) <= BLOCKED_BLOCKS + 6


def test_outputs_are_checked_before_anything_is_timed(agent: Agent) -> None:
    checked = msgspec.structs.replace(SPEC, check=True)
    with agent.session(lease=True) as client:
        client.push(right := make_bundle())
        client.events.clear()
        (result,) = bench(client, checked, right.id)
        assert result.conditions["golden_mismatch"] == "" and 0 <= result.conditions["golden_error"] < 1e-3
        stages = [event.stage for event in client.events if isinstance(event, p.Stage)]
        assert stages[0] == "load" and stages[1] == "golden" and stages[-2:] == ["warmup", "measure"]
        (plain,) = bench(client, SPEC, right.id)
        assert "golden_error" not in plain.conditions


def test_a_wrong_result_makes_a_checked_run_invalid(tmp_path: Path) -> None:
    checked = msgspec.structs.replace(SPEC, check=True)
    with (
        running_agent(tmp_path, "--simulated", "--fault", "wrong-result") as wrong,
        wrong.session(lease=True) as client,
    ):
        client.push(bundle := make_bundle())
        (result,) = bench(client, checked, bundle.id)
        assert result.verdict == "INVALID" and result.reason.startswith("golden check: set 1 of")
        assert result.conditions["golden_error"] >= 1 and result.conditions["golden_mismatch"] in result.reason
