"""An agent that is killed at any moment comes back with its store whole and its last good release active."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_client import Agent, Bundle, is_dead, make_bundle, results_of, running_agent, wait_for

from agent import protocol as p
from agent.store import Store

X = np.arange(16, dtype="float32").reshape(2, 8)
SPEC = p.BenchSpec(min_duration=0.3, max_other_load=1.0, warmup_max=3.0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def check(agent: Agent, *allowed: Bundle) -> None:
    """The agent is back: one of the allowed releases is active and computes; leases and workers are gone."""
    with agent.session() as client:
        status = client.status()
        assert status.lease is None and status.state == "idle"
        (release,) = status.releases
        by_id = {bundle.id: bundle for bundle in allowed}
        assert release.bundle in by_id
        np.testing.assert_allclose(client.infer(X), X @ by_id[release.bundle].weight, rtol=1e-5)


def gone(pids: list[int]) -> None:
    wait_for(lambda: all(map(is_dead, pids)), "no worker outlives its agent")


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_a_push(agent: Agent, seed: int) -> None:
    dice = random.Random(seed)
    first = make_bundle("first", seed=1)
    second = make_bundle("second", seed=2, extra=dice.randbytes(3_000_000))
    with agent.session(lease=True) as client:
        client.deploy(first)
        ref = max(second.refs, key=lambda ref: ref.size)
        client.ask(p.QueryBlobs(blobs=second.refs), p.MissingBlobs)
        data = second.blobs[ref.sha256]
        for offset in range(0, len(data), 100_000):
            piece = data[offset : offset + 100_000]
            client.send(
                p.PutChunk(token=client.lease, sha256=ref.sha256, offset=offset, length=len(piece), total=len(data)),
                piece,
            )
        stored = dice.randrange(1, 28)
        for _ in range(stored):
            got = client.receive()
            assert got is not None and isinstance(got[0], p.ChunkStored)
        agent.kill()
    agent.start()
    check(agent, first)
    with agent.session(lease=True) as client:
        missing = {m.sha256: m.offset for m in client.ask(p.QueryBlobs(blobs=second.refs), p.MissingBlobs).missing}
        held = missing.get(ref.sha256, ref.size)
        assert held >= stored * 100_000, "what was acknowledged is there"
        rest = client.push(second)
        assert rest == sum(blob.size for blob in second.refs if blob.sha256 in missing) - missing.get(ref.sha256, 0)
        assert client.activate(second).status == "active"


@pytest.mark.parametrize("stage", ["load", "golden", "latency"])
def test_killed_in_an_activation(agent: Agent, stage: str) -> None:
    first, second = make_bundle("first", seed=1), make_bundle("second", seed=2, sleep=0.05)
    with agent.session(lease=True) as client:
        client.deploy(first)
        client.push(second)
        client.send(p.Activate(token=client.lease, bundle=second.id, latency_budget_ms=500.0))
        while True:
            got = client.receive()
            assert got is not None and isinstance(got[0], p.Stage)
            if got[0].stage == stage:
                break
        workers = agent.workers()
        agent.kill()
    gone(workers)
    agent.start()
    check(agent, first)
    with agent.session(lease=True) as client:
        assert client.deploy(second).status == "active"


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_of_an_activation(agent: Agent, seed: int) -> None:
    first, second = make_bundle("first", seed=1), make_bundle("second", seed=2)
    with agent.session(lease=True) as client:
        client.deploy(first)
        client.push(second)
        client.send(p.Activate(token=client.lease, bundle=second.id))
        time.sleep(random.Random(seed).uniform(0.0, 0.45))  # the moment itself is what varies
        workers = agent.workers()
        told = client.receive(0) if client.socket.poll(0) else None
        while told is not None and not isinstance(told[0], p.Activated):
            told = client.receive(0)
        agent.kill()
    gone(workers)
    agent.start()
    # Once it was told that the release is active, it is.
    check(agent, *((second,) if told is not None else (first, second)))


def test_killed_while_it_measures(agent: Agent) -> None:
    bundle = make_bundle(sleep=0.002)
    with agent.session(lease=True) as client:
        client.deploy(bundle)
        client.ask(p.Bench(token=client.lease, spec=SPEC), p.BenchDone)
        (before,) = results_of(client.payload)
        client.send(p.Bench(token=client.lease, spec=p.BenchSpec(min_duration=60, max_other_load=1.0)))
        while True:
            got = client.receive()
            assert got is not None
            if isinstance(got[0], p.Samples):
                break
        workers = agent.workers()
        assert workers
        agent.kill()
    gone(workers)
    agent.start()
    check(agent, bundle)
    with agent.session() as client:
        client.ask(p.GetJournal(), p.Done)
        assert results_of(client.payload) == [before]


def test_a_hanging_worker_dies_with_its_agent(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.push(hanging := make_bundle(hang=True))
        client.send(p.Activate(token=client.lease, bundle=hanging.id))
        got = client.receive()
        while got is not None and not (isinstance(got[0], p.Stage) and got[0].stage == "golden"):
            got = client.receive()
        workers = agent.workers()
        assert got is not None and workers
        agent.kill()
    gone(workers)


def test_what_half_a_collection_leaves_is_cleaned_up(agent: Agent) -> None:
    """A store that was killed while it removed a bundle opens, and the release is not touched."""
    first, second = make_bundle("first", seed=1), make_bundle("second", seed=2)
    with agent.session(lease=True) as client:
        client.deploy(first)
        client.push(second)
        agent.kill()
    root = agent.home.store / "bundles"
    (root / second.id).rename(root / f".tmp-{second.id}")
    assert Store(agent.home.store).bundles() == [first.id]
    agent.start()
    check(agent, first)
    with agent.session(lease=True) as client:
        assert client.push(second) == 0
        assert client.activate(second).status == "active"
