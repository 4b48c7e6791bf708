"""Bench runs on an agent: results, A/B, cancelling, what must not disturb them, and what survives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from agent_client import Agent, Client, Refused, make_bundle, results_of, running_agent, wait_for

from agent import protocol as p
from targets.base import TensorSpec

#: Other tests share this machine: its load is no reason here.
SPEC = p.BenchSpec(min_duration=0.3, max_other_load=1.0, warmup_max=3.0)
LONG = p.BenchSpec(min_duration=60.0, max_other_load=1.0, warmup_max=3.0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def bench(client: Client, spec: p.BenchSpec = SPEC, **options: list[str]) -> list[p.RunResult]:
    done = client.ask(p.Bench(token=client.lease, spec=spec, **options), p.BenchDone, seconds=90)
    results = results_of(client.payload)
    assert done.runs == [result.run for result in results]
    return results


def start_long(client: Client) -> int:
    """Start a bench and wait until it measures."""
    number = client.send(p.Bench(token=client.lease, spec=LONG))

    def measuring() -> bool:
        got = client.receive(1.0)
        if got is not None:
            client.events.append(got[0])
        return any(isinstance(event, p.Samples) for event in client.events)

    wait_for(measuring, "it measures")
    return number


def test_a_result_is_whole_and_its_samples_were_streamed(agent: Agent) -> None:
    bundle = make_bundle(sleep=0.002)
    with agent.session(lease=True) as client:
        client.deploy(bundle)
        client.events.clear()
        (result,) = bench(client)
        assert (result.model, result.bundle, result.device, result.target) == ("product", bundle.id, "board", "numpy")
        assert result.batch == 2 and result.engine == "host_clock" and not result.simulated
        assert len(result.samples) >= 64 and sum(result.blocks) == len(result.samples)
        assert result.latency_ms.min >= 2.0 and result.latency_ms.p50 == pytest.approx(np.median(result.samples))
        assert result.throughput == pytest.approx(2 * 1e3 / np.mean(result.samples))
        assert result.verdict == "VALID" or result.reason
        conditions = result.conditions
        assert conditions["numpy"] == np.__version__ and conditions["during.abacus_beads"] == 91.0
        assert 0 <= float(conditions["during.other_load"]) <= 1
        for when in ("before", "after"):
            assert conditions[f"{when}.memory_bytes"]
        stages = [event.stage for event in client.events if isinstance(event, p.Stage)]
        assert stages == ["load", "warmup", "measure"]
        streamed = [event for event in client.events if isinstance(event, p.Samples)]
        assert [v for event in streamed for v in event.values] == pytest.approx(result.samples)
        assert streamed[-1].share == 1.0 and all(event.bundle == bundle.id for event in streamed)


def test_load_of_others_makes_a_run_invalid(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle())
        burner = psutil.Popen(["python3", "-c", "while True: pass"])
        try:
            (result,) = bench(client, p.BenchSpec(min_duration=0.5, max_other_load=0.05, warmup_max=1.0))
        finally:
            burner.kill()
            burner.wait()
        assert result.verdict == "INVALID" and "other processes used" in result.reason


def test_two_bundles_are_interleaved(agent: Agent) -> None:
    fast, slow = make_bundle("fast", sleep=0.001), make_bundle("slow", sleep=0.003)
    with agent.session(lease=True) as client:
        client.push(fast)
        client.push(slow)
        a, b = bench(client, bundles=[fast.id, slow.id])
        assert (a.bundle, b.bundle) == (fast.id, slow.id)
        assert (a.interleaved_with, b.interleaved_with) == (b.run, a.run)
        assert b.latency_ms.p50 - a.latency_ms.p50 == pytest.approx(2.0, rel=0.3)
        assert {event.model for event in client.events if isinstance(event, p.Samples)} == {"fast", "slow"}


def test_a_bundle_can_be_compared_with_itself(agent: Agent) -> None:
    bundle = make_bundle(sleep=0.001)
    with agent.session(lease=True) as client:
        client.push(bundle)
        a, b = bench(client, bundles=[bundle.id, bundle.id])
        assert a.run != b.run and a.bundle == b.bundle
        assert len(agent.workers()) == 2


@pytest.mark.parametrize(
    ("spec", "bundles", "code"),
    [
        (p.BenchSpec(percentile=float("nan")), 1, "bad-spec"),
        (p.BenchSpec(percentile=100), 1, "bad-spec"),
        (p.BenchSpec(min_duration=1e9), 1, "bad-spec"),
        (SPEC, 3, "bad-spec"),
    ],
)
def test_what_cannot_be_measured_is_refused(agent: Agent, spec: p.BenchSpec, bundles: int, code: str) -> None:
    bundle = make_bundle()
    with agent.session(lease=True) as client:
        client.push(bundle)
        with pytest.raises(Refused) as refused:
            bench(client, spec, bundles=[bundle.id] * bundles)
        assert refused.value.code == code
        assert client.status().state == "leased"


def test_a_model_that_fails_in_the_middle_gives_no_result(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(bundle := make_bundle(crash=True))
        with pytest.raises(Refused) as refused:
            bench(client, bundles=[bundle.id])
        assert refused.value.code == "worker-crashed" and "SIGSEGV" in refused.value.message
        assert client.status().unacknowledged == 0


def test_a_worker_killed_in_the_middle_ends_the_run_and_nothing_else(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle(sleep=0.002))
        number = start_long(client)
        (worker,) = agent.workers()
        psutil.Process(worker).kill()
        with pytest.raises(Refused) as refused:
            client.reply(number)
        assert refused.value.code == "worker-crashed" and "SIGKILL" in refused.value.message
        status = client.status()
        assert status.state == "leased" and status.unacknowledged == 0
        assert len(bench(client)) == 1


def test_a_bench_can_be_cancelled(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle(sleep=0.002))
        number = start_long(client)
        client.ask(p.Cancel(request=number), p.Done)
        with pytest.raises(Refused) as refused:
            client.reply(number)
        assert refused.value.code == "cancelled"
        status = client.status()
        assert status.state == "leased" and status.unacknowledged == 0


def test_nothing_disturbs_a_measurement(agent: Agent) -> None:
    with agent.session(lease=True) as client, agent.session() as other:
        client.deploy(make_bundle(sleep=0.002))
        number = start_long(client)
        assert other.status().state == "benching"
        spec = TensorSpec("x", (2, 8), "float32")
        for asking in (other, client):
            with pytest.raises(Refused) as refused:
                asking.ask(p.Infer(inputs=[spec]), p.Inferred, b"\0" * 64)
            assert refused.value.code == "busy" and "product is being measured" in refused.value.message
        client.ask(p.ReleaseLease(token=client.lease), p.Done)
        with pytest.raises(Refused):
            client.reply(number)
        other.ask(p.Infer(inputs=[spec]), p.Inferred, b"\0" * 64)


def test_results_stay_until_they_are_acknowledged(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle())
        results = bench(client) + bench(client)
        assert client.status().unacknowledged == 2
        agent.kill()
    agent.start()
    with agent.session() as client:
        client.ask(p.GetJournal(), p.Done)
        assert results_of(client.payload) == results
        client.ask(p.GetJournal(limit=1), p.Done)
        assert results_of(client.payload) == results[:1]
        client.ask(p.AckResults(runs=[results[0].run, "unknown"]), p.Done)
        client.ask(p.GetJournal(), p.Done)
        assert results_of(client.payload) == results[1:]


def test_a_controller_that_goes_away_finds_the_result_in_the_journal(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle(sleep=0.001))
        client.send(p.Bench(token=client.lease, spec=SPEC))
        wait_for(lambda: client.receive(1), "it has begun")
    with agent.session() as another:
        wait_for(lambda: another.status().unacknowledged == 1, "the result is in the journal")
        another.ask(p.GetJournal(), p.Done)
        (result,) = results_of(another.payload)
        assert result.model == "product"
