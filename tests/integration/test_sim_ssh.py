"""Simulated boards with SSH servers of their own: all that is done with them goes that way, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest
from agent_client import wait_for
from cli_fixtures import Cli
from fleet_fixtures import Yard, run, yard
from ssh_fixtures import needs_sshd

from controller import sim, sim_ssh
from targets.base import FleetError

__all__ = ["yard"]


@needs_sshd
def test_every_session_goes_over_ssh_and_the_board_s_own_tools_are_there(yard: Yard) -> None:
    (board,) = yard.up(1, target="numpy-ssh")
    assert board.state == "running" and board.ssh.endswith(f":{board.ssh.rpartition(':')[2]}")
    (device,) = yard.everything
    assert (device.link, device.address, device.folder) == ("ssh", "", "")
    archive, bundle = yard.made(target="numpy-ssh", extra=os.urandom(2_000_000))
    (report,) = run(yard.fleet().deploy(archive, [device]))
    assert report.status == "active", report
    assert report.bytes_sent > 2_000_000
    (again,) = run(yard.fleet().deploy(archive, [device]))
    assert (again.status, again.bytes_sent) == ("unchanged", 0)

    async def carrier() -> str:
        async with yard.fleet().session(device) as session:
            return session.carrier

    assert run(carrier()) == "ssh"
    assert yard.status(device).telemetry["tool"] == 42.0
    assert yard.active(device) == bundle.id


@needs_sshd
def test_an_agent_that_died_is_started_over_ssh_with_its_store_and_its_tools(yard: Yard) -> None:
    (before,) = yard.up(1, target="numpy-ssh")
    (device,) = yard.everything
    archive, bundle = yard.made(target="numpy-ssh")
    assert run(yard.fleet().deploy(archive, [device]))[0].status == "active"
    yard.kill("sim-1")
    assert yard.active(device) == bundle.id
    (after,) = sim.status(yard.home)
    assert after.state == "running" and after.pid != before.pid and after.ssh == before.ssh
    assert yard.status(device).telemetry["tool"] == 42.0
    # It is known to be that board's: it is not started twice, and it is ended.
    assert yard.up(1, target="numpy-ssh") == [after]
    assert sim.down(yard.home) == ["sim-1"]
    wait_for(lambda: not psutil.pid_exists(after.pid), "the end of the agent that was started over SSH")


@needs_sshd
def test_a_dead_ssh_server_is_started_again_where_it_was(yard: Yard) -> None:
    (before,) = yard.up(1, target="numpy-ssh")
    server = servers(yard)[0]
    server.kill()
    wait_for(lambda: yard.state("sim-1") == "dead", "the end of the SSH server")
    (report,) = run(yard.fleet().devices(yard.everything))
    assert report.state == "unreachable"
    (after,) = yard.up(1, target="numpy-ssh")
    assert (after.pid, after.ssh, after.state) == (before.pid, before.ssh, "running")
    assert run(yard.fleet().devices(yard.everything))[0].state == "idle"


@needs_sshd
def test_down_ends_servers_and_connections(yard: Yard) -> None:
    yard.up(2, target="numpy-ssh")
    fields = yard.everything[0]
    command = ["ssh", "-F", "none", "-i", fields.ssh_identity, "-o", f"UserKnownHostsFile={fields.ssh_known_hosts}"]
    command += ["-p", fields.ssh.rpartition(":")[2], "127.0.0.1", "echo here; sleep 60"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"here\n"
        ending = servers(yard)
        ending += [child for server in ending for child in server.children(recursive=True)]
        assert len(ending) > 3
        assert sim.down(yard.home) == ["sim-1", "sim-2"]
        assert client.wait(20) != 0
    wait_for(lambda: not any(process.is_running() for process in ending), "the end of all that served")
    assert not list(yard.home.sim.glob("sim-*"))


@needs_sshd
def test_each_board_has_keys_of_its_own_that_nobody_else_reads(yard: Yard) -> None:
    yard.up(2, target="numpy-ssh")
    one, two = (Path(device.ssh_identity).parent for device in yard.everything)
    for name in ("host_key", "client_key"):
        assert (one / name).read_bytes() != (two / name).read_bytes()
        assert (one / name).stat().st_mode & 0o777 == 0o600


def test_without_an_ssh_server_it_says_what_to_install(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_ssh, "_PLACES", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FleetError) as caught:
        yard.up(1, target="numpy-ssh")
    assert caught.value.code == "no-sshd" and "openssh-server" in caught.value.hint
    assert sim.status(yard.home) == []


@needs_sshd
def test_several_kinds_at_once(yard: Yard) -> None:
    command = ("sim", "up", "--target", "numpy", "--target", "numpy-ssh", "--count", "2")
    boards = Cli(yard.root).good(*command)["boards"]
    assert [(board["name"], board["target"], bool(board["ssh"])) for board in boards] == [
        ("sim-1", "numpy", False),
        ("sim-2", "numpy", False),
        ("sim-3", "numpy-ssh", True),
        ("sim-4", "numpy-ssh", True),
    ]


def servers(yard: Yard) -> list[psutil.Process]:
    found = []
    for file in sorted(yard.home.sim.glob("*/board.json")):
        entry = json.loads(file.read_bytes())
        found.append(psutil.Process(entry["server"]["process"]["pid"]))
    return found
