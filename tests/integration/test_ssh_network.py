"""Boards as hosts of their own: namespaces with real OpenSSH servers, jump hosts, and cables that are pulled."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_client import is_dead, wait_for
from fleet_fixtures import Yard, run, yard
from ssh_fixtures import (
    AGENT_ENVIRONMENT,
    Host,
    Network,
    agent_command,
    end_agent,
    fingerprint,
    make_key,
    needs_namespaces,
    network,
)

from agent import protocol as p
from controller.carriers import connect
from controller.events import Event, Progress, SampleBatch
from controller.fleet import BenchOptions, Fleet
from controller.inventory import Device
from controller.inventory_edit import add
from controller.ssh import route as ssh_route
from controller.ssh.session import SshSession
from targets.base import FleetError
from targets.keys import Keys

pytestmark = needs_namespaces
__all__ = ["network", "yard"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead link is noticed after a second or two instead of fifteen."""
    monkeypatch.setattr(ssh_route, "HEARTBEAT_INTERVAL", 0.5)
    monkeypatch.setattr(ssh_route, "SUSPECT_AFTER", 1.5)


def config(network: Network, jump: Host, board: Host) -> str:
    """An ssh_config by which ``board`` is reached through ``jump``."""
    path = network.root / "ssh_config"
    path.write_text(f"""\
Host jump
  HostName {jump.address}
  User {jump.server.user}
  IdentityFile {jump.server.client_key}
  UserKnownHostsFile {jump.server.known_hosts}
Host board
  HostName {board.address}
  User {board.server.user}
  IdentityFile {board.server.client_key}
  UserKnownHostsFile {board.server.known_hosts}
  ProxyJump jump
""")
    return str(path)


def said(device: Device, *argv: str) -> str:
    async def work() -> str:
        session = await SshSession.open(device)
        try:
            return (await session.run(argv, deadline=20)).stdout.strip()
        finally:
            await session.close()

    return run(work())


def refused(device: Device) -> FleetError:
    with pytest.raises(FleetError) as caught:
        said(device, "true")
    assert caught.value.hint
    return caught.value


def test_a_board_with_an_address_of_its_own(network: Network) -> None:
    board = network.host()
    assert board.address in said(board.server.device(), "ip", "-o", "address")


def test_a_board_behind_a_jump_host(network: Network) -> None:
    jump = network.host()
    board = network.host(behind=jump)
    device = Device(name="b", target="x86", ssh="board", ssh_config=config(network, jump, board))
    found = said(device, "ip", "-o", "address")
    assert board.address in found and jump.address not in found
    # It is seen from nowhere else.
    assert refused(board.server.device()).code == "unreachable"

    # What is wrong is said of the host that it is wrong with.
    known = jump.server.known_hosts.read_text()
    jump.server.kill()
    make_key(jump.server.host_key)
    jump.server.start()
    jump.server.known_hosts.write_text(known)
    error = refused(device)
    assert error.code == "host-key" and "jump host" in error.message
    assert jump.address in error.message and fingerprint(jump.server.host_key) in error.message
    jump.server.trust()

    allowed = jump.server.authorized_keys.read_text()
    jump.server.authorized_keys.write_text("")
    error = refused(device)
    assert error.code == "ssh-refused" and "jump host" in error.message
    jump.server.authorized_keys.write_text(allowed)

    board.server.kill()
    error = refused(device)
    assert error.code == "unreachable" and board.address in error.message and "jump host" not in error.message
    jump.server.kill()
    error = refused(device)
    assert error.code == "unreachable" and jump.address in error.message


def test_a_cable_that_is_pulled_is_no_endless_wait(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    board = network.host()
    board.link("down")
    start = time.monotonic()
    error = refused(board.server.device())
    assert error.code == "unreachable" and time.monotonic() - start < 15


def test_a_command_on_a_board_whose_cable_is_pulled(network: Network, quick: None) -> None:
    """We are told soon; on the board, where nothing is noticed, its own clock ends the command."""
    board = network.host()
    pids: list[int] = []

    async def work() -> None:
        session = await SshSession.open(board.server.device())
        script = "sleep 300 & echo $!; echo $$; wait"
        task = asyncio.create_task(
            session.run(["sh", "-c", script], deadline=8, on_line=lambda line: pids.append(int(line)))
        )
        await asyncio.to_thread(wait_for, lambda: len(pids) == 2, "the command")
        board.link("down")
        start = time.monotonic()
        with pytest.raises(FleetError) as caught:
            await task
        assert caught.value.code == "connection-lost" and time.monotonic() - start < 7
        assert not any(map(is_dead, pids))
        await session.close()

    run(work())
    wait_for(lambda: all(map(is_dead, pids)), "the board's own deadline", 20)


@pytest.mark.parametrize("link", ["ssh", "rpc+ssh"])
def test_an_agent_on_a_board_that_has_nothing_open_but_sshd(network: Network, tmp_path: Path, link: str) -> None:
    jump = network.host()
    board = network.host(behind=jump, more=AGENT_ENVIRONMENT)
    home = tmp_path / "agent"
    device = Device(
        name="board",
        target="numpy",
        ssh="board",
        ssh_config=config(network, jump, board),
        agent_home=str(home),
        agent_command=agent_command(home),
        link="ssh" if link == "ssh" else "rpc+ssh",
    )

    async def work() -> None:
        connection, carrier = await connect(device, Keys(tmp_path / "keys"), client="test")
        status = await connection.request(p.GetStatus(), p.Status)
        assert (carrier, status.device) == (link, "board")
        await connection.close()

    try:
        run(work())
    finally:
        end_agent(home)


@pytest.fixture
def far(network: Network, yard: Yard, tmp_path: Path, quick: None) -> Iterator[tuple[Host, Any]]:
    """A board with an agent, and a maker of fleets whose inventory has it."""
    host = network.host(more=AGENT_ENVIRONMENT)
    home, inventory = tmp_path / "agent", tmp_path / "fleet.yaml"
    inventory.write_text("devices: []\n")  # and nothing assigned
    add(
        inventory,
        host.server.device(target="numpy", agent_home=str(home), agent_command=agent_command(home), link="ssh"),
    )
    yield host, lambda listener=lambda event: None: Fleet(inventory, home=yard.home, listener=listener)
    end_agent(home)


def test_a_cable_pulled_in_a_push_and_plugged_in_again(far: tuple[Host, Any], yard: Yard) -> None:
    host, fleet = far
    archive, bundle = yard.made(extra=os.urandom(40_000_000))
    pulled: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "push" and 0 < event.share < 1 and not pulled:
            pulled.append(time.monotonic())
            host.link("down")
        elif getattr(event, "text", "").startswith("connection lost"):
            host.link("up")

    made = fleet(listener)
    (report,) = run(made.deploy(archive, made.select(everything=True)))
    assert pulled, "the push ended before it could be disturbed"
    assert report.status == "active" and report.bundle == bundle.id, report.reason


def test_a_cable_pulled_for_good_in_a_bench(far: tuple[Host, Any], yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message; the release stays, the lease is free again, and the result that the board made is fetched later."""
    from controller import measure, session

    host, fleet = far
    archive, bundle = yard.made(sleep=0.02)
    first = fleet()
    (report,) = run(first.deploy(archive, first.select(everything=True)))
    assert report.status == "active", report.reason
    pulled: list[int] = []

    def listener(event: Event) -> None:
        if isinstance(event, SampleBatch) and not pulled:
            pulled.append(1)
            host.link("down")

    monkeypatch.setattr(session.Session.restore, "__defaults__", (3.0,))
    monkeypatch.setattr(measure, "OFFLINE_AFTER", 3.0)
    made = fleet(listener)
    options = BenchOptions(spec=p.BenchSpec(min_duration=2.0, max_other_load=1.0))
    (outcome,) = run(made.bench(None, made.select(everything=True), options))
    assert pulled and not isinstance(outcome, p.RunResult)
    assert outcome.failed and "SSH" in outcome.reason and "\n" not in outcome.reason

    host.link("up")
    later = fleet()

    async def status() -> p.Status:
        async with later.session(later.inventory.device("board"), lease=True, lease_wait=90) as opened:
            return await opened.connection.request(p.GetStatus(), p.Status)

    found = run(status())
    assert [release.bundle for release in found.releases] == [bundle.id]
