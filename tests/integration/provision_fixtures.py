"""A bare x86 board: this machine's programs under a file system of its own, an address of its own and an SSH server.

The file system is an overlay, so that whatever is done to the board ends with it. There is no systemd on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_fixtures import Host, Network, needs_namespaces

__all__ = ["Board", "bare_board", "needs_board"]

# Arguments: where the board's files go, what of this machine it sees besides, the command. Its processes end with it.
_ENTER = """\
set -e
root=$1 keys=$2; shift 2
m=$root/merged
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$m"
mount -t proc proc "$m/proc"
mount --rbind /dev "$m/dev"
mount --rbind /sys "$m/sys"
mount -t tmpfs tmpfs "$m/run"
mount -t tmpfs tmpfs "$m/tmp"
# What a login of this machine does first is no matter of the board's.
mount -t tmpfs -o mode=700 tmpfs "$m/root"
mkdir -p "$m/run/sshd" "$m/$keys"
mount --bind "$keys" "$m/$keys"
# Nothing of an agent that this machine may have.
rm -rf "$m/opt/fleet" "$m/etc/fleet" "$m/var/lib/fleet"
exec chroot "$m" "$@"
"""


def _lacking() -> str:
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        return "no unshare and nsenter (util-linux)"
    if os.geteuid() != 0:
        return "a board of its own needs root"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlayfs"
    return "" if Path("/usr/bin/python3").exists() else "no /usr/bin/python3"


def needs_board(function):  # type: ignore[no-untyped-def]
    """Skips, with its reason, what needs a board where none can be made."""
    reason = _lacking()
    return needs_namespaces(pytest.mark.skipif(bool(reason), reason=reason)(function))


class Board:
    """``files`` is the board's file system as seen from here, by way of its SSH server's process."""

    def __init__(self, root: Path, network: Network) -> None:
        self.root = root
        for name in ("upper", "work", "merged"):
            (root / name).mkdir(parents=True)
        self.host: Host = network.host()
        server = self.host.server
        server.kill()
        server.prefix = [
            *("ip", "netns", "exec", self.host.name),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
            *("sh", "-c", _ENTER, "board", str(root), str(server.root)),
        ]
        server.start()

    @property
    def files(self) -> Path:
        """The board's root directory."""
        return Path(f"/proc/{self._inside()}/root")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says on the board."""
        enter = ["nsenter", "--target", str(self._inside()), "--mount", "--pid", "--net", "--root", "--wd=/"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _inside(self) -> int:
        process = self.host.server.process
        assert process is not None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])

    def inventory(self, path: Path, *, name: str = "board-1", target: str = "x86", more: str = "") -> Path:
        """A ``fleet.yaml`` with this board in it."""
        server = self.host.server
        path.write_text(
            f"devices:\n  - name: {name}\n    target: {target}\n    labels: {{room: lab}}\n    ssh:\n"
            f"      to: root@{self.host.address}\n      config: {server.config()}\n"
            f"      identity: {server.client_key}\n      known_hosts: {server.known_hosts}\n{more}"
        )
        return path

    def off(self) -> None:
        """Switch it off: its first process ends, and so all of them."""
        process, self.host.server.process = self.host.server.process, None
        if process is not None:
            process.kill()
            process.wait(20)

    def close(self) -> None:
        self.off()
        with contextlib.suppress(OSError):
            # The kernel keeps a folder of its own there, which its owner cannot read.
            shutil.rmtree(self.root)


@pytest.fixture
def bare_board(tmp_path: Path, network: Network) -> Iterator[Board]:
    board = Board(tmp_path / "board", network)
    yield board
    board.close()
