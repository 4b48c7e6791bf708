"""Deploying to real agents: what travels, what is proved, and everything that may go wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from agent_client import make_bundle, wait_for
from build_fixtures import convnet
from fleet_fixtures import HeldLease, Yard, run, until, yard

from agent import protocol as p
from controller import sim, tracker
from controller.events import DeviceChanged, Event, Progress
from controller.home import Home
from controller.inventory import Device
from controller.options import DeployOptions
from targets.base import FleetError
from targets.keys import Keys

__all__ = ["yard"]

#: Big enough for several windows of chunks.
BIG = bytes(range(256)) * (24 << 12)


# --- What travels -------------------------------------------------------------------------------


def test_deploy_then_nothing_then_only_what_changed(yard: Yard) -> None:
    yard.up(2)
    fleet, selection = yard.fleet(), yard.everything
    archive, bundle = yard.made(extra=BIG)
    size = sum(len(data) for data in bundle.blobs.values())

    first = run(fleet.deploy(archive, selection))
    assert [(r.device, r.target, r.model, r.status, r.bundle, r.active) for r in first] == [
        (name, "numpy", "product", "active", bundle.id, bundle.id) for name in ("sim-1", "sim-2")
    ]
    assert all((r.bytes_sent, r.bytes_skipped, r.carrier, r.simulated) == (size, 0, "socket", True) for r in first)
    assert {e.stage for e in yard.events if isinstance(e, Progress)} >= {"push", "load", "golden"}

    again = run(fleet.deploy(archive, selection))
    assert all((r.status, r.bytes_sent, r.bytes_skipped) == ("unchanged", 0, size) for r in again)

    retrained, other = yard.made(seed=1, extra=BIG)
    third = run(fleet.deploy(retrained, selection))
    new = sum(len(data) for sha256, data in other.blobs.items() if sha256 not in bundle.blobs)
    assert all((r.status, r.bytes_sent) == ("active", new) for r in third)
    assert new < 0.05 * size


def test_dry_run_changes_nothing(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    archive, bundle = yard.made()
    size = sum(len(data) for data in bundle.blobs.values())
    with HeldLease(yard, device):
        (report,) = run(yard.fleet().deploy(archive, [device], DeployOptions(dry_run=True)))
    assert (report.status, report.bytes_sent, report.bytes_to_send) == ("unchanged", 0, size)
    assert report.reason.startswith("dry run")
    assert yard.status(device).releases == []
    (report,) = run(yard.fleet().deploy(archive, [device]))
    assert report.bytes_sent == size


def test_a_cut_connection_resumes(yard: Yard) -> None:
    yard.up(1, faults=["drop:5"])
    archive, bundle = yard.made(extra=BIG)
    (report,) = run(yard.fleet().deploy(archive, yard.everything))
    assert report.status == "active", report.reason
    size = sum(len(data) for data in bundle.blobs.values())
    # Nothing that had arrived before the cut was sent again.
    assert (report.bytes_sent, report.bytes_skipped) == (size, 0)
    assert any("connected again" in getattr(event, "text", "") for event in yard.events)


def test_an_agent_killed_in_a_push_comes_back_and_the_push_goes_on(yard: Yard) -> None:
    yard.up(1)
    archive, bundle = yard.made(extra=BIG)
    restarted: list[threading.Thread] = []

    def listener(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "push" and event.share < 1 and not restarted:
            yard.kill("sim-1")
            restarted.append(threading.Thread(target=yard.up))
            restarted[0].start()

    (report,) = run(yard.fleet(listener).deploy(archive, yard.everything))
    assert restarted, "the push ended before it could be disturbed"
    restarted[0].join()
    assert report.status == "active", report.reason
    assert yard.active(yard.everything[0]) == bundle.id
    assert report.bytes_sent <= sum(len(data) for data in bundle.blobs.values())


def test_an_agent_killed_in_an_activation_comes_back_and_the_release_is_proved(yard: Yard) -> None:
    yard.up(1)
    archive, bundle = yard.made(sleep=0.5)
    restarted: list[threading.Thread] = []

    def listener(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "golden" and not restarted:
            yard.kill("sim-1")
            restarted.append(threading.Thread(target=yard.up))
            restarted[0].start()

    (report,) = run(yard.fleet(listener).deploy(archive, yard.everything))
    restarted[0].join()
    assert report.status == "active", report.reason
    (device,) = yard.everything
    assert yard.active(device) == bundle.id and yard.status(device).lease is None


def test_compression_over_a_slow_link_sends_less(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    from controller.links import zmq as link

    monkeypatch.setattr(link, "_LOOPBACK", ())
    yard.up(1)
    archive, bundle = yard.made(extra=b"compressible " * 200_000)
    (report,) = run(yard.fleet().deploy(archive, yard.everything))
    assert report.status == "active"
    assert report.bytes_sent == sum(len(data) for data in bundle.blobs.values())
    assert report.bytes_on_wire < report.bytes_sent / 20


def test_over_tvm_rpc_alone(yard: Yard) -> None:
    yard.up(1)
    (board,) = yard.everything
    device = Device(name="remote", target="numpy", rpc=board.rpc)
    archive, bundle = yard.made(extra=BIG[: 4 << 20])
    (report,) = run(yard.fleet().deploy(archive, [device]))
    assert (report.status, report.carrier) == ("active", "rpc"), report.reason
    assert yard.active(board) == bundle.id
    # The socket is tried first; when nothing answers there, RPC is used.
    both = Device(name="remote", target="numpy", rpc=board.rpc, address=f"tcp://127.0.0.1:{closed()}", key=board.key)
    (report,) = run(yard.fleet().deploy(archive, [both]))
    assert (report.status, report.carrier, report.bytes_sent) == ("unchanged", "rpc", 0)


def test_through_a_tracker(yard: Yard) -> None:
    running = tracker.start(yard.home, port=0)
    try:
        yard.up(1, tracker=(running.host, running.port))
        wait_for(lambda: tracker.status(yard.home).devices, "the board is registered")
        device = Device(name="tracked", target="numpy", tracker=f"{running.host}:{running.port}", rpc_key="numpy")
        archive, bundle = yard.made()
        (report,) = run(yard.fleet().deploy(archive, [device]))
        assert (report.status, report.carrier) == ("active", "tracker"), report.reason
        assert yard.active(yard.everything[0]) == bundle.id
    finally:
        tracker.stop(yard.home)


# --- What is proved -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "words"),
    [({"bias": 5.0}, "golden"), ({"crash": True}, "sig"), ({"raise": "the abacus broke"}, "the abacus broke")],
)
def test_what_is_not_proved_is_rolled_back(yard: Yard, program: dict[str, object], words: str) -> None:
    yard.up(1)
    (device,) = yard.everything
    good, bundle = yard.made()
    bad, other = yard.made(seed=1, **program)
    (first,) = run(yard.fleet().deploy(bad, [device]))
    assert (first.status, first.active) == ("failed", ""), first.reason
    assert run(yard.fleet().deploy(good, [device]))[0].status == "active"
    (report,) = run(yard.fleet().deploy(bad, [device]))
    assert (report.status, report.bundle, report.active) == ("rolled-back", other.id, bundle.id)
    assert words in report.reason.lower()
    assert yard.active(device) == bundle.id


def test_a_missed_latency_budget_is_rolled_back(yard: Yard) -> None:
    yard.up(1)
    archive, _ = yard.made(sleep=0.02)
    (report,) = run(yard.fleet().deploy(archive, yard.everything, DeployOptions(latency_budget_ms=5.0)))
    assert report.status == "failed" and "5" in report.reason and "ms" in report.reason
    assert (
        run(yard.fleet().deploy(archive, yard.everything, DeployOptions(latency_budget_ms=500.0)))[0].status == "active"
    )


def test_rollback_goes_back_and_forth(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    fleet = yard.fleet()
    (report,) = run(fleet.rollback([device]))
    assert report.status == "failed" and "no release" in report.reason
    one, first = yard.made("one")
    two, second = yard.made("two", seed=1)
    run(fleet.deploy(one, [device]))
    run(fleet.deploy(two, [device]))
    (report,) = run(fleet.rollback([device]))
    assert (report.status, report.bundle, report.active, report.model) == ("active", first.id, first.id, "one")
    (report,) = run(fleet.rollback([device]))
    assert (report.bundle, report.model) == (second.id, "two")


def test_slots_hold_different_models(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    one, first = yard.made("one")
    two, second = yard.made("two", seed=1)
    run(yard.fleet().deploy(one, [device]))
    run(yard.fleet().deploy(two, [device], DeployOptions(slot="spare")))
    assert (yard.active(device), yard.active(device, "spare")) == (first.id, second.id)


# --- What is refused ----------------------------------------------------------------------------


def test_a_bundle_for_another_target_is_refused_before_it_is_sent(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    archive, _ = yard.made(target="x86")
    (report,) = run(yard.fleet().deploy(archive, [device]))
    assert report.status == "failed" and report.bytes_sent == 0
    assert "for target 'x86', sim-1 is 'numpy'" in report.reason
    assert yard.status(device).store_bytes == 0


def test_unsigned_and_foreign_bundles_are_refused(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    unsigned = yard.archive(make_bundle(), signed=False)
    (report,) = run(yard.fleet().deploy(unsigned, [device]))
    assert report.status == "failed" and "sign" in report.reason
    foreign = yard.archive(make_bundle("other"), keys=Keys(yard.root / "somebody"))
    (report,) = run(yard.fleet().deploy(foreign, [device]))
    assert report.status == "failed" and "key" in report.reason
    assert yard.status(device).releases == []


def test_a_tampered_archive_is_refused_here(yard: Yard) -> None:
    yard.up(1)
    archive, bundle = yard.made()
    data = bytearray(Path(archive).read_bytes())
    position = data.index(bundle.weight.tobytes())
    data[position] ^= 1
    Path(archive).write_bytes(data)
    with pytest.raises(FleetError) as caught:
        run(yard.fleet().deploy(archive, yard.everything))
    assert caught.value.code in ("bad-bundle", "bad-digest", "bad-archive"), caught.value.code
    Path(archive).write_bytes(b"not a zip")
    with pytest.raises(FleetError):
        run(yard.fleet().deploy(archive, yard.everything))
    with pytest.raises(FleetError):
        run(yard.fleet().deploy(str(yard.root / "gone.fleet"), yard.everything))


def test_a_full_disk_leaves_the_release_alone(yard: Yard) -> None:
    yard.up(1, faults=["disk-full"])
    (device,) = yard.everything
    small, bundle = yard.made()
    assert run(yard.fleet().deploy(small, [device]))[0].status == "active"
    big, _ = yard.made(seed=1, extra=BIG)
    (report,) = run(yard.fleet().deploy(big, [device]))
    assert report.status == "failed" and ("full" in report.reason or "room" in report.reason)
    assert yard.active(device) == bundle.id
    assert run(yard.fleet().deploy(small, [device]))[0].status == "unchanged"


# --- Who is not reached -------------------------------------------------------------------------


def test_a_failing_device_stops_no_other(yard: Yard) -> None:
    yard.up(1)
    (board,) = yard.everything
    away = Device(name="away", target="numpy", address=f"tcp://127.0.0.1:{closed()}", key=board.key)
    archive, _ = yard.made()
    reports = run(yard.fleet().deploy(archive, [away, board]))
    assert [(r.device, r.status) for r in reports] == [("away", "failed"), ("sim-1", "active")]
    assert "cannot reach the agent" in reports[0].reason and "is the board on" in reports[0].reason


def test_wrong_keys_are_told_apart(yard: Yard) -> None:
    yard.up(1)
    (board,) = yard.everything
    stranger = Home.find(yard.root / "stranger")
    known = msgspec.structs.replace(board, name="known", folder="")
    (report,) = run(yard.fleet(home=stranger).devices([known]))
    assert report.state == "wrong-key" and "does not admit this controller" in report.reason
    imposter = msgspec.structs.replace(known, key=Keys(stranger.keys).curve_public.decode())
    (report,) = run(yard.fleet().devices([imposter]))
    assert report.state == "wrong-key" and "does not hold the key" in report.reason
    (deployed,) = run(yard.fleet().deploy(yard.made()[0], [imposter]))
    assert deployed.status == "failed" and "does not hold the key" in deployed.reason


def test_silence_is_not_waited_for_long(yard: Yard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        device = Device(name="mute", target="numpy", address=address, key=Keys(yard.home.keys).curve_public.decode())
        (report,) = run(yard.fleet().devices([device]))
    assert report.state == "unreachable" and "no answer" in report.reason


def test_names_that_do_not_resolve(yard: Yard) -> None:
    key = Keys(yard.home.keys).curve_public.decode()
    device = Device(name="nowhere", target="numpy", address="tcp://no-such-host.invalid:7700", key=key)
    (report,) = run(yard.fleet().devices([device]))
    assert report.state == "unreachable" and "is not known" in report.reason


def test_another_major_protocol_is_refused_by_name(yard: Yard) -> None:
    with other_major(yard) as device:
        (report,) = run(yard.fleet().devices([device]))
        assert report.state == "protocol-version"
        assert f"speaks protocol {p.MAJOR + 1}.0" in report.reason and "update the older side" in report.reason


@contextlib.contextmanager
def other_major(yard: Yard) -> Iterator[Device]:
    """An agent of the future: says a newer major version in its welcome."""
    server = Keys(yard.root / "future")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = server.curve_public, server.curve_secret
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def serve() -> None:
            session, header = router.recv_multipart()
            hello = p.decode_request(header)
            welcome = p.Welcome(
                id=hello.id,
                major=p.MAJOR + 1,
                minor=0,
                agent_version="9",
                device="d",
                target="numpy",
                simulated=False,
                max_message=1,
            )
            router.send_multipart([session, p.encode(welcome)])

        thread = threading.Thread(target=serve)
        thread.start()
        yield Device(name="future", target="numpy", address=f"tcp://127.0.0.1:{port}", key=server.curve_public.decode())
        thread.join(10)


# --- Leases -------------------------------------------------------------------------------------


def test_a_leased_device_is_refused_or_waited_for(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    archive, _ = yard.made()
    with HeldLease(yard, device) as lease:
        (report,) = run(yard.fleet().deploy(archive, [device]))
        assert report.status == "failed" and "somebody@else:1" in report.reason
        assert run(yard.fleet().devices([device]))[0].lease == f"somebody@else:1/{device.name}"
        lease.let_go(after=0.5)
        (report,) = run(yard.fleet().deploy(archive, [device], DeployOptions(lease_wait=30.0)))
    assert report.status == "active"
    assert run(yard.fleet().devices([device]))[0].lease == ""


def test_a_lease_is_renewed_while_it_is_used(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.session.LEASE_RENEW_INTERVAL", 0.2)
    yard.up(1)
    (device,) = yard.everything

    async def work() -> None:
        async with yard.fleet().session(device, lease=True) as session:

            async def left() -> float:
                lease = (await session.connection.request(p.GetStatus(), p.Status)).lease
                assert lease is not None and lease.holder.endswith(f":{os.getpid()}/{device.name}")
                return lease.expires_in

            before = await left()
            for _ in range(100):
                await asyncio.sleep(0.05)
                after = await left()
                if after > before:
                    return
                before = after
            raise AssertionError("the lease was never renewed")

    run(work())
    assert yard.status(device).lease is None


def test_an_interrupt_in_a_build_ends_it(yard: Yard) -> None:
    """A real Ctrl-C to a real process while it compiles."""
    yard.up(1, target="x86")
    model = convnet(yard.root / "net.onnx")
    code = (
        "import asyncio, signal\n"
        "from controller.fleet import Fleet\n"
        # A shell starts what it runs in the background with interrupts ignored, and that is inherited.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "fleet = Fleet(listener=lambda event: print(getattr(event, 'stage', ''), flush=True))\n"
        f"asyncio.run(fleet.deploy({str(model)!r}, fleet.select(everything=True)))\n"
    )
    environment = {**os.environ, "FLEET_HOME": str(yard.root)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            while (stage := process.stdout.readline().strip()) != "build":
                assert process.poll() is None, f"it ended after '{stage}'"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) != 0
            assert "KeyboardInterrupt" in process.stderr.read()
        finally:
            process.kill()
    (device,) = yard.everything
    assert yard.status(device).releases == []


def test_an_interrupt_stops_the_device_and_gives_the_lease_back(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    good, bundle = yard.made()
    run(yard.fleet().deploy(good, [device]))
    hanging, _ = yard.made(seed=1, hang=True)

    async def interrupted() -> None:
        fleet = yard.fleet()
        deploying = asyncio.ensure_future(fleet.deploy(hanging, [device]))
        await until(lambda: any(isinstance(e, Progress) and e.stage == "golden" for e in yard.events[mark:]), "golden")
        deploying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deploying

    mark = len(yard.events)
    run(interrupted())
    status = yard.status(device)
    assert (status.state, status.lease) == ("idle", None)
    assert yard.active(device) == bundle.id
    last = [e for e in yard.events if isinstance(e, DeviceChanged)][-1]
    assert last.state == "idle"


def test_an_interrupt_while_waiting_for_a_lease(yard: Yard) -> None:
    yard.up(1)
    (device,) = yard.everything
    archive, _ = yard.made()

    async def interrupted() -> None:
        waiting = asyncio.ensure_future(yard.fleet().deploy(archive, [device], DeployOptions(lease_wait=600.0)))
        await asyncio.wait([waiting], timeout=0.5)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with HeldLease(yard, device):
        run(interrupted())
    # The queue is empty again: nobody was given the lease that nobody wants any more.
    wait_for(lambda: yard.status(device).lease is None, "the lease is free", 5)


# --- Rollouts -----------------------------------------------------------------------------------


def test_a_failing_canary_protects_the_rest(yard: Yard) -> None:
    sim.up(yard.home, 1, target="numpy", faults=["wrong-result"])
    yard.up(2)
    archive, _ = yard.made()
    reports = run(yard.fleet().deploy(archive, yard.everything, DeployOptions(canary=1)))
    assert [r.status for r in reports] == ["failed"] * 3
    assert "golden" in reports[0].reason
    assert all(r.reason.startswith("not touched") and r.bytes_sent == 0 for r in reports[1:])
    assert all(yard.status(device).store_bytes == 0 for device in yard.everything[1:])


def test_inventory_says_what_belongs_where(yard: Yard) -> None:
    yard.up(1)
    archive, bundle = yard.made()
    inventory = yard.root / "fleet.yaml"
    inventory.write_text(
        f"models:\n  mine: {{file: {json.dumps(archive)}}}\nassign:\n  - model: mine\n    devices: ['sim-*']\n"
    )
    fleet = yard.fleet(inventory=inventory)
    (report,) = run(fleet.deploy(None, fleet.select(everything=True)))
    assert (report.status, report.bundle) == ("active", bundle.id)
    inventory.write_text("models: {}\n")
    fleet = yard.fleet(inventory=inventory)
    (report,) = run(fleet.deploy(None, fleet.select(everything=True)))
    assert report.status == "failed" and "assigns no model" in report.reason


def closed() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
