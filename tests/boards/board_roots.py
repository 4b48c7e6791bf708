"""Root file systems of boards: Debian for arm64 and armhf, run by qemu's user mode, and for amd64 with systemd.

They are built once and kept.

``python tests/boards/board_roots.py [ARCHITECTURE...]`` builds what is missing, both at once, and prints where it is.

A root has what a bare image of a board has: an SSH server, Python and sudo, for armhf also the compiled packages that
have no wheels there; the names and the script below are all that goes in, and their digest names the folder.
``FLEET_BOARD_CACHE`` says where (default ``~/.cache/fleet/boards``).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
#: Whoever sets a board up: one may do everything, one is asked for a password first.
ADMIN, OPERATOR = "fleetadmin", "fleetguest"
_PACKAGES = ("openssh-server", "python3", "python3-venv", "sudo", "procps", "iproute2")
#: What PyPI has no wheels of for armv7, as PYNQ's image brings it or the `arm` role installs it.
_COMPILED = ("python3-numpy", "python3-zmq", "python3-psutil", "python3-zstandard", "python3-cryptography")
#: What starts a whole Debian; an emulator knows too little of the kernel's calls for it.
_SYSTEMD = ("systemd-sysv", "dbus", "libpam-systemd")
_SETUP = f"""\
set -eu
rm -f /etc/ssh/ssh_host_*
useradd --create-home --shell /bin/bash {ADMIN}
useradd --create-home --shell /bin/bash --groups sudo {OPERATOR}
echo '{ADMIN} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{ADMIN}
chmod 0440 /etc/sudoers.d/{ADMIN}
install -d -m 0700 -o {ADMIN} -g {ADMIN} /home/{ADMIN}/.ssh
install -d -m 0700 -o {OPERATOR} -g {OPERATOR} /home/{OPERATOR}/.ssh
rm -rf /usr/share/doc /usr/share/man /usr/share/locale
"""
#: What no test reads. Without certificates, a fifth of the time is saved: an emulator hashes each of them.
_LEFT_OUT = ("man", "doc", "locale", "ca-certificates")
_BUILD_DEADLINE = 3600.0
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


@dataclass(frozen=True)
class Architecture:
    """One kind of processor: what Debian, the kernel, and qemu call it."""

    debian: str
    uname: str
    #: The program that runs its programs here; empty: this machine's processor does.
    emulator: str
    #: ``e_machine`` of its ELF files, and their class (1: 32 bits, 2: 64).
    machine: int
    bits: int
    packages: tuple[str, ...] = _PACKAGES

    @property
    def registration(self) -> bytes:
        """A line of ``binfmt_misc``: little-endian executables and shared objects of this machine.

        F opens the emulator now, so that roots need none; C gives setuid programs (sudo) their user; P keeps argv[0].
        """
        ident = b"\x7fELF" + bytes([self.bits, 1, 1]) + bytes(9)
        magic = ident + (2).to_bytes(2, "little") + self.machine.to_bytes(2, "little")
        mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"

        def text(data: bytes) -> bytes:
            return b"".join(b"\\x%02x" % byte for byte in data)

        fields = [b"", self.entry.name.encode(), b"M", b"", text(magic), text(mask), os.fsencode(self.program), b"POCF"]
        return b":".join(fields)

    @property
    def entry(self) -> Path:
        return _BINFMT / f"fleet-{self.uname}"

    @property
    def program(self) -> str:
        return shutil.which(self.emulator) or ""

    @property
    def digest(self) -> str:
        """Of everything that a root is made of, short enough for a path."""
        recipe = "\n".join([SUITE, self.debian, *self.packages, *_LEFT_OUT, _SETUP])
        return hashlib.sha256(recipe.encode()).hexdigest()[:12]


ARM64 = Architecture("arm64", "aarch64", "qemu-aarch64-static", 183, 2)
ARMHF = Architecture("armhf", "armv7l", "qemu-arm-static", 40, 1, packages=(*_PACKAGES, *_COMPILED))
AMD64 = Architecture("amd64", "x86_64", "", 62, 2, packages=(*_PACKAGES, *_SYSTEMD))
EMULATED = {one.debian: one for one in (ARM64, ARMHF)}
ARCHITECTURES = {**EMULATED, AMD64.debian: AMD64}


def missing(wanted: Iterable[Architecture]) -> str:
    """Why no boards of these can run on this machine; empty if they can."""
    wanted = list(wanted)
    if os.geteuid() != 0:
        return "boards of the tests need root: namespaces, overlays, a root file system of their own"
    machine = os.uname().machine
    if foreign := [one.uname for one in wanted if not one.emulator and one.uname != machine]:
        return f"boards of this machine's own processor are {foreign[0]} ones, and this is a {machine}"
    tools = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "ip": "iproute2", "ssh-keygen": "openssh-client"}
    tools |= {one.emulator: "qemu-user-static" for one in wanted if one.emulator}
    packages = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if packages:
        return f"boards of the tests need: apt-get install {' '.join(packages)}"
    known = Path("/proc/filesystems").read_text().split()
    if any(one.emulator for one in wanted) and "binfmt_misc" not in known and not (_BINFMT / "register").exists():
        return "emulated boards need binfmt_misc, which this kernel does not have"
    if not all(one.emulator for one in wanted) and "cgroup2" not in known:
        return "boards with systemd need control groups of version 2, which this kernel does not have"
    return ""


def cache_folder() -> Path:
    given = os.environ.get("FLEET_BOARD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fleet" / "boards"


def root(architecture: Architecture) -> Path:
    """The root file system, built if it is not there yet. It is not to be changed: boards lie over it.

    Raises:
        RuntimeError: the build failed, with its last words; what was downloaded stays for the next attempt.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{architecture.debian}-{architecture.digest}"
    with alone(folder / f"{architecture.debian}.lock"):
        register(architecture)
        if not made.exists():
            _build(architecture, folder, made)
    return made


def register(architecture: Architecture) -> None:
    """Have the kernel start this machine's programs under qemu; it stays until the next boot."""
    if not architecture.emulator:
        return
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=True)
    if not architecture.entry.exists():
        (_BINFMT / "register").write_bytes(architecture.registration)


def _build(architecture: Architecture, folder: Path, made: Path) -> None:
    building = folder / f"{architecture.debian}.building"
    if building.exists():
        shutil.rmtree(building)  # of a build that was killed: its mounts went with its namespace
    archives = folder / f"{architecture.debian}.archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    hook = (
        f'mkdir -p "$1/var/cache/apt/archives" && mount --bind {shlex.quote(str(archives))} "$1/var/cache/apt/archives"'
    )
    command = [
        # Processes and mounts of namespaces of their own end with them, however the build ends.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", f"--architectures={architecture.debian}"),
        f"--include={','.join(architecture.packages)}",
        *("--aptopt=APT::Keep-Downloaded-Packages true", "--aptopt=Acquire::Retries 3"),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in _LEFT_OUT),
        *(f"--setup-hook={hook}", "--skip=essential/unlink,cleanup/apt/cache"),
        f'--customize-hook=chroot "$1" sh -c {shlex.quote(_SETUP)}',
        *(SUITE, str(building), *_sources()),
    ]
    # The temporary files of a root are a root.
    environment = {**os.environ, "TMPDIR": str(folder), "DEBIAN_FRONTEND": "noninteractive"}
    log = folder / f"{architecture.debian}.log"
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_BUILD_DEADLINE,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    if status != 0:
        words = log.read_text(errors="replace")[-2000:]
        late = f", not within {_BUILD_DEADLINE:.0f} s" if status == -1 else ""
        raise RuntimeError(f"no {architecture.debian} root file system{late}, see {log}:\n{words}")
    building.rename(made)
    shutil.rmtree(archives)
    for old in folder.glob(f"{architecture.debian}-*"):
        if old != made:
            shutil.rmtree(old)


def _sources() -> list[str]:
    """Where this machine itself gets the suite from; nothing if it has another system, so that mmdebstrap chooses."""
    format = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    done = subprocess.run(["apt-get", "indextargets", "--format", format], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.split()[1:] == [SUITE, "main"]:
            return [f"deb {line.split()[0]} {SUITE} main"]
    return []


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, by a file that is locked."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def roots(wanted: Iterable[Architecture]) -> dict[str, Path]:
    """Of several architectures at once, by Debian's names: what sets a root up is one process after the other."""
    named = {one.debian: one for one in wanted}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(named, pool.map(root, named.values()), strict=True))


def main(names: Sequence[str]) -> int:
    wanted = [ARCHITECTURES[name] for name in names or EMULATED]
    reason = missing(wanted)
    if reason:
        print(reason, file=sys.stderr)
        return 1
    for made in roots(wanted).values():
        print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
