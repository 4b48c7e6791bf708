"""Whom the agent trusts: to connect, and to sign bundles. The directories are looked at afresh each time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.config import read_keys
from targets.keys import key_id

log = logging.getLogger("agent.admission")


class Admission:
    """Decides for ZeroMQ's authentication (ZAP) by a client's CURVE public key (z85).

    The directory is small and connections are rare, so it is read for each one: a change counts at once.
    """

    def __init__(self, authorized: Path) -> None:
        self._authorized = authorized
        self._granted: set[str] = set()

    def grant(self, public: bytes) -> None:
        """Admit a key until it is revoked or the agent ends."""
        self._granted.add(public.decode("ascii"))

    def revoke(self, public: bytes) -> None:
        self._granted.discard(public.decode("ascii"))

    def admits(self, public: str) -> bool:
        return public in self._granted or public in read_keys(self._authorized).values()

    def callback(self, domain: str, key: bytes) -> bool:
        """The interface of ``zmq.auth``."""
        return self.admits(key.decode("ascii"))


class TrustedKeys(Mapping[str, str]):
    """Ed25519 public keys (hex) by their ids: what lies in the home's ``trusted`` directory at the moment."""

    def __init__(self, trusted: Path) -> None:
        self._trusted = trusted

    def _read(self) -> dict[str, str]:
        keys: dict[str, str] = {}
        for file, public in read_keys(self._trusted).items():
            try:
                keys[key_id(bytes.fromhex(public))] = public
            except ValueError:
                log.error("%s/%s.pub holds no public key and is left out", self._trusted, file)
                # Never an empty mapping because of a damaged file: that would accept bundles that nobody signed.
                keys[f"damaged:{file}"] = ""
        return keys

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
