"""The carrier over SSH: the agent's own socket, or its TVM RPC listener, at the other end of a tunnel.

Whatever goes through is what goes without a tunnel; CURVE still holds from end to end. Its keys need not be in the
inventory: they are read from the board over the connection that the host key has proven.
"""

from __future__ import annotations

import re

from controller.inventory import Device
from controller.links.base import Link
from controller.ssh.agent import find_agent
from controller.ssh.look import RemoteAgent
from controller.ssh.session import SshSession
from targets.base import FleetError
from targets.keys import Keys

#: How the inner link names its end of the tunnel, which tells nobody anything.
_NEAR_END = re.compile(r"(?:tcp://)?127\.0\.0\.1:[0-9]+")


class SshLink:
    """A link to the agent of a board behind an SSH server."""

    #: A tunnel ciphers every byte, on boards that do so slowly.
    compress = True

    def __init__(self, device: Device, keys: Keys, *, rpc: bool = False, start: bool = True) -> None:
        """``rpc``: through the agent's TVM RPC listener. ``start``: have the agent run if it does not."""
        self._device, self._keys, self._rpc, self._start = device, keys, rpc, start
        self._inner: Link
        #: Of the open link: commands and files go the same way.
        self.ssh: SshSession
        self.agent: RemoteAgent

    async def open(self) -> None:
        """Raises FleetError as `SshSession.open`, `find_agent` and the inner link do."""
        self.ssh = await SshSession.open(self._device)
        try:
            self.agent = await find_agent(self.ssh, self._device, keys=self._keys, start=self._start)
            self._inner = await self._through()
            await self._inner.open()
        except BaseException as error:
            await self.ssh.close()
            if isinstance(error, FleetError):
                raise self._told(error) from None
            raise

    async def send(self, header: bytes, payload: bytes = b"") -> None:
        try:
            await self._inner.send(header, payload)
        except FleetError as error:
            raise self._told(error) from None

    async def receive(self) -> tuple[bytes, bytes]:
        try:
            return await self._inner.receive()
        except FleetError as error:
            raise self._told(error) from None

    async def close(self) -> None:
        await self._inner.close()
        await self.ssh.close()

    async def _through(self) -> Link:
        if self._rpc:
            from controller.links.rpc import RpcLink

            if not self.agent.rpc_port:
                raise FleetError(
                    f"the agent of {self._device.name} has no TVM RPC listener",
                    code="unreachable",
                    hint="start it without `--rpc-port off`, or use `link: ssh`",
                )
            port = await self.ssh.forward(self.agent.rpc_port)
            return RpcLink("127.0.0.1", port, self._device.rpc_key or self._device.target)
        from controller.links.zmq import ZmqLink

        address = f"tcp://127.0.0.1:{await self.ssh.forward(self.agent.port)}"
        keys = self._keys
        return ZmqLink(address, agent_key=self.agent.public, public=keys.curve_public, secret=keys.curve_secret)

    def _told(self, error: FleetError) -> FleetError:
        """What is wrong, in terms of the board: the inner link knows of a port of this machine only."""
        if not _NEAR_END.search(error.message):
            return error
        message = _NEAR_END.sub(f"{self._device.name} over SSH ({self.ssh})", error.message)
        if error.code == "connection-lost" and self.ssh.lost:
            message += f"; the SSH connection is gone: {self.ssh.lost}"
        return FleetError(message, code=error.code, hint=error.hint)
