"""Where an SSH server is, as a person writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from targets.base import FleetError

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")
# No dash at the front: what reads a command line would take it for an option.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?")
_WRITTEN = re.compile(r"(?:(?P<user>.*)@)?(?:\[(?P<literal>[^\]]*)\]|(?P<host>[^\[\]]*?))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Destination:
    """``[user@]host[:port]``; an empty user and port 0 are left to the configuration."""

    host: str
    user: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Raises FleetError ``bad-ssh``. IPv6 addresses with a port are in brackets."""
        found = _WRITTEN.fullmatch(text) if text.count(":") < 2 or "[" in text else _bare(text)
        if found is not None:
            host, port = found["literal"] or found["host"] or "", int(found["port"] or 0)
            user_fits = found["user"] is None or _USER.fullmatch(found["user"])
            if user_fits and _HOST.fullmatch(host) and port <= 65535 and (port or not found["port"]):
                return cls(host=host, user=found["user"] or "", port=port)
        raise FleetError(f"'{text}' is not [user@]host[:port], nor a Host of ssh_config", code="bad-ssh")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def _bare(text: str) -> re.Match[str] | None:
    """An IPv6 address without brackets has no port."""
    return re.fullmatch(r"(?:(?P<user>[^@]*)@)?(?P<literal>)(?P<host>[0-9A-Fa-f:.%A-Za-z-]+)(?P<port>)", text)
