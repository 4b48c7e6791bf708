"""One SSH connection to a board: the servers on the way, ports, commands, and the end of all of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import asyncssh

from controller.inventory import Device
from controller.printable import printable
from controller.ssh import commands
from controller.ssh.commands import Completed
from controller.ssh.route import Hop, route
from targets.base import FleetError
from targets.waiting import within

#: Seconds until a server has let us in. A board of 2012 needs two.
LOGIN_TIMEOUT = 10.0
_CLOSE_PATIENCE = 2.0
#: Commands at once on one connection; the rest wait. OpenSSH's default (MaxSessions) is 10, and files need some.
_MOST_COMMANDS = 6


class _Client(asyncssh.SSHClient):  # type: ignore[misc]
    """What asyncssh asks while it logs in, and tells when the connection goes."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self.lost = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
        """A key that no file knows is never taken; it is kept to be shown."""
        self._hop.host_keys.shown = key
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = printable(str(exc)) if exc is not None and str(exc) else "the server closed it"


class SshSession:
    """An open connection to the SSH server of a board. Every error is a FleetError."""

    def __init__(self, device: Device, hops: Sequence[Hop], opened: Sequence[tuple[Any, _Client]]) -> None:
        self.device = device
        self._hops, self._opened = hops, opened
        self._listeners: dict[int, Any] = {}
        self._running = asyncio.Semaphore(_MOST_COMMANDS)
        #: The ``asyncssh.SSHClientConnection`` to the board itself.
        self.connection = opened[-1][0]

    @classmethod
    async def open(cls, device: Device) -> SshSession:
        """Log in by key or agent, through jump hosts where the configuration says so.

        Raises FleetError ``unreachable``; ``ssh-refused`` when no key is accepted; ``host-key`` when a server's key is
        unknown or another than before, with its fingerprint and the command that accepts it; ``ssh-config``.
        """
        hops = await route(device)
        opened: list[tuple[Any, _Client]] = []
        try:
            for hop in hops:
                who = device.name if hop is hops[-1] else f"the jump host of {device.name}"
                opened.append(await _login(who, hop, opened[-1][0] if opened else None))
        except BaseException:
            await _close(opened)
            raise
        return cls(device, hops, opened)

    def __str__(self) -> str:
        return self._hops[-1].name

    @property
    def way(self) -> str:
        """``user@host:port``, with the jump hosts."""
        jumps = ", ".join(hop.name for hop in self._hops[:-1])
        return self._hops[-1].name + (f" through {jumps}" if jumps else "")

    @property
    def server(self) -> str:
        """What the server calls itself, such as ``OpenSSH_9.2``."""
        return printable(str(self.connection.get_extra_info("server_version", ""))[:128])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the host key that the board has proven to hold."""
        key = self.connection.get_server_host_key()
        return str(key.get_fingerprint()) if key is not None else ""

    @property
    def lost(self) -> str:
        """Why the connection is gone, in words; empty while it is there."""
        return next((client.lost for _, client in self._opened if client.lost), "")

    async def forward(self, port: int) -> int:
        """A port on this machine's loopback that reaches ``port`` on the board's, for as long as the session lasts.

        Raises FleetError ``connection-lost``, ``ssh-forwarding`` when the server forbids it, ``no-listener`` when
        nothing listens there.
        """
        if port not in self._listeners:
            await self._probe(port)
            self._listeners[port] = await self._asked(
                self.connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", port)
            )
        return int(self._listeners[port].get_port())

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline: float,
        on_line: Callable[[str], None] | None = None,
        input: bytes = b"",
    ) -> Completed:
        """Run a command on the board, of which ``on_line`` gets each line of output as it comes, fit for a terminal.

        After ``deadline`` seconds, and when this is cancelled, its whole process group is ended; see
        :mod:`controller.ssh.commands` for what holds when the link goes. ``input`` is its standard input.
        Raises FleetError ``timeout``, ``connection-lost``, ``too-large``.
        """
        if self.lost:
            raise self._gone()
        async with self._running:
            return await commands.run(self.connection, argv, deadline=deadline, on_line=on_line, input=input)

    async def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        await _close(self._opened)

    # --- Inside ---------------------------------------------------------------------------------

    async def _probe(self, port: int) -> None:
        """Whether the server lets us through to a port, and somebody is there."""
        try:
            _, writer = await self._asked(self.connection.open_connection("127.0.0.1", port, encoding=None))
        except asyncssh.ChannelOpenError as error:
            if self.lost:
                raise self._gone() from None
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise FleetError(
                    f"the SSH server of {self.device.name} ({self}) forbids forwarding",
                    code="ssh-forwarding",
                    hint="allow it in its sshd_config: `AllowTcpForwarding local` (or yes), `PermitOpen any`",
                ) from None
            raise FleetError(
                f"nothing listens on port {port} of {self.device.name}: {printable(error.reason)}", code="no-listener"
            ) from None
        writer.close()

    async def _asked(self, work: Any) -> Any:
        try:
            return await within(LOGIN_TIMEOUT, work)
        except asyncssh.ChannelOpenError:
            raise
        except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
            raise self._gone(error) from None

    def _gone(self, error: BaseException | None = None) -> FleetError:
        why = self.lost or (_words(error) if error is not None else "it was closed")
        return FleetError(
            f"the SSH connection to {self.device.name} ({self}) is gone: {why}",
            code="connection-lost",
            hint="try again; a push goes on where it was cut",
        )


async def _login(who: str, hop: Hop, before: Any) -> tuple[Any, _Client]:
    """A connection to one server, through the one ``before`` it if there is one."""
    client = _Client(hop)
    where = f"SSH to {who} ({hop.name})"
    try:
        connection = await within(
            LOGIN_TIMEOUT,
            asyncssh.connect(
                hop.alias,
                hop.options.port,
                username=hop.options.username,
                options=hop.options,
                config=None,
                tunnel=before,
                client_factory=lambda: client,
            ),
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise hop.host_keys.refusal(printable(error.reason), where) from None
    except asyncssh.PermissionDenied:
        raise FleetError(
            f"{where}: the server accepts none of our keys",
            code="ssh-refused",
            hint=f"put one there (`ssh-copy-id {hop.name}`), or name one: `ssh: {{to: …, identity: FILE}}` in "
            "fleet.yaml; a key with a passphrase has to be in an agent (`ssh-add`)",
        ) from None
    except asyncssh.KeyExchangeFailed as error:
        raise FleetError(f"{where}: no common ground: {printable(error.reason)}", code="ssh-config") from None
    except (OSError, asyncssh.Error, asyncio.TimeoutError, ValueError) as error:
        raise FleetError(
            f"{where}: {_words(error)}",
            code="unreachable",
            hint="is the board on, on this network, and its SSH server running?",
        ) from None
    return connection, client


async def _close(opened: Sequence[tuple[Any, _Client]]) -> None:
    for connection, _ in reversed(opened):
        connection.close()
        with contextlib.suppress(OSError, asyncssh.Error, asyncio.TimeoutError):
            await within(_CLOSE_PATIENCE, connection.wait_closed())
        connection.abort()


def _words(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, OSError):
        # asyncio's own words for it name a call and an address.
        return os.strerror(error.errno).lower() if error.errno else printable(str(error))
    return printable(getattr(error, "reason", "") or str(error) or type(error).__name__)
