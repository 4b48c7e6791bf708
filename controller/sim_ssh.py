"""The SSH server of a simulated board: OpenSSH's own, run as this user on loopback, with keys that only it has."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TypedDict

import msgspec

from controller import sim_process
from controller.sim_process import Process
from targets.base import FleetError

#: Where distributions keep a daemon that is not in a user's PATH.
_PLACES = "/usr/sbin:/usr/local/sbin:/sbin"
_START_DEADLINE = 20.0
#: Ports that are tried, should another process take one between looking and listening.
_TRIES = 10
_LOG = "sshd.log"
# Only keys, only for the agent and its files. StrictModes: the folder is nobody else's, but may lie below /tmp.
_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


class Server(msgspec.Struct, kw_only=True, frozen=True):
    """A running SSH server, as the registry of simulated boards keeps it."""

    process: Process
    port: int


class SshFields(TypedDict):
    """What the inventory says of a board behind such a server."""

    ssh: str
    ssh_identity: str
    ssh_known_hosts: str
    ssh_config: str


def program() -> str:
    """OpenSSH's server by its absolute path, without which it refuses to run. Raises FleetError ``no-sshd``."""
    found = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), _PLACES)))
    if found is None:
        raise FleetError(
            "these boards are reached over SSH, and this machine has no OpenSSH server (sshd) for them",
            code="no-sshd",
            hint="install it: `apt install openssh-server` or `dnf install openssh-server`; no service need run",
        )
    return os.path.realpath(found)


def start(folder: Path, port: int = 0) -> Server:
    """Have a server run whose files are below ``folder``, on ``port`` if that is free.

    Raises FleetError ``no-sshd``, ``sim-failed`` with the server's own words.
    """
    sshd = program()
    _make_keys(folder)
    if os.geteuid() == 0:
        # As root, it gives up its rights in a directory that a service would have made.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for attempt in range(_TRIES):
        port = port if port and not attempt else _free_port()
        (folder / "sshd_config").write_text(_CONFIG.format(port=port, folder=str(folder).replace("%", "%%")))
        process = sim_process.start([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], folder / _LOG)
        if _answers(process, port):
            key = " ".join((folder / "host_key.pub").read_text().split()[:2])
            (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
            return Server(process=process, port=port)
        sim_process.end([process])
    raise FleetError(
        f"the SSH server of the simulated board '{folder.parent.name}' does not start:\n"
        f"{sim_process.tail(folder / _LOG)}",
        code="sim-failed",
    )


def fields(folder: Path, server: Server) -> SshFields:
    return {
        "ssh": f"{getpass.getuser()}@127.0.0.1:{server.port}",
        "ssh_identity": str(folder / "client_key"),
        "ssh_known_hosts": str(folder / "known_hosts"),
        # Empty: nobody's own configuration applies to it.
        "ssh_config": str(folder / "ssh_config"),
    }


def end(server: Server) -> None:
    """End a server and the connections that it serves."""
    import psutil

    if not server.process.alive:
        return
    connections: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        connections = psutil.Process(server.process.pid).children(recursive=True)
    sim_process.end([server.process])
    for connection in connections:
        with contextlib.suppress(psutil.Error):
            connection.kill()


def _make_keys(folder: Path) -> None:
    """The board's host key and the key by which it is entered, once in the life of the board."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("host_key", "client_key"):
        if (folder / f"{name}.pub").exists():
            continue
        key = Ed25519PrivateKey.generate()
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    shutil.copyfile(folder / "client_key.pub", folder / "authorized_keys")
    (folder / "ssh_config").touch()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _answers(process: Process, port: int) -> bool:
    """Whether an SSH server speaks on the port, and is this one."""
    deadline = time.monotonic() + _START_DEADLINE
    while process.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.settimeout(5.0)
            return connection.recv(4) == b"SSH-" and process.alive
        time.sleep(0.02)
    return False
