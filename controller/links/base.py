"""What a carrier is: something that moves protocol frames to one agent and back."""

from __future__ import annotations

from typing import Protocol


class Link(Protocol):
    """Moves messages (a header frame and, if not empty, a payload frame) in order; loses none while it is open."""

    #: Whether blobs are better compressed before they are sent (false where the link is faster than zstd).
    compress: bool

    async def open(self) -> None:
        """Connect. Raises ``targets.base.FleetError`` (code ``unreachable``, ``wrong-key``) with what to do next."""
        ...

    async def send(self, header: bytes, payload: bytes = b"") -> None: ...

    async def receive(self) -> tuple[bytes, bytes]:
        """The next message from the agent. Raises ``FleetError`` (code ``connection-lost``) when there will be none."""
        ...

    async def close(self) -> None: ...
