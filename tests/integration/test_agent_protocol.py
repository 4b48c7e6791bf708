"""An agent and those who connect to it: keys, versions, garbage, leases, limits, logs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from agent_client import Agent, Client, Refused, make_bundle, running_agent, wait_for

from agent import protocol as p
from targets.base import TensorSpec
from targets.defaults import MAX_MESSAGE


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running_agent(tmp_path) as running:
        yield running


def answers(agent: Agent) -> bool:
    with agent.session() as client:
        return client.status().device == "board"


def test_a_key_that_is_not_authorized_gets_no_answer(agent: Agent) -> None:
    with agent.client(zmq.curve_keypair()) as stranger:
        stranger.send(p.Hello())
        # The right key is answered well within this time, on the same machine under the same load.
        with agent.session():
            assert stranger.receive(1.0) is None
    assert answers(agent)


def test_a_client_without_curve_gets_no_answer(agent: Agent) -> None:
    context = zmq.Context()
    try:
        plain = context.socket(zmq.DEALER)
        plain.connect(f"tcp://127.0.0.1:{agent.info.port}")
        plain.send(p.encode(p.Hello()))
        assert not plain.poll(500)
    finally:
        context.destroy(linger=0)
    assert answers(agent)


def test_a_key_counts_from_when_its_file_is_there(agent: Agent) -> None:
    keys = zmq.curve_keypair()
    file = agent.home.authorized / "another.pub"
    file.write_bytes(keys[0] + b"\n")
    with agent.client(keys) as client:
        client.hello()
        file.unlink()
        with pytest.raises(Refused) as refused:
            client.hello()
        assert refused.value.code == "wrong-key"


def test_another_major_version_is_refused_by_name(agent: Agent) -> None:
    with agent.client() as client:
        with pytest.raises(Refused) as refused:
            client.ask(p.Hello(major=p.MAJOR + 1, minor=3, client="fleet 9"), p.Welcome)
        assert refused.value.code == "protocol-version"
        assert f"{p.MAJOR + 1}.3" in refused.value.message and "fleet 9" in refused.value.message
        with pytest.raises(Refused):
            client.status()


@pytest.mark.parametrize("minor", [0, p.MINOR + 1, 99])
def test_any_minor_version_is_welcome_and_unknown_fields_are_ignored(agent: Agent, minor: int) -> None:
    with agent.client() as client:
        newer = {"t": "hello", "id": 5, "major": p.MAJOR, "minor": minor, "client": "x", "mood": {"good": [1, 2]}}
        client.send_raw(msgspec.msgpack.encode(newer))
        welcome, _ = client.reply(5)
        assert isinstance(welcome, p.Welcome) and welcome.target == "numpy" and welcome.max_message == MAX_MESSAGE


def test_a_request_that_only_a_newer_client_knows_is_refused_with_its_id(agent: Agent) -> None:
    with agent.session() as client:
        client.send_raw(msgspec.msgpack.encode({"t": "teleport", "id": 77}))
        with pytest.raises(Refused, match="teleport") as refused:
            client.reply(77)
        assert refused.value.code == "protocol"


def test_everything_before_hello_is_refused(agent: Agent) -> None:
    with agent.client() as client:
        for request in (p.Ping(), p.GetStatus(), p.AcquireLease(holder="x"), p.GetLogs(), p.Shutdown()):
            with pytest.raises(Refused) as refused:
                client.ask(request, p.Done)
            assert refused.value.code == "no-session"


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"\x00",),
        (b"\xc1" * 100,),
        (b"\x93\x01\x02\x03",),
        (msgspec.msgpack.encode({"t": "ping", "id": "not a number"}),),
        (msgspec.msgpack.encode({"t": "acquire-lease", "id": 3}),),
        (b"\x81" * 20000,),
        (msgspec.msgpack.encode({"t": "ping", "id": 1 << 60}) + b"trailing",),
        (b"", b"", b"", b""),
    ],
)
def test_garbage_is_refused_and_harms_nobody(agent: Agent, frames: tuple[bytes, ...]) -> None:
    with agent.session() as client, agent.session() as other:
        client.socket.send_multipart(list(frames))
        got = client.receive()
        assert got is not None and isinstance(got[0], p.Failure) and got[0].code == "protocol"
        assert other.status().device == "board"
        assert client.status().device == "board"


def test_a_message_over_the_bound_is_refused_and_one_far_over_it_cuts_the_connection(agent: Agent) -> None:
    with agent.session() as client:
        number = client.send(p.Infer(inputs=[]), b"\0" * MAX_MESSAGE)
        with pytest.raises(Refused) as refused:
            # The header could be read, but is not looked at: the refusal has no request to belong to.
            client.reply(0)
        assert refused.value.code == "too-large" and number
        client.send_raw(b"x" * (2 * MAX_MESSAGE))
        assert client.receive(0.5) is None
    assert answers(agent)


def test_infer_checks_what_it_is_given(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        assert client.deploy(make_bundle()).status == "active"
        good = TensorSpec("x", (2, 8), "float32")
        for spec, size in [
            (TensorSpec("x", (2, 9), "float32"), 72),
            (TensorSpec("x", (2, 8), "float64"), 128),
            (TensorSpec("x", (2, 8), "object"), 64),
            (TensorSpec("x", (-2, -8), "float32"), 64),
            (good, 63),
            (good, 65),
        ]:
            with pytest.raises(Refused) as refused:
                client.ask(p.Infer(inputs=[spec]), p.Inferred, b"\0" * size)
            assert refused.value.code == "bad-input", spec
        with pytest.raises(Refused) as refused:
            client.ask(p.Infer(inputs=[good], slot="nothing"), p.Inferred, b"\0" * 64)
        assert refused.value.code == "no-release"
        with pytest.raises(Refused) as refused:
            client.ask(p.Infer(inputs=[good], bundle="../../etc/passwd"), p.Inferred, b"\0" * 64)


def test_a_lease_excludes_others_until_it_is_given_back(agent: Agent) -> None:
    bundle = make_bundle()
    with agent.session() as first, agent.session() as second:
        first.acquire("ann")
        with pytest.raises(Refused, match="ann") as refused:
            second.acquire("bob")
        assert refused.value.code == "leased"
        second.lease = "guessed"
        with pytest.raises(Refused) as refused:
            second.push(bundle)
        assert refused.value.code == "leased"
        waiting = second.send(p.AcquireLease(holder="bob", wait=30))
        assert second.status().lease == p.LeaseInfo(holder="ann", expires_in=pytest.approx(60, abs=10))
        first.ask(p.ReleaseLease(token=first.lease), p.Done)
        lease, _ = second.reply(waiting)
        assert isinstance(lease, p.Lease)
        second.lease = lease.token
        assert second.deploy(bundle).status == "active"
        with pytest.raises(Refused):
            first.ask(p.RenewLease(token=first.lease), p.Lease)


def test_waiting_for_a_lease_ends_when_its_time_is_up(agent: Agent) -> None:
    with agent.session() as first, agent.session() as second:
        first.acquire("ann")
        begin = time.monotonic()
        with pytest.raises(Refused) as refused:
            second.acquire("bob", wait=0.5)
        assert refused.value.code == "leased" and 0.4 < time.monotonic() - begin < 10


def test_a_lease_outlives_its_session(agent: Agent) -> None:
    with agent.session() as first:
        token = first.acquire("ann")
    with agent.session() as again:
        assert again.acquire("ann") == token
        with agent.session() as other, pytest.raises(Refused):
            other.acquire("bob")


def test_a_flood_of_requests_is_bounded_and_each_is_answered(agent: Agent) -> None:
    with agent.session() as flooder, agent.session() as other:
        numbers = [flooder.send(p.GetStatus()) for _ in range(400)]
        begin = time.monotonic()
        assert other.ask(p.Ping(), p.Done)
        assert time.monotonic() - begin < 5
        codes = []
        for number in numbers:
            try:
                message, _ = flooder.reply(number)
                assert isinstance(message, p.Status)
            except Refused as refused:
                codes.append(refused.code)
        assert set(codes) <= {"overloaded"}


def test_too_many_sessions_are_refused(agent: Agent) -> None:
    context = zmq.Context()
    info = agent.info
    clients: list[Client] = []
    try:
        with pytest.raises(Refused) as refused:
            for _ in range(80):
                clients.append(Client(info.port, info.public.encode(), *agent.keys, context=context))
                clients[-1].hello()
        assert refused.value.code == "too-many-sessions" and len(clients) == 65
        clients[0].ask(p.Ping(), p.Done)
    finally:
        context.destroy(linger=0)


def test_a_reader_that_does_not_read_delays_nobody_and_is_given_up_in_the_end(agent: Agent) -> None:
    with agent.client(receive_limit=1) as lazy, agent.session(lease=True) as busy:
        busy.deploy(make_bundle(spam=1000))  # so that there is something in the log
        lazy.hello()
        lazy.ask(p.Subscribe(telemetry=True, logs=True), p.Done)
        process = psutil.Process(agent.info.pid)
        before = process.memory_info().rss

        def ask_for_more() -> None:
            for _ in range(1000):
                lazy.send(p.GetLogs(lines=2000))
            begin = time.monotonic()
            busy.ask(p.Ping(), p.Done)
            assert time.monotonic() - begin < 5

        for _ in range(3):
            ask_for_more()
        wait_for(lambda: busy.status().telemetry["dropped_events"], "telemetry that it does not read is dropped")
        wait_for(lambda: ask_for_more() or "it is closed" in agent.log, "it is given up", 60)
        assert process.memory_info().rss - before < 300 << 20
        assert busy.infer(np.zeros((2, 8), "float32")).shape == (2, 4)


def test_telemetry_comes_to_those_who_want_it_with_the_targets_own_readings(agent: Agent) -> None:
    with agent.session() as client:
        client.ask(p.Subscribe(telemetry=True), p.Done)
        got = [client.receive(5), client.receive(5)]
        for event in got:
            assert event is not None and isinstance(event[0], p.Telemetry) and event[0].id == 0
            values = event[0].values
            assert values["memory_bytes"] > 0 and values["abacus_beads"] == 91.0 and values["dropped_events"] == 0.0


def test_logs_can_be_read_and_followed(agent: Agent) -> None:
    with agent.session(lease=True) as client, agent.session() as watcher:
        assert any("listens on" in line for line in client.ask(p.GetLogs(lines=100), p.Logs).lines)
        assert client.ask(p.GetLogs(lines=-5), p.Logs).lines == []
        watcher.ask(p.Subscribe(telemetry=False, logs=True, tail=1), p.Done)
        client.deploy(make_bundle("the-new-one"))
        lines, notes = [], []
        while not (notes and any("the-new-one" in line for line in lines)):
            got = watcher.receive(10)
            assert got is not None, (lines, notes)
            (lines if isinstance(got[0], p.LogLine) else notes).append(getattr(got[0], "line", got[0]))
        assert "listens on" in lines[0]
        assert isinstance(notes[0], p.Note) and "the-new-one" in notes[0].text


def test_secrets_are_never_logged(agent: Agent) -> None:
    with agent.session(lease=True) as client:
        client.deploy(make_bundle())
        token = client.lease
    secret = (agent.home.keys / "curve.key").read_text().strip()
    log = agent.log
    assert secret not in log and token not in log and agent.keys[1].decode() not in log


def test_only_a_simulated_board_can_be_shut_down(agent: Agent, tmp_path: Path) -> None:
    with agent.session() as client, pytest.raises(Refused) as refused:
        client.ask(p.Shutdown(), p.Done)
    assert refused.value.code == "refused"
    with running_agent(tmp_path / "simulated", "--simulated") as simulated:
        assert simulated.info.simulated
        with simulated.session() as client:
            client.ask(p.Shutdown(), p.Done)
        assert simulated.process is not None and simulated.process.wait(10) == 0
        assert not simulated.home.info.exists()


def test_an_agent_ends_in_good_order_and_its_file_says_how_to_reach_it(agent: Agent) -> None:
    info = json.loads(agent.home.info.read_text())
    assert info["name"] == "board" and info["target"] == "numpy" and info["rpc_port"] == 0
    # Its group may read where it listens and its public key: who comes over SSH is in it.
    assert agent.home.info.stat().st_mode & 0o037 == 0
    assert agent.stop() == 0
    assert not agent.home.info.exists()


def test_the_port_of_the_tvm_rpc_listener_is_told(tmp_path: Path) -> None:
    with running_agent(tmp_path, "--rpc-port", "0") as agent, agent.client() as client:
        assert agent.info.rpc_port > 0 and client.hello().rpc_port == agent.info.rpc_port
        assert agent.stop() == 0


def test_two_agents_never_share_a_home(agent: Agent) -> None:
    second = Agent(agent.home, agent.options, keys=agent.keys)
    info = agent.home.info.read_bytes()
    with pytest.raises(AssertionError, match="already"):
        second.start()
    agent.home.info.write_bytes(info)
    assert answers(agent)


def test_at_rest_it_costs_little(agent: Agent) -> None:
    assert answers(agent)
    process = psutil.Process(agent.info.pid)
    assert process.memory_info().rss < 60 << 20
    before = process.cpu_times()
    wakeups = process.num_ctx_switches().voluntary
    time.sleep(2)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.02 + 0.01  # the clock ticks at 10 ms
    assert process.num_ctx_switches().voluntary - wakeups < 40, "something ticks"


def test_what_nobody_foresaw_is_an_internal_failure_and_the_agent_lives_on(agent: Agent) -> None:
    # A folder where the journal's file should be: an error that no code expects.
    with agent.session() as client:
        (agent.home.journal / "000000000000-surprise.run").mkdir()
        assert agent.stop() == 0
    agent.start()
    with agent.session() as client:
        with pytest.raises(Refused) as refused:
            client.ask(p.GetJournal(), p.Done)
        assert refused.value.code == "internal" and "surprise" not in refused.value.message
        assert client.status().device == "board"
    wait_for(lambda: "IsADirectoryError" in agent.log, "the log says what happened")


def test_requests_of_several_clients_are_answered_at_the_same_time(agent: Agent) -> None:
    """A long inference of one does not keep another from its answer."""
    with agent.session(lease=True) as client, agent.session() as other:
        client.push(slow := make_bundle(sleep=1.5))
        done = threading.Event()
        spec = TensorSpec("x", (2, 8), "float32")
        number = client.send(p.Infer(inputs=[spec], bundle=slow.id), b"\0" * 64)
        begin = time.monotonic()
        other.ask(p.Ping(), p.Done)
        other.status()
        assert time.monotonic() - begin < 1.5
        answer, _ = client.reply(number)
        assert isinstance(answer, p.Inferred) and answer.seconds >= 1.5
        done.set()
