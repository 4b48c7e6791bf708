"""Sessions with a real OpenSSH server on loopback: logging in, commands and their end, ports, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from agent_client import is_dead, wait_for
from ssh_fixtures import Server, fingerprint, free_port, make_key, needs_sshd, sshd

from controller.inventory import Device
from controller.ssh.session import SshSession
from targets.base import FleetError

pytestmark = needs_sshd
__all__ = ["sshd"]

ROOT = Path(__file__).parents[2]
#: A command with children that take no notice of TERM, whose numbers it tells.
FAMILY = 'trap "" TERM; sh -c \'trap "" TERM; sleep 300 & echo $! $$; wait; wait\' & echo $$; wait; wait'


@asynccontextmanager
async def session(device: Device) -> AsyncIterator[SshSession]:
    opened = await SshSession.open(device)
    try:
        yield opened
    finally:
        await opened.close()


def within_session(device: Device, work: Callable[[SshSession], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        async with session(device) as opened:
            return await work(opened)

    return asyncio.run(run())


def refused(device: Device) -> FleetError:
    with pytest.raises(FleetError) as caught:
        within_session(device, lambda opened: opened.run(["true"], deadline=5))
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value


# --- Logging in ---------------------------------------------------------------------------------


def test_a_session_says_where_it_is_and_whom_it_believes(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        assert opened.way == str(opened) == f"{sshd.user}@127.0.0.1:{sshd.port}"
        assert opened.fingerprint == fingerprint(sshd.host_key)
        assert "OpenSSH" in opened.server
        assert opened.lost == ""

    within_session(sshd.device(), work)


def test_an_agent_holds_the_key(sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the key is encrypted: only ssh-agent can log in with it."""
    at = tmp_path / "a"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", at], stdout=subprocess.DEVNULL)
    try:
        wait_for(at.exists, "ssh-agent's socket")
        subprocess.run(
            ["ssh-add", "-q", sshd.client_key],
            check=True,
            env={**os.environ, "SSH_AUTH_SOCK": str(at)},
            capture_output=True,
        )
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-P", "", "-f", sshd.client_key], check=True)
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        error = refused(sshd.device())
        assert error.code == "ssh-refused" and "ssh-add" in error.hint
        monkeypatch.setenv("SSH_AUTH_SOCK", str(at))
        for device in (sshd.device(), sshd.device(ssh_identity="")):
            assert within_session(device, lambda opened: opened.run(["echo", "in"], deadline=20)).stdout == "in\n"
    finally:
        agent.kill()
        agent.wait()


def test_the_configuration_names_the_board(sshd: Server) -> None:
    config = f"""\
Host rack
  HostName 127.0.0.1
  Port {sshd.port}
  User {sshd.user}
  IdentityFile {sshd.client_key}
  UserKnownHostsFile {sshd.known_hosts}
"""
    device = Device(name="b", target="x86", ssh="rack", ssh_config=str(sshd.config(config)))
    assert within_session(device, lambda opened: opened.run(["echo", "in"], deadline=20)).stdout == "in\n"


def test_a_command_of_the_configuration_is_the_way(sshd: Server) -> None:
    relay = sshd.root / "relay.py"
    relay.write_text("""\
import os, socket, sys, threading

far = socket.create_connection((sys.argv[1], int(sys.argv[2])))

def back():
    while data := far.recv(65536):
        os.write(1, data)
    os._exit(0)

threading.Thread(target=back).start()
while data := os.read(0, 65536):
    far.sendall(data)
os._exit(0)
""")
    config = f"""\
Host rack
  HostName 127.0.0.1
  Port {sshd.port}
  HostKeyAlias the-rack
  ProxyCommand {sys.executable} {relay} %h %p
"""
    device = sshd.device(ssh=f"{sshd.user}@rack", ssh_config=str(sshd.config(config)))
    error = refused(device)
    assert error.code == "host-key" and "the-rack ssh-ed25519" in error.hint
    sshd.known_hosts.write_text("the-rack " + sshd.known_hosts.read_text().split(" ", 1)[1])
    assert within_session(device, lambda opened: opened.run(["echo", "in"], deadline=20)).stdout == "in\n"


def test_a_board_that_is_off(sshd: Server) -> None:
    sshd.kill()
    error = refused(sshd.device())
    assert error.code == "unreachable" and "refused" in error.message and "board" in error.message


def test_a_name_that_nobody_knows(sshd: Server) -> None:
    error = refused(sshd.device(ssh="me@board.invalid"))
    assert error.code == "unreachable" and "name is not known" in error.message


def test_something_else_than_ssh_answers(sshd: Server) -> None:
    port = free_port()
    other = subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], cwd=sshd.root)
    try:
        wait_for(lambda: psutil.Process(other.pid).net_connections(), "a web server")
        error = refused(sshd.device(ssh=f"me@127.0.0.1:{port}"))
        assert error.code == "unreachable"
    finally:
        other.kill()
        other.wait()


def test_a_key_that_is_refused(sshd: Server, tmp_path: Path) -> None:
    error = refused(sshd.device(ssh_identity=str(make_key(tmp_path / "other"))))
    assert error.code == "ssh-refused" and "none of our keys" in error.message and "ssh-copy-id" in error.hint


def test_an_unknown_host_key_is_shown_and_accepted_by_the_command_that_is_shown(sshd: Server, tmp_path: Path) -> None:
    device = sshd.device(ssh_known_hosts=str(tmp_path / "known"))
    error = refused(device)
    assert error.code == "host-key" and fingerprint(sshd.host_key) in error.message
    subprocess.run(["sh", "-c", error.hint.rpartition("to accept it: ")[2]], check=True)
    assert within_session(device, lambda opened: opened.run(["echo", "in"], deadline=20)).stdout == "in\n"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_changed_host_key_is_never_taken(sshd: Server, kind: str) -> None:
    device = sshd.device(ssh_known_hosts=str(sshd.root / "mine"))
    before = fingerprint(sshd.host_key)
    (sshd.root / "mine").write_text(sshd.known_hosts.read_text())
    sshd.kill()
    make_key(sshd.host_key, kind)
    sshd.start()
    error = refused(device)
    assert error.code == "host-key" and "CHANGED" in error.message
    assert before in error.message and fingerprint(sshd.host_key) in error.message
    # Neither does a configuration that tells OpenSSH not to look.
    loose = sshd.config("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n")
    assert refused(msgspec.structs.replace(device, ssh_config=str(loose))).code == "host-key"
    assert refused(msgspec.structs.replace(device, ssh_config=str(loose), ssh_known_hosts="")).code == "host-key"
    subprocess.run(["sh", "-c", error.hint.rpartition("to accept it: ")[2]], check=True, capture_output=True)
    assert within_session(device, lambda opened: opened.run(["echo", "in"], deadline=20)).stdout == "in\n"


def test_a_revoked_host_key(sshd: Server) -> None:
    line = sshd.known_hosts.read_text()
    sshd.known_hosts.write_text(f"{line}@revoked {line}")
    error = refused(sshd.device())
    assert error.code == "host-key" and "revoked" in error.message.lower()


# --- Commands -----------------------------------------------------------------------------------


def test_commands_take_words_and_bytes_as_they_are(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        words = ["a b", "'\"$HOME`id`", "new\nline", "", "*", "-n", "ü"]
        done = await opened.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], deadline=20)
        assert done.stdout == f"{words}\n" and done.status == 0
        given = os.urandom(300_000)
        script = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
        import hashlib

        done = await opened.run([sys.executable, "-c", script], deadline=20, input=given)
        assert done.stdout.strip() == hashlib.sha256(given).hexdigest()
        # Not read at all, and more than a pipe holds.
        assert (await opened.run(["true"], deadline=20, input=given)).status == 0

    within_session(sshd.device(), work)


def test_commands_end_as_they_end(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        done = await opened.run(["sh", "-c", "echo out; echo err >&2; exit 7"], deadline=20)
        assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert (await opened.run(["sh", "-c", "kill -KILL $$"], deadline=20)).status == 128 + signal.SIGKILL
        done = await opened.run(["no-such-program"], deadline=20)
        assert done.status == 127 and "no-such-program" in done.stderr

    within_session(sshd.device(), work)


def test_lines_come_while_the_command_runs(sshd: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    answer = tmp_path / "answer"

    def on_line(line: str) -> None:
        lines.append(line)
        # Nothing but a line that came in time lets the command end.
        answer.touch()

    async def work(opened: SshSession) -> None:
        script = 'printf "one \\033[2J\\n"; while [ ! -e "$1" ]; do sleep 0.02; done; printf two'
        done = await opened.run(["sh", "-c", script, "sh", str(answer)], deadline=20, on_line=on_line)
        assert done.stdout == "one \033[2J\ntwo"

    within_session(sshd.device(), work)
    assert lines == ["one [2J", "two"]


def test_what_says_too_much_is_ended(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        with pytest.raises(FleetError, match="more than 16 MiB") as caught:
            await opened.run(["cat", "/dev/zero"], deadline=60)
        assert caught.value.code == "too-large"
        assert (await opened.run(["echo", "in"], deadline=20)).stdout == "in\n"

    within_session(sshd.device(), work)


class Family:
    """A command that runs, by the numbers that it told."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def on_line(self, line: str) -> None:
        self.pids += [int(word) for word in line.split()]

    async def is_up(self) -> None:
        await asyncio.to_thread(wait_for, lambda: len(self.pids) == 3, "the command's processes")
        assert not any(map(is_dead, self.pids))

    def is_gone(self) -> bool:
        return all(map(is_dead, self.pids))


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    for pid in made.pids:
        if not is_dead(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_deadline_reaches_the_whole_process_group(sshd: Server, family: Family) -> None:
    async def work(opened: SshSession) -> None:
        with pytest.raises(FleetError, match="did not end within 1 s") as caught:
            await opened.run(["sh", "-c", FAMILY], deadline=1, on_line=family.on_line)
        assert caught.value.code == "timeout"
        assert len(family.pids) == 3 and family.is_gone()
        assert (await opened.run(["echo", "in"], deadline=20)).stdout == "in\n"

    within_session(sshd.device(), work)


def test_a_cancellation_reaches_the_whole_process_group(sshd: Server, family: Family) -> None:
    async def work(opened: SshSession) -> None:
        task = asyncio.create_task(opened.run(["sh", "-c", FAMILY], deadline=100, on_line=family.on_line))
        await family.is_up()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert family.is_gone()

    within_session(sshd.device(), work)


def test_what_a_command_leaves_behind_goes_with_it(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        done = await opened.run(["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!; exit 3"], deadline=20)
        assert is_dead(int(done.stdout)) and done.status == 3

    within_session(sshd.device(), work)


def test_a_controller_that_is_killed_leaves_nothing_running(sshd: Server, family: Family, tmp_path: Path) -> None:
    device = tmp_path / "device.json"
    device.write_bytes(msgspec.json.encode(sshd.device()))
    script = """
import asyncio, sys
import msgspec
from controller.inventory import Device
from controller.ssh.session import SshSession

async def main():
    device = msgspec.json.decode(open(sys.argv[1], "rb").read(), type=Device)
    session = await SshSession.open(device)
    await session.run(["sh", "-c", sys.argv[2]], deadline=100, on_line=lambda line: print(line, flush=True))

asyncio.run(main())
"""
    controller = subprocess.Popen(
        [sys.executable, "-c", script, device, FAMILY], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert controller.stdout is not None
    while len(family.pids) < 3:
        family.on_line(controller.stdout.readline())
    controller.kill()
    controller.wait()
    wait_for(family.is_gone, "the end of the command's processes")


def test_a_lost_connection_ends_the_command_and_is_told(sshd: Server, family: Family) -> None:
    async def work(opened: SshSession) -> None:
        task = asyncio.create_task(opened.run(["sh", "-c", FAMILY], deadline=100, on_line=family.on_line))
        await family.is_up()
        sshd.cut()
        with pytest.raises(FleetError) as caught:
            await task
        assert caught.value.code == "connection-lost"
        await asyncio.to_thread(wait_for, family.is_gone, "the end of the command's processes")
        assert opened.lost
        for again in (opened.run(["true"], deadline=5), opened.forward(sshd.port)):
            with pytest.raises(FleetError) as caught:
                await again
            assert caught.value.code == "connection-lost" and str(opened) in caught.value.message

    within_session(sshd.device(), work)


def test_many_commands_at_once(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        done = await asyncio.gather(*(opened.run(["echo", str(n)], deadline=60) for n in range(20)))
        assert [one.stdout for one in done] == [f"{n}\n" for n in range(20)]

    start = time.monotonic()
    within_session(sshd.device(), work)
    assert time.monotonic() - start < 60


# --- Ports --------------------------------------------------------------------------------------


def test_a_port_of_the_boards_loopback_is_reached(sshd: Server) -> None:
    async def work(opened: SshSession) -> None:
        port = await opened.forward(sshd.port)
        assert port == await opened.forward(sshd.port) != sshd.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"SSH-2.0-OpenSSH")
        writer.close()
        with pytest.raises(FleetError) as caught:
            await opened.forward(free_port())
        assert caught.value.code == "no-listener"

    within_session(sshd.device(), work)


def test_a_server_that_forbids_forwarding(tmp_path: Path) -> None:
    server = Server(tmp_path / "strict", more="AllowTcpForwarding no").start()

    async def work(opened: SshSession) -> None:
        with pytest.raises(FleetError, match="forbids forwarding") as caught:
            await opened.forward(server.port)
        assert caught.value.code == "ssh-forwarding" and "AllowTcpForwarding" in caught.value.hint

    try:
        within_session(server.device(), work)
    finally:
        server.kill()
