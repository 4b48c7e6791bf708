"""Key pairs: CURVE for who may talk to whom, Ed25519 for who made a bundle.

Secrets never leave their files but for the libraries that use them; nothing here prints them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from targets.base import BundleError, FleetError
from targets.files import make_directory, write_atomic

#: Says what a signature is for, so that one made here means nothing elsewhere, and the other way round.
_CONTEXT = b"fleet-bundle-v1:"


class Signature(msgspec.Struct, frozen=True):
    """An Ed25519 signature over a bundle's id. ``key_id`` names the key that made it."""

    key_id: str
    signature: bytes


def key_id(public: bytes) -> str:
    """Short name of a public signing key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


class Keys:
    """The key pairs of one side, in a directory that only its owner can read; each is made when it is first needed.

    ``curve.key`` (z85) and ``signing.key`` (hex) hold the secrets; ``curve.pub`` and ``signing.pub`` may be given away.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_directory(root.parent)
        root.mkdir(mode=0o700, exist_ok=True)

    def __repr__(self) -> str:
        return f"Keys({str(self.root)!r})"

    @property
    def curve_public(self) -> bytes:
        """Z85, 40 characters."""
        return self._curve[0]

    @property
    def curve_secret(self) -> bytes:
        """Z85, 40 characters."""
        return self._curve[1]

    @property
    def signing_public(self) -> str:
        """Ed25519, 64 hex digits."""
        return self._signing[0]

    @property
    def key_id(self) -> str:
        """Short name of the signing key."""
        return key_id(bytes.fromhex(self.signing_public))

    def sign(self, bundle_id: str) -> Signature:
        """Sign a bundle's id."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.from_private_bytes(self._signing[1])
        return Signature(self.key_id, key.sign(_CONTEXT + bundle_id.encode()))

    @cached_property
    def _curve(self) -> tuple[bytes, bytes]:
        import zmq

        secret = self._secret("curve.key", lambda: zmq.curve_keypair()[1])
        try:
            public = bytes(zmq.curve_public(secret))
        except (ValueError, zmq.ZMQError):
            raise self._damaged("curve.key") from None
        self._publish("curve.pub", public)
        return public, secret

    @cached_property
    def _signing(self) -> tuple[str, bytes]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        text = self._secret("signing.key", lambda: Ed25519PrivateKey.generate().private_bytes_raw().hex().encode())
        try:
            secret = bytes.fromhex(text.decode())
            public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()
        except ValueError:
            raise self._damaged("signing.key") from None
        self._publish("signing.pub", public.encode())
        return public, secret

    def _secret(self, name: str, create: Callable[[], bytes]) -> bytes:
        """What the file holds; made first when there is none. Of two processes that make it at once, one wins."""
        path = self.root / name
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                write_atomic(path, create() + b"\n", mode=0o600, replace=False)
        if path.stat().st_mode & 0o077:
            raise FleetError(
                f"the secret key {path} can be read by others",
                code="bad-key",
                hint=f"chmod 600 {path}; make a new key if somebody may have read it",
            )
        return path.read_bytes().strip()

    def _publish(self, name: str, public: bytes) -> None:
        path = self.root / name
        if not path.exists() or path.read_bytes().strip() != public:
            write_atomic(path, public + b"\n")

    def _damaged(self, name: str) -> FleetError:
        return FleetError(
            f"{self.root / name} holds no key",
            code="bad-key",
            hint="restore the file, or remove it to have a new key made (devices must then be told of it)",
        )


def verify(bundle_id: str, signature: Signature, trusted: Mapping[str, str]) -> None:
    """Check a signature against the public keys (hex, by key id) that are trusted. Raises :class:`BundleError`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = trusted.get(signature.key_id)
    if known is None:
        raise BundleError(
            f"bundle {bundle_id[:12]} is signed with key {signature.key_id[:16]!r}, which is not trusted here",
            code="untrusted-key",
            hint="have the device trust that key, or sign with one of " + (", ".join(sorted(trusted)) or "its own"),
        )
    try:
        public = bytes.fromhex(known)
        key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        raise FleetError(f"trusted key {signature.key_id} is not an Ed25519 key in hex", code="bad-key") from None
    try:
        key.verify(signature.signature, _CONTEXT + bundle_id.encode())
    except InvalidSignature:
        raise BundleError(
            f"the signature on bundle {bundle_id[:12]} is wrong: it was changed after key {signature.key_id} signed it",
            code="bad-signature",
            hint="build or fetch the bundle again",
        ) from None
