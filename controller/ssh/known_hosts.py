"""Who an SSH server must prove to be: the keys that known_hosts files hold for it, and what to say of another one."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

from targets.base import FleetError

_PORT = 22
_USERS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_SYSTEMS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


def files(given: str, user: Sequence[str] | None, system: Sequence[str] | None) -> list[Path]:
    """Files to look into: the device's own, or else what ssh_config says (None: nothing; empty: none), or the defaults.

    `UserKnownHostsFile none` means that the user's files are not read; it never means that nothing is checked.
    """
    if given:
        return [Path(given).expanduser()]
    names = [*(_USERS if user is None else user), *(_SYSTEMS if system is None else system)]
    return [Path(name).expanduser() for name in names]


class HostKeys:
    """The keys known for one server."""

    def __init__(self, paths: Sequence[Path], host: str, port: int, alias: str) -> None:
        self._paths = paths
        # As OpenSSH writes it: an alias stands for a host and its port.
        self.name = (alias or (host if port == _PORT else f"[{host}]:{port}")).lower()
        known = _read(paths)
        #: Host keys, keys of authorities, revoked keys, and the same of X.509: what asyncssh takes.
        self.matched = known.match(self.name, "", None)
        self.listed = any(self.matched)
        if not self.listed and not alias and port != _PORT:
            # OpenSSH: a key that is known for the host holds on every port of it.
            self.matched = known.match(host.lower(), "", None)
        #: The key that was shown and is not known; set by the connection.
        self.shown: asyncssh.SSHKey | None = None

    def match(self, host: str, address: str, port: int | None) -> Any:
        """What asyncssh asks for when it has connected. By name alone, as OpenSSH does."""
        return self.matched

    @property
    def algorithms(self) -> list[str]:
        """Kinds of host keys in the order of preference: those we know first, so that a server shows one of them."""
        keys, authorities = self.matched[0], self.matched[1]
        first = [algorithm for key in keys for algorithm in key.sig_algorithms]
        wanted = (get_default_certificate_algs() if authorities else []) + first + get_default_public_key_algs()
        return [algorithm.decode() for algorithm in dict.fromkeys(wanted)]

    def refusal(self, words: str, where: str) -> FleetError:
        """Why a server is not believed: its fingerprint, and the command that accepts it."""
        key = self.shown
        if key is None:
            return FleetError(
                f"{where}: its host key is not accepted: {words}",
                code="host-key",
                hint=f"see what {_join(self._paths)} say of {self.name}",
            )
        line = f"{self.name} {key.export_public_key().decode().strip()}"
        # Comments of a key are the server's words; the line holds kind and key only.
        line = " ".join(line.split()[:3])
        file = str(self._paths[0]) if self._paths else str(Path(_USERS[0]).expanduser())
        accept = f"echo {shlex.quote(line)} >> {shlex.quote(file)}"
        prints = f"its {key.algorithm.decode()} key has the fingerprint {key.get_fingerprint()}"
        compare = "compare it with `ssh-keygen -lf` of the board's /etc/ssh/ssh_host_*_key.pub; to accept it"
        if not self.listed:
            return FleetError(
                f"{where}: its host key is not known: {prints}", code="host-key", hint=f"{compare}: {accept}"
            )
        known = ", ".join(sorted(key.get_fingerprint() for key in self.matched[0])) or "one of an authority"
        remove = f"ssh-keygen -R {shlex.quote(self.name)} -f {shlex.quote(file)}"
        return FleetError(
            f"{where}: ITS HOST KEY HAS CHANGED: {prints}, known is {known}; either the board was set up anew, or "
            f"somebody else answers",
            code="host-key",
            hint=f"{compare}: {remove} && {accept}",
        )


def _read(paths: Sequence[Path]) -> Any:
    """Everything the files hold. As in OpenSSH, a file that is not there and a line that is damaged know nobody."""
    known = asyncssh.import_known_hosts("")
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FleetError(f"cannot read {path}: {error.strerror}", code="ssh-config") from None
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                known.load(line)
    return known


def _join(paths: Sequence[Path]) -> str:
    return " and ".join(str(path) for path in paths) or "known_hosts files"
