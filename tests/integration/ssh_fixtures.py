"""Real OpenSSH servers for tests: on loopback without any privilege, or in network namespaces as hosts of their own.

``sshd`` gives servers on loopback; ``network`` gives hosts with addresses of their own, which only root can make.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_client import NUMPY_TARGET, REPOSITORY, is_dead, wait_for

from agent.config import Home, read_info
from controller.inventory import Device
from targets.base import FleetError

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SFTP_SERVER = next(
    (p for p in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server") if Path(p).exists()),
    "internal-sftp",
)

needs_sshd = pytest.mark.skipif(not Path(SSHD).exists(), reason="no OpenSSH server (openssh-server) on this machine")
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not Path(SSHD).exists(),
    reason="network namespaces need root, ip (iproute2) and openssh-server",
)

_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp {sftp}
{more}
"""


#: sshd gives a command hardly any environment: where the tests' targets are, and this repository.
AGENT_ENVIRONMENT = f"SetEnv PYTHONPATH={NUMPY_TARGET}:{REPOSITORY}"


def agent_command(home: Path, *more: str, target: str = "numpy", name: str = "board") -> tuple[str, ...]:
    """How an agent of this very environment is started over SSH."""
    run = (sys.executable, "-m", "agent.main", "run", "--home", str(home), "--target", target, "--name", name)
    return (*run, *more)


def end_agent(home: Path) -> None:
    """Kill the agent of a home, if there is one, and wait until it is gone."""
    with contextlib.suppress(FleetError, ProcessLookupError):
        pid = read_info(Home(home)).pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: is_dead(pid), "the end of the agent")


def make_key(path: Path, kind: str = "ed25519") -> Path:
    path.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True, stdin=subprocess.DEVNULL
    )
    return path


def fingerprint(key: Path) -> str:
    """As ``SHA256:…``, by OpenSSH's own tool."""
    said = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True).stdout
    return said.split()[1]


@dataclass
class Server:
    """One sshd with a host key, an authorized client key and a known_hosts file of its own below ``root``."""

    root: Path
    address: str = "127.0.0.1"
    port: int = 0
    #: What is written before the server's command, such as ``ip netns exec NAME``.
    prefix: Sequence[str] = ()
    #: More lines of sshd_config.
    more: str = ""
    process: subprocess.Popen[bytes] | None = None
    user: str = field(default_factory=getpass.getuser)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.host_key = make_key(self.root / "host_key")
        self.client_key = make_key(self.root / "client_key")
        self.authorized_keys = self.root / "authorized_keys"
        self.authorized_keys.write_text(Path(f"{self.client_key}.pub").read_text())
        self.known_hosts = self.root / "known_hosts"
        self.log = self.root / "sshd.log"

    def start(self) -> Server:
        """Start it, on the port it had or on any free one; returns when it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        fixed = self.port
        for _ in range(20):
            self.port = fixed or (free_port() if not self.prefix else 22)
            config = self.root / "sshd_config"
            config.write_text(
                _CONFIG.format(
                    address=self.address,
                    port=self.port,
                    host_key=self.host_key,
                    authorized_keys=self.authorized_keys,
                    sftp=SFTP_SERVER,
                    more=self.more,
                )
            )
            before = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.prefix, SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self.trust()
            if self._answers(before):
                return self
            self.kill()
        raise AssertionError(self.log.read_text())

    def _answers(self, before: int) -> bool:
        assert self.process is not None
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            # From where the server is: a host behind a jump host is not reached from here.
            if f"Server listening on {self.address} port {self.port}".encode() in self.log.read_bytes()[before:]:
                return True
            time.sleep(0.02)
        return False

    def trust(self) -> None:
        """Have ``known_hosts`` say what the host key is now."""
        key = " ".join(Path(f"{self.host_key}.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"{self.name} {key}\n")

    @property
    def name(self) -> str:
        """As known_hosts files have it."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    @property
    def to(self) -> str:
        """What the inventory's ``ssh`` is."""
        return f"{self.user}@{self.address}:{self.port}"

    def device(self, name: str = "board", target: str = "x86", **more: Any) -> Device:
        given: dict[str, Any] = {
            "ssh": self.to,
            "ssh_identity": str(self.client_key),
            "ssh_known_hosts": str(self.known_hosts),
            # Never the configuration of who runs the tests.
            "ssh_config": str(self.config()),
            **more,
        }
        return Device(name=name, target=target, **given)

    def config(self, text: str = "") -> Path:
        """A client's ssh_config."""
        path = self.root / "ssh_config"
        if text or not path.exists():
            path.write_text(text)
        return path

    def new_host_key(self) -> None:
        """Another key, as of a board that was set up anew; counts once it is started again."""
        make_key(self.host_key)

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve connections."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [child for child in top.children(recursive=True) if child.name().startswith("sshd")]

    def cut(self) -> None:
        """Kill what serves the connections there are; new ones are served."""
        for child in self.sessions():
            child.kill()

    def kill(self) -> None:
        """No connection is served any more, nor a new one accepted."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.cut()
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)
        self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Server]:
    """One server on loopback that lets this user in."""
    server = Server(tmp_path / "sshd").start()
    yield server
    server.kill()


# --- Hosts with addresses of their own ----------------------------------------------------------


@dataclass
class Host:
    """A network namespace with an SSH server on port 22 of its address."""

    name: str
    address: str
    server: Server
    #: The interface by which it is reached, on the other side.
    outside: str
    #: The namespace that interface is in; empty for this one.
    behind: str

    def run(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start a process on this host."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], stdin=subprocess.DEVNULL)

    def link(self, state: str) -> None:
        """Pull the cable (``down``) or plug it in (``up``): packets are lost without a word."""
        inside = ["ip", "netns", "exec", self.behind] if self.behind else []
        subprocess.run([*inside, "ip", "link", "set", self.outside, state], check=True)


class Network:
    """Hosts on point-to-point cables: to this machine, or to another host and seen from nowhere else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hosts: list[Host] = []

    def host(self, behind: Host | None = None, **more: Any) -> Host:
        """A new host with an SSH server, which has a cable to this machine or to the host it is ``behind``."""
        tag = f"{random.randrange(1 << 24):06x}"
        name, inner, outer = f"fleet-{tag}", f"fb{tag}", f"fa{tag}"
        base = 0xC612_0000 + (random.randrange(1 << 15) << 2)  # 198.18.0.0/15, for tests of networks (RFC 2544)
        here, there = (socket.inet_ntoa((base + n).to_bytes(4, "big")) for n in (1, 2))
        outside = ["ip", "netns", "exec", behind.name] if behind else []
        _do("ip", "netns", "add", name)
        host = Host(name, there, Server.__new__(Server), outer, behind.name if behind else "")
        self.hosts.append(host)
        _do(*outside, "ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _do(*outside, "ip", "address", "add", f"{here}/30", "dev", outer)
        _do(*outside, "ip", "link", "set", outer, "up")
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{there}/30", "dev", inner),
            ("ip", "link", "set", inner, "up"),
        ):
            _do("ip", "netns", "exec", name, *command)
        prefix = ["ip", "netns", "exec", name]
        host.server = Server(self.root / name, address=there, prefix=prefix, **more).start()
        return host

    def close(self) -> None:
        for host in reversed(self.hosts):
            if isinstance(getattr(host.server, "process", None), subprocess.Popen):
                host.server.kill()
            said = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout
            for pid in said.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _do("ip", "netns", "delete", host.name)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path / "network")
    try:
        yield made
    finally:
        made.close()
