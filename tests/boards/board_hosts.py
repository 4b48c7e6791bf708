"""Boards of the tests: hosts in namespaces of their own, with an address, an OpenSSH server and a disk each.

A board is a process tree under a first process of its own (``board_init.sh``). That process ends when the one that
started it does, even when it is killed, and with it end all processes, mounts and interfaces of the board: nothing is
left but the folder that it wrote to.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from agent_client import wait_for
from board_roots import ADMIN, OPERATOR, Architecture
from ssh_fixtures import fingerprint, make_key

from controller.inventory import Device
from controller.ssh.commands import Completed
from controller.ssh.session import SshSession

INIT = Path(__file__).with_name("board_init.sh")
#: Seconds until an emulated board lets us in, and until a small command ends there, on a machine with much to do.
BOOT_DEADLINE = 120.0
COMMAND_DEADLINE = 300.0
#: What the kernels of real boards say of their processors; the emulator has these processors' instructions.
CPUINFO = {
    "arm64": "\n".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n"
        for core in range(2)
    ),
    "armhf": "\n".join(
        f"processor\t: {core}\nmodel name\t: ARMv7 Processor rev 0 (v7l)\nBogoMIPS\t: 650.00\n"
        "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpd32\nCPU implementer\t: 0x41\n"
        "CPU architecture: 7\nCPU variant\t: 0x3\nCPU part\t: 0xc09\nCPU revision\t: 0\n"
        for core in range(2)
    )
    + "\nHardware\t: Xilinx Zynq Platform\nRevision\t: 0003\nSerial\t\t: 0000000000000000\n",
}


@dataclass
class Board:
    """A board; ``folder`` has its disk, keys and the log of its SSH server, and outlives its starts."""

    architecture: Architecture
    #: The root file system it lies over.
    root: Path
    folder: Path
    name: str
    #: Size of its disk in MB, which is then empty at every start; 0: as large as this machine's.
    megabytes: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _interface: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Those of an earlier board in this folder are its own: it may be known already.
        self.client_key = self.folder / "client_key"
        self.host_key = self._file("etc/ssh/ssh_host_ed25519_key")
        for key in (self.client_key, self.host_key):
            if not key.exists():
                make_key(key)
        public = Path(f"{self.client_key}.pub").read_text()
        for user in (ADMIN, OPERATOR):
            self.put(f"home/{user}/.ssh/authorized_keys", public, user=user)
        self.put("etc/hostname", f"{self.name}\n")
        self.put("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        self.put("etc/ssh/sshd_config.d/board.conf", "PasswordAuthentication no\nUseDNS no\n")
        if told := CPUINFO.get(self.architecture.debian):
            (self.folder / "cpuinfo").write_text(told)
        self.known_hosts = self.folder / "known_hosts"
        # Never the configuration of who runs the tests.
        (self.folder / "ssh_config").touch()
        self.log = self.folder / "board.log"
        kept = self.folder / "address"
        self.address = kept.read_text() if kept.exists() else ""
        # What starts a board that has no systemd starts the agent, too.
        self.put("etc/rc.local", "#!/bin/sh\n[ ! -x /opt/fleet/run-agent ] || /opt/fleet/run-agent start\n", mode=0o755)

    def _file(self, path: str) -> Path:
        """A file of the board's disk, to be laid there at its next start."""
        made = self.folder / "files" / path
        made.parent.mkdir(parents=True, exist_ok=True)
        return made

    def put(self, path: str, text: str, *, mode: int = 0o644, user: str = "") -> None:
        """Have a file on its disk from the next start on."""
        made = self._file(path)
        made.write_text(text)
        made.chmod(mode)
        if user:
            home = next(line for line in (self.root / "etc/passwd").read_text().splitlines() if line.startswith(user))
            uid, gid = map(int, home.split(":")[2:4])
            for one in (made, made.parent):
                os.chown(one, uid, gid)
            os.chown(self.folder / "files" / "home" / user, uid, gid)
            made.parent.chmod(0o700)

    # --- Power ----------------------------------------------------------------------------------

    def start(self) -> Board:
        """Boot it; returns when its SSH server answers."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    # Whatever ends this process ends the board.
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--uts", "--ipc"),
                    *("--fork", "--kill-child", "--", "sh", INIT),
                    *(self.root, self.folder, self.name, str(self.megabytes)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            said = _line(self._process.stdout, BOOT_DEADLINE)
            assert said == b"mounted\n", self.log.read_text()
            self._connect()
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
            wait_for(self._answers, f"the SSH server of {self.name}", BOOT_DEADLINE)
        except BaseException:
            self.stop()
            raise
        key = " ".join(Path(f"{self.host_key}.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"{self.address} {key}\n")
        return self

    def stop(self) -> None:
        """Pull the plug."""
        if self._process is None:
            return
        group = Path()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                group = control_group(child.pid)
                child.kill()
        self._process.kill()
        self._process.wait(20)
        _forget(group)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None

    def reboot(self) -> None:
        """Stop everything and start again with what is on its disk, at the same address."""
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def init(self) -> psutil.Process:
        """Its first process, as this machine sees it."""
        assert self._process is not None
        (first,) = psutil.Process(self._process.pid).children()
        return first

    @property
    def gateway(self) -> str:
        """This machine's address on the board's cable."""
        return socket.inet_ntoa((int.from_bytes(socket.inet_aton(self.address), "big") - 1).to_bytes(4, "big"))

    def processes(self) -> list[psutil.Process]:
        """All that runs on it, as this machine sees it."""
        return [self.init, *self.init.children(recursive=True)]

    # --- Network --------------------------------------------------------------------------------

    def _connect(self) -> None:
        """A cable from this machine to the board, with an address at each end."""
        tag = f"{random.randrange(1 << 24):06x}"
        self._interface, inner = f"fe{tag}", f"fi{tag}"
        pid = str(self.init.pid)
        base = 0xC613_0000 + (random.randrange(1 << 14) << 2)  # 198.19.0.0/16, for tests of networks (RFC 2544)
        if self.address:  # a board keeps its address
            base = int.from_bytes(socket.inet_aton(self.address), "big") - 2
        here, there = (socket.inet_ntoa((base + n).to_bytes(4, "big")) for n in (1, 2))
        inside = ("nsenter", "--target", pid, "--net", "--")
        for command in (
            ("ip", "link", "add", self._interface, "type", "veth", "peer", "name", inner, "netns", pid),
            ("ip", "address", "add", f"{here}/30", "dev", self._interface),
            ("ip", "link", "set", self._interface, "up"),
            (*inside, "ip", "link", "set", "lo", "up"),
            (*inside, "ip", "address", "add", f"{there}/30", "dev", inner),
            (*inside, "ip", "link", "set", inner, "up"),
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        self.address = there
        (self.folder / "address").write_text(there)

    def link(self, state: str) -> None:
        """Pull the cable (``down``) or plug it in (``up``)."""
        subprocess.run(["ip", "link", "set", self._interface, state], check=True)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()
        try:
            with socket.create_connection((self.address, 22), timeout=5) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False

    # --- Use ------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.host_key)

    def device(self, target: str, user: str = ADMIN, **more: Any) -> Device:
        """Its entry in an inventory."""
        given: dict[str, Any] = {
            "name": self.name,
            "target": target,
            "ssh": f"{user}@{self.address}",
            "ssh_identity": str(self.client_key),
            "ssh_known_hosts": str(self.known_hosts),
            "ssh_config": str(self.folder / "ssh_config"),
            **more,
        }
        return Device(**given)

    async def run(
        self, *argv: str, user: str = ADMIN, deadline: float = COMMAND_DEADLINE, input: bytes = b""
    ) -> Completed:
        """Run a command over SSH as ``user``."""
        session = await SshSession.open(self.device("arm64", user))
        try:
            return await session.run(argv, deadline=deadline, input=input)
        finally:
            await session.close()

    def inside(self, *command: str) -> str:
        """What a command says that root runs on the board's own console; it has to succeed."""
        done = subprocess.run(
            [*self._enter, *command],
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def _enter(self) -> Sequence[str]:
        return ("nsenter", "--target", str(self.init.pid), "--all", "--root", "--wd=/", "--")

    def copy_in(self, source: Path, to: str) -> None:
        """Put a file or folder of this machine on the running board, as root."""
        packed = subprocess.Popen(["tar", "-C", source.parent, "-cf", "-", source.name], stdout=subprocess.PIPE)
        self.inside("mkdir", "-p", to)
        unpack = ("tar", "--no-same-owner", "-C", to, "-xf", "-")
        subprocess.run([*self._enter, *unpack], stdin=packed.stdout, check=True)
        assert packed.wait() == 0


def control_group(pid: int) -> Path:
    """The folder of a board's control group, if it was given one of its own (systemd has one for each service)."""
    path = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip()
    mine = next((part for part in path.split("/") if part.startswith("fleet-board.")), "")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    at = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), Path())
    return at / mine if mine and at.is_absolute() else Path()


def _forget(group: Path) -> None:
    """Remove an empty control group and those in it; the kernel needs a moment after the last process of one."""
    if group == Path():
        return

    def gone() -> bool:
        with contextlib.suppress(OSError):
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        return not group.exists()

    wait_for(gone, f"the end of {group}", 20)


def _line(stream: IO[bytes], deadline: float) -> bytes:
    """The next line, or nothing if there is none in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(deadline) else b""


def said(completed: Completed) -> Sequence[str]:
    """The lines of a command that has to have succeeded."""
    assert completed.status == 0, completed.stdout + completed.stderr
    return completed.stdout.splitlines()
