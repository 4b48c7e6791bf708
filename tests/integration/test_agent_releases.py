"""Proving and activating releases: good ones, wrong ones, ones that crash, hang, leak, are slow; roll back; faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from agent_client import Agent, Client, Refused, is_dead, make_bundle, running_agent, wait_for

from agent import protocol as p
from targets.base import Requirements, TensorSpec
from targets.keys import Keys

X = np.arange(16, dtype="float32").reshape(2, 8)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def active(client: Client) -> str:
    (release,) = client.status().releases
    return release.bundle


def test_a_kind_of_board_that_is_no_part_of_fleet_needs_one_folder(agent: Agent) -> None:
    """The target is `numpy_target/`: a module and an entry point, on the path of the agent and its workers."""
    bundle = make_bundle()
    with agent.session(lease=True) as client:
        activated = client.deploy(bundle)
        assert activated.status == "active" and activated.active == bundle.id
        np.testing.assert_allclose(client.infer(X), X @ bundle.weight, rtol=1e-5)
        stages = [(event.stage, event.detail) for event in client.events if isinstance(event, p.Stage)]
        assert stages == [("load", "product"), ("golden", "1 of 2"), ("golden", "2 of 2")]
        client.ask(p.GetManifest(), p.Done)
        assert client.payload == bundle.manifest


def test_activating_again_is_unchanged_and_loads_nothing(agent: Agent) -> None:
    bundle = make_bundle()
    with agent.session(lease=True) as client:
        client.deploy(bundle)
        client.events.clear()
        assert client.push(bundle) == 0
        again = client.activate(bundle)
        assert again.status == "unchanged" and again.active == bundle.id and client.events == []


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"bias": 0.5}, {}, r"golden check: set 1 of 2: output 'y'\[\d, \d\] is .* difference 0\.5, bound 0\.00\d+"),
    ({"bias": float("nan")}, {}, r"golden check: .* is nan where"),
    ({"crash": True}, {}, r"golden check: the worker was killed by SIGSEGV"),
    ({"exit": True}, {}, r"golden check: the worker exited with status 7"),
    ({"raise": "no more beads"}, {}, r"golden check: RuntimeError: no more beads"),
    ({"unloadable": True}, {}, r"loading: the program says that it cannot be loaded"),
    ({"hang": True}, {"deadline": 2.0}, r"golden check: the proof did not end within its deadline of 2 s"),
    (
        {"sleep": 0.02},
        {"latency_budget_ms": 5.0},
        r"latency budget: the median is 2\d\.\d+ ms, the budget is 5 ms",
    ),
    ({"requirements": Requirements(accelerator="abacus")}, {}, "requirements: this device has no abacus"),
    ({"requirements": Requirements(agent="99.0")}, {}, "requirements: the bundle needs agent 99.0, this is"),
]


@pytest.mark.parametrize(("program", "options", "reason"), BAD, ids=[reason[:30] for _, _, reason in BAD])
def test_a_bad_bundle_goes_back_to_the_release_before(
    agent: Agent, program: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    good, bad = make_bundle("good"), make_bundle("bad", **program)
    unmet = "requirements" in program
    with agent.session(lease=True) as client:
        first = client.deploy(bad, **options)
        assert first.status == "failed" and first.active == "" and client.status().releases == []
        client.deploy(good)
        answer = client.activate(bad, **options)
        assert answer.status == ("failed" if unmet else "rolled-back")
        assert answer.bundle == bad.id and answer.active == good.id
        import re

        assert re.match(reason, answer.reason), answer.reason
        assert active(client) == good.id
        np.testing.assert_allclose(client.infer(X), X @ good.weight, rtol=1e-5)
        assert client.status().state == "leased"


def test_a_reference_of_nan_or_another_shape_never_passes(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        answer = client.deploy(make_bundle(golden_offset=float("nan")))
        assert answer.status == "failed" and "nan" in answer.reason
        assert answer.golden_error == float("inf")


def test_a_worker_that_never_answers_is_killed_after_its_deadline(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--call-deadline", "1.5") as agent, agent.session(lease=True) as client:
        answer = client.deploy(make_bundle(hang=True))
        assert answer.status == "failed" and "did not answer 'check-golden' within 1.5 s" in answer.reason
        wait_for(lambda: not agent.workers(), "the worker has gone")


def test_a_worker_that_takes_too_much_memory_is_killed(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--worker-memory", str(200 << 20)) as agent, agent.session(lease=True) as client:
        answer = client.deploy(make_bundle(leak=True))
        assert answer.status == "failed" and "the limit is 200 MiB" in answer.reason
        wait_for(lambda: not agent.workers(), "the worker has gone")
        assert client.deploy(make_bundle("modest")).status == "active"


def test_a_latency_budget_that_is_met_is_reported(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        answer = client.deploy(make_bundle(sleep=0.005), latency_budget_ms=1000.0)
        assert answer.status == "active" and 5 <= answer.latency_ms < 1000
        assert [event.stage for event in client.events if isinstance(event, p.Stage)][-1] == "latency"


def test_rollback_swaps_the_two_releases(agent: Agent) -> None:
    one, two = make_bundle("one", seed=1), make_bundle("two", seed=2)
    with agent.session(lease=True) as client:
        client.deploy(one)
        with pytest.raises(Refused) as refused:
            client.ask(p.Rollback(token=client.lease), p.Activated)
        assert refused.value.code == "nothing-to-roll-back"
        client.deploy(two)
        for expected, before in ((one, two), (two, one)):
            back = client.ask(p.Rollback(token=client.lease), p.Activated)
            assert back.status == "active" and back.active == expected.id
            (release,) = client.status().releases
            assert (release.bundle, release.previous) == (expected.id, before.id)
            np.testing.assert_allclose(client.infer(X), X @ expected.weight, rtol=1e-5)


def test_slots_are_apart(agent: Agent) -> None:
    one, two = make_bundle("one", seed=1), make_bundle("two", seed=2)
    with agent.session(lease=True) as client:
        client.deploy(one)
        client.deploy(two, slot="side")
        assert [(r.slot, r.bundle) for r in client.status().releases] == [("default", one.id), ("side", two.id)]
        np.testing.assert_allclose(client.infer(X, slot="side"), X @ two.weight, rtol=1e-5)
        for slot in ("", "../up", "A", "x" * 65):
            with pytest.raises(Refused) as refused:
                client.activate(one, slot=slot)
            assert refused.value.code == "bad-slot"


def test_a_bundle_for_another_target_is_refused(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        with pytest.raises(Refused, match=r"for target 'jetson', board is 'numpy'") as refused:
            client.push(make_bundle(target="jetson"))
        assert refused.value.code == "wrong-target"


def test_a_bundle_that_is_not_there_is_refused(agent: Agent) -> None:
    with agent.session(lease=True) as client, pytest.raises(Refused) as refused:
        client.activate(make_bundle())
    assert refused.value.code == "no-such-bundle"


def test_an_activation_can_be_cancelled(agent: Agent) -> None:
    good, hanging = make_bundle("good"), make_bundle("hanging", hang=True)
    with agent.session(lease=True) as client:
        client.deploy(good)
        client.push(hanging)
        number = client.send(p.Activate(token=client.lease, bundle=hanging.id))
        wait_for(lambda: client.status().state == "activating", "it is activating")
        client.ask(p.Cancel(request=number), p.Done)
        with pytest.raises(Refused) as refused:
            client.reply(number)
        assert refused.value.code == "cancelled"
        assert active(client) == good.id and client.status().state == "leased"
        # One that is cancelled before it was looked at ends just so.
        number = client.send(p.Activate(token=client.lease, bundle=hanging.id))
        client.ask(p.Cancel(request=number), p.Done)
        with pytest.raises(Refused) as refused:
            client.reply(number)
        assert refused.value.code == "cancelled"


def test_only_signed_bundles_are_taken_where_keys_are_trusted(agent: Agent, tmp_path: Path) -> None:
    ours, theirs = Keys(tmp_path / "ours"), Keys(tmp_path / "theirs")
    bundle = make_bundle()
    with agent.session(lease=True) as client:
        (agent.home.trusted / "ours.pub").write_text(ours.signing_public + "\n")
        for signature in (None, theirs.sign(bundle.id), ours.sign("0" * 64)):
            with pytest.raises(Refused):
                client.push(bundle, signature=signature)
        client.push(bundle, signature=ours.sign(bundle.id))
        # A damaged key file trusts nobody; it does not open the door.
        (agent.home.trusted / "ours.pub").write_text("rubbish")
        with pytest.raises(Refused):
            client.push(make_bundle("another"))


def test_an_idle_worker_ends_after_a_while_and_is_used_until_then(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--worker-idle", "1.5") as agent, agent.session(lease=True) as client:
        client.deploy(make_bundle())
        (worker,) = agent.workers()
        client.infer(X)
        assert agent.workers() == [worker]
        wait_for(lambda: not agent.workers(), "the idle worker has ended")
        client.infer(X)
        assert agent.workers() and agent.workers() != [worker]


def test_a_worker_that_dies_between_two_uses_is_replaced(agent: Agent) -> None:
    bundle = make_bundle()
    with agent.session(lease=True) as client:
        client.deploy(bundle)
        (worker,) = agent.workers()
        psutil.Process(worker).kill()
        wait_for(lambda: is_dead(worker), "it is dead")
        np.testing.assert_allclose(client.infer(X), X @ bundle.weight, rtol=1e-5)


def test_what_a_worker_says_is_logged_but_not_without_bound(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle(spam=5000))
        wait_for(lambda: "more lines were left out" in agent.log, "the rest is counted")
        assert agent.log.count("a line that nobody needs") < 1000


# --- Faults -------------------------------------------------------------------------------------


def test_faults_are_for_simulated_boards_only(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="only a simulated board can have faults"),
        running_agent(tmp_path, "--fault", "crash"),
    ):
        pass


@pytest.mark.parametrize("fault", ["fire", "slow:fast", "slow:0.5", "crash:3", "drop:0"])
def test_a_fault_that_does_not_exist_is_refused(tmp_path: Path, fault: str) -> None:
    with (
        pytest.raises(AssertionError, match=f"fault '{fault}'"),
        running_agent(tmp_path, "--simulated", "--fault", fault),
    ):
        pass


@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [
        ("wrong-result", {}, "difference 1, bound"),
        ("crash", {}, "killed by SIGSEGV"),
        ("hang", {"deadline": 2.0}, "deadline of 2 s"),
    ],
)
def test_faults_of_a_model_make_its_activation_fail(
    tmp_path: Path, fault: str, options: dict[str, Any], reason: str
) -> None:
    good = make_bundle("good")
    with running_agent(tmp_path, "--simulated") as agent:
        with agent.session(lease=True) as client:
            client.deploy(good)
        agent.stop()
        agent.start("--fault", fault)
        with agent.session(lease=True) as client:
            answer = client.deploy(make_bundle("next", seed=1), **options)
            assert answer.status == "rolled-back" and reason in answer.reason and answer.active == good.id


def test_the_fault_refuse_start(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="refuses to start"),
        running_agent(tmp_path, "--simulated", "--fault", "refuse-start"),
    ):
        pass


def test_the_fault_slow_really_spends_the_time(tmp_path: Path) -> None:
    bundle = make_bundle(sleep=0.01)
    spec = p.BenchSpec(min_duration=0.0, percentile=50, max_other_load=1.0)
    with running_agent(tmp_path, "--simulated", "--fault", "slow:3") as agent, agent.session(lease=True) as client:
        client.deploy(bundle)
        begin = time.monotonic()
        client.ask(p.Bench(token=client.lease, spec=spec), p.BenchDone)
        seconds = time.monotonic() - begin
        from agent_client import results_of

        (result,) = results_of(client.payload)
        assert result.latency_ms.p50 >= 30 and result.simulated and result.conditions["faults"] == "slow:3"
        assert seconds >= 0.03 * len(result.samples)


def test_the_fault_drop_cuts_a_push_that_then_goes_on(tmp_path: Path) -> None:
    bundle = make_bundle(extra=np.random.default_rng(0).bytes(600_000))
    with running_agent(tmp_path, "--simulated", "--fault", "drop:3") as agent:
        port = agent.info.port
        with agent.session(lease=True) as client:
            ref = max(bundle.refs, key=lambda ref: ref.size)
            data = bundle.blobs[ref.sha256]
            for offset in (0, 100_000, 200_000):
                put = p.PutChunk(token=client.lease, sha256=ref.sha256, offset=offset, length=100_000, total=ref.size)
                number = client.send(put, data[offset : offset + 100_000])
                if offset < 200_000:
                    client.reply(number)
            assert client.receive(1.0) is None
        assert agent.info.port == port
        with agent.session(lease=True) as client:
            assert client.push(bundle) == sum(map(len, bundle.blobs.values())) - 200_000
            assert client.activate(bundle).status == "active"


def test_the_fault_disk_full_leaves_the_store_whole(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--simulated", "--fault", "disk-full") as agent:
        with agent.session(lease=True) as client:
            small = make_bundle("small")
            client.deploy(small)
            with pytest.raises(Refused) as refused:
                client.push(make_bundle("large", extra=b"x" * 200_000))
            assert refused.value.code == "disk-full" and refused.value.hint
            assert active(client) == small.id
            np.testing.assert_allclose(client.infer(X), X @ small.weight, rtol=1e-5)
        agent.stop()
        agent.start()
        with agent.session() as client:
            spec = TensorSpec("x", (2, 8), "float32")
            assert client.ask(p.Infer(inputs=[spec]), p.Inferred, X.tobytes()).bundle == small.id
