"""Agents behind a real OpenSSH server on loopback: found, started, told whom to let in; and what happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_fixtures import Cli
from fleet_fixtures import Yard, run, yard
from ssh_fixtures import (
    AGENT_ENVIRONMENT,
    Server,
    agent_command,
    end_agent,
    fingerprint,
    make_key,
    needs_sshd,
)

from agent import protocol as p
from agent.config import Home, read_info, read_keys
from controller.carriers import connect, ways
from controller.doctor import Check, devices
from controller.events import Event, Progress
from controller.fleet import BenchOptions, Fleet
from controller.inventory import Device
from controller.inventory_edit import add
from controller.session import Session
from controller.ssh.look import Found, _ask, _read
from controller.ssh.session import SshSession
from targets.base import FleetError
from targets.keys import Keys

pytestmark = needs_sshd
__all__ = ["yard"]


class Board:
    """A board that nothing but an SSH server is known of, and a controller with an inventory of it."""

    def __init__(self, root: Path, yard: Yard) -> None:
        self.yard = yard
        self.agent_home = root / "agent"
        self.server = Server(root / "sshd", more=AGENT_ENVIRONMENT).start()
        self.inventory = root / "fleet.yaml"

    def device(self, **more: Any) -> Device:
        given = {"agent_home": str(self.agent_home), "agent_command": agent_command(self.agent_home), **more}
        return self.server.device(target="numpy", **given)

    def listed(self, **more: Any) -> Device:
        """The device as the inventory gives it back."""
        self.inventory.write_text("devices: []\n")  # and nothing assigned
        add(self.inventory, self.device(**more))
        return self.fleet().inventory.device("board")

    def fleet(self, listener: Any = None) -> Fleet:
        return Fleet(self.inventory, home=self.yard.home, **({"listener": listener} if listener else {}))

    @property
    def keys(self) -> Keys:
        return Keys(self.yard.home.keys)

    @property
    def pid(self) -> int:
        return read_info(Home(self.agent_home)).pid

    def kill_agent(self) -> None:
        end_agent(self.agent_home)


@pytest.fixture
def board(tmp_path: Path, yard: Yard) -> Iterator[Board]:
    made = Board(tmp_path, yard)
    try:
        yield made
    finally:
        made.kill_agent()
        made.server.kill()


def reached(board: Board, device: Device, **more: Any) -> tuple[str, p.Status]:
    async def work() -> tuple[str, p.Status]:
        connection, carrier = await connect(device, board.keys, client="test", **more)
        try:
            return carrier, await connection.request(p.GetStatus(), p.Status)
        finally:
            await connection.close()

    return run(work())


def refused(board: Board, device: Device, **more: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        reached(board, device, **more)
    return caught.value


# --- The agent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["", "ssh", "rpc+ssh"])
def test_an_agent_is_started_and_told_whom_to_let_in(board: Board, link: str) -> None:
    """Nothing of the agent is in the inventory: neither address nor key."""
    carrier, status = reached(board, board.device(link=link))
    assert carrier == (link or "ssh") and status.device == "board"
    pid = board.pid
    assert list(read_keys(board.agent_home / "authorized").values()) == [board.keys.curve_public.decode()]
    assert list(read_keys(board.agent_home / "trusted").values()) == [board.keys.signing_public]
    # It outlives the connection, and is found again.
    assert reached(board, board.device(link=link))[0] == carrier and board.pid == pid


def test_many_controllers_start_one_agent(board: Board) -> None:
    async def work() -> list[int]:
        async def one() -> int:
            connection, _ = await connect(board.device(), board.keys, client="test")
            pid = connection.link.agent.pid  # type: ignore[attr-defined]
            await connection.close()
            return int(pid)

        return await asyncio.gather(*(one() for _ in range(3)))

    assert set(run(work())) == {board.pid}


def test_an_agent_after_a_power_cut_is_started_again(board: Board) -> None:
    reached(board, board.device())
    info = board.agent_home / "agent.json"
    board.kill_agent()
    assert info.exists()
    reached(board, board.device())
    # Its number may be another's by now: this very test's.
    left = json.loads(info.read_text())
    board.kill_agent()
    info.write_text(json.dumps({**left, "pid": os.getpid()}, indent=2))
    reached(board, board.device())
    assert board.pid not in (os.getpid(), left["pid"])


def test_files_tell_what_a_shell_tells(board: Board, tmp_path: Path) -> None:
    """Of an agent that runs; of one that does not, a shell says why."""
    reached(board, board.device())
    (board.agent_home / "trusted" / "other.pub").write_text("another key\n")

    async def found(device: Device) -> tuple[Found | None, Found]:
        session = await SshSession.open(device)
        try:
            return await _read(session, device), await _ask(session, device)
        finally:
            await session.close()

    read, asked = run(found(board.device()))
    assert read == asked and read.agent is not None and {"another", "key"} < read.trusted
    away = str(tmp_path / "away")
    read, asked = run(found(board.device(agent_home=away)))
    assert read is None and asked == Found(home=away, agent=None, authorized=frozenset(), trusted=frozenset())


def test_looking_starts_nothing(board: Board) -> None:
    error = refused(board, board.device(), start=False)
    assert error.code == "agent-not-running" and "fleet deploy" in error.hint
    assert not (board.agent_home / "agent.json").exists()


def test_a_users_service_is_preferred(board: Board) -> None:
    """With a stand-in for systemctl, which knows one service: tests have no systemd."""
    folder, calls = board.agent_home.parent / "bin", board.agent_home.parent / "calls"
    folder.mkdir()
    command = shlex.join(agent_command(board.agent_home, name="by-service"))
    (folder / "systemctl").write_text(f"""\
#!/bin/sh
echo "$@" >>{calls}
case "$2" in start) setsid {command} </dev/null >/dev/null 2>&1 & ;; esac
""")
    (folder / "systemctl").chmod(0o755)
    board.server.kill()
    board.server.more = f"{AGENT_ENVIRONMENT} PATH={folder}:/usr/local/bin:/usr/bin:/bin"
    board.server.start()
    assert reached(board, board.device())[1].device == "by-service"
    assert calls.read_text() == "--user cat fleet-agent.service\n--user start fleet-agent.service\n"


@pytest.mark.parametrize("program", ["no-such-agent", "/opt/nothing/fleet-agent", "~/no such/fleet-agent"])
def test_no_agent_is_installed(board: Board, program: str) -> None:
    for start in (True, False):
        error = refused(board, board.device(agent_command=(program, "run")), start=start)
        assert error.code == "agent-missing" and program in error.message and "pip install" in error.hint


def test_an_agent_that_does_not_start_says_why(board: Board) -> None:
    broken = (*agent_command(board.agent_home)[:-4], "--target", "toaster", "--name", "board")
    error = refused(board, board.device(agent_command=broken))
    assert error.code == "agent-failed" and "there is no target 'toaster'" in error.message


def test_an_agent_of_somebody_else(board: Board) -> None:
    """The inventory says who must answer: what is read from the board does not override it."""
    error = refused(board, board.device(key="rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"))
    assert error.code == "wrong-key" and "remove `key`" in error.hint


@pytest.mark.parametrize(
    "text", ["{", '{\n  "pid": 1,\n  "port": 99999999\n}', "[]", '{\n  "pid": 1,\n  "public": "x"\n}']
)
def test_what_an_agent_did_not_write_is_not_believed(board: Board, text: str) -> None:
    board.agent_home.mkdir()
    (board.agent_home / "agent.json").write_text(text)
    if '"pid"' in text:
        assert refused(board, board.device(), start=False).code == "agent-failed"
    else:
        reached(board, board.device())


def test_an_agent_without_a_listener_has_no_rpc(board: Board) -> None:
    command = agent_command(board.agent_home, "--rpc-port", "off")
    error = refused(board, board.device(link="rpc+ssh", agent_command=command))
    assert "no TVM RPC listener" in error.message
    assert reached(board, board.device(agent_command=command))[0] == "ssh"


# --- Links --------------------------------------------------------------------------------------


def test_which_ways_a_link_allows(board: Board) -> None:
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    every = {"address": "tcp://h:1", "key": key, "rpc": "h:2", "tracker": "h:3", "rpc_key": "k"}

    def of(link: str, target: str = "x86", **fields: str) -> list[str]:
        device = msgspec.convert({"name": "b", "target": target, "link": link, **fields}, Device)
        return [carrier for carrier, _ in ways(device, board.keys)]

    assert of("", **every) == ["socket", "rpc", "tracker"]
    assert of("", ssh="b", **every) == ["socket", "ssh", "rpc", "tracker"]
    assert of("ssh", ssh="b", **every) == ["ssh"]
    assert of("rpc+ssh", ssh="b", **every) == ["rpc+ssh"]
    assert of("rpc", ssh="b", **every) == ["rpc", "tracker"]
    # A target whose boards are reached over SSH decides for those that have an SSH server.
    assert of("", "jetson", ssh="b", **every) == ["ssh"]
    assert of("rpc+ssh", "jetson", ssh="b", **every) == ["rpc+ssh"]
    assert of("", "jetson", **every) == ["socket", "rpc", "tracker"]


def test_whatever_answers_is_used(board: Board) -> None:
    """The inventory's socket is not reachable any more: the SSH server is."""
    reached(board, board.device())
    device = board.device(address="tcp://127.0.0.1:1", key=read_info(Home(board.agent_home)).public)
    assert reached(board, device)[0] == "ssh"


# --- Link lost ----------------------------------------------------------------------------------


def test_a_link_lost_in_a_push_is_made_anew_and_the_push_goes_on(board: Board) -> None:
    device = board.listed()
    archive, bundle = board.yard.made(extra=os.urandom(30_000_000))
    cuts: list[int] = []

    def listener(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "push" and 0 < event.share < 1 and not cuts:
            cuts.append(1)
            board.server.cut()

    (report,) = run(board.fleet(listener).deploy(archive, [device]))
    assert cuts, "the push ended before it could be disturbed"
    assert report.status == "active", report.reason
    (release,) = reached(board, device)[1].releases
    assert release.bundle == bundle.id


def test_a_link_lost_for_good_in_a_push_is_one_message_and_changes_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session.restore, "__defaults__", (3.0,))
    device = board.listed()
    first, bundle = board.yard.made()
    (report,) = run(board.fleet().deploy(first, [device]))
    assert report.status == "active", report.reason
    archive, _ = board.yard.made("other", seed=1, extra=os.urandom(30_000_000))

    def listener(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "push" and 0 < event.share < 1:
            board.server.kill()

    (report,) = run(board.fleet(listener).deploy(archive, [device]))
    assert report.status == "failed" and "SSH" in report.reason and "\n" not in report.reason
    board.server.start()
    status = reached(board, device)[1]
    assert [release.bundle for release in status.releases] == [bundle.id]
    # Nobody could give the lease back: it ends by itself.
    assert status.lease is None or status.lease.expires_in <= 60


def test_a_link_lost_in_a_bench_is_made_anew_and_the_result_is_kept(board: Board) -> None:
    device = board.listed()
    archive, bundle = board.yard.made(sleep=0.02)
    fleet = board.fleet()
    (report,) = run(fleet.deploy(archive, [device]))
    assert report.status == "active", report.reason
    cuts: list[int] = []

    def listener(event: Event) -> None:
        if type(event).__name__ == "SampleBatch" and not cuts:
            cuts.append(1)
            board.server.cut()

    options = BenchOptions(spec=p.BenchSpec(min_duration=3.0, max_other_load=1.0))
    (result,) = run(board.fleet(listener).bench(None, [device], options))
    assert cuts, result
    assert isinstance(result, p.RunResult) and result.bundle == bundle.id, result
    status = reached(board, device)[1]
    assert status.lease is None and status.state == "idle"


# --- The command line ---------------------------------------------------------------------------


def test_fleet_devices_and_doctor_over_ssh(board: Board, tmp_path: Path) -> None:
    cli, server = Cli(board.yard.root), board.server
    cli.cwd = tmp_path
    files = ["--ssh-config", server.config(), "--ssh-identity", server.client_key]
    files += ["--ssh-known-hosts", server.known_hosts]
    assert cli("devices", "add", "b", "--target", "x86", "--ssh", "a b").code == 2
    assert cli("devices", "add", "b", "--target", "x86", "--ssh", "b", "--link", "usb").code == 2
    cli.good("devices", "add", "board", "--target", "numpy", "--ssh", server.to, "--link", "ssh", *files)

    def doctor(name: str) -> Check:
        fleet = Fleet(home=board.yard.home)
        return {check.name: check for check in run(devices(fleet, fleet.select(everything=True)))}[name]

    def state() -> str:
        fleet = Fleet(home=board.yard.home)
        (report,) = run(fleet.devices(fleet.select(everything=True)))
        return report.state

    path = tmp_path / "home" / "fleet.yaml"

    def agent(**given: Any) -> None:
        """Have the inventory say so of the agent."""
        lines = [line for line in path.read_text().splitlines() if "agent:" not in line]
        path.write_text(
            "\n".join([*lines, ""]).replace("    link: ssh\n", f"    link: ssh\n    agent: {json.dumps(given)}\n")
        )

    # No agent is installed where the inventory says that it is.
    agent(command=["no-such-agent", "run"])
    assert state() == "agent-missing"
    found = doctor("agent")
    assert found.verdict == "error" and "pip install" in found.hint
    # It is, and does not run.
    agent(home=str(board.agent_home), command=list(agent_command(board.agent_home)))
    assert state() == "agent-not-running"
    assert "does not run" in doctor("agent").detail
    # It runs.
    reached(board, board.device())
    assert state() == "idle"
    found = doctor("ssh")
    assert found.verdict == "ok" and fingerprint(server.host_key) in found.detail
    assert doctor("reachable").detail.startswith("by ssh")
    # The key is refused.
    allowed = server.authorized_keys.read_text()
    server.authorized_keys.write_text("")
    assert state() == "ssh-refused"
    assert "ssh-copy-id" in doctor("ssh").hint
    server.authorized_keys.write_text(allowed)
    # The board was set up anew.
    known = server.known_hosts.read_text()
    server.kill()
    make_key(server.host_key)
    server.start()
    server.known_hosts.write_text(known)
    assert state() == "host-key"
    found = doctor("ssh")
    assert "CHANGED" in found.detail and "ssh-keygen -R" in found.hint
    # The board is off.
    server.kill()
    assert state() == "unreachable"
    assert "refused" in doctor("reachable").detail
    called = cli("devices", "check")
    assert called.code == 1 and "unreachable" in called.out and "refused" in called.out
