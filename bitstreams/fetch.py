"""Bitstreams from where they were published, into a folder; a file is there only whole and with the right digest."""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from bitstreams.bitfile import read
from bitstreams.manifest import MAX_BITSTREAM, KnownBitstream
from targets.base import FleetError
from targets.files import READ_SIZE, disk_errors, make_directory, write_atomic

#: Seconds that a server may stay silent, and that a whole download may take.
SILENCE = 30.0
DEADLINE = 900.0


def cached(known: KnownBitstream, folder: Path) -> Path | None:
    """The file in ``folder``, if it is there and has not changed."""
    path = folder / _name(known)
    if not path.is_file():
        return None
    return path if known.is_of(read(path)) else None


def fetch(known: KnownBitstream, folder: Path, progress: Callable[[float], None] = lambda share: None) -> Path:
    """The file in ``folder``, downloaded if need be. ``progress`` is called with the share done, 0..1.

    Raises:
        FleetError: ``download-failed``; ``wrong-digest`` for a server that gives something else; ``disk-full``.
    """
    found = cached(known, folder)
    if found is not None:
        return found
    data = _download(known, progress)
    if not known.is_of(data):
        raise FleetError(
            f"{known.url} gives {len(data)} bytes that are not {known.name}: the digest is not {known.digest}",
            code="wrong-digest",
            hint="a proxy may have answered in its place; fetch the file elsewhere and `vta bitstream check` it",
        )
    path = folder / _name(known)
    with disk_errors(path.name):
        make_directory(folder)
        write_atomic(path, data)
    return path


def _name(known: KnownBitstream) -> str:
    """The digest is the name: published names repeat."""
    return f"{known.digest.replace(':', '-')}.{known.format}"


def _download(known: KnownBitstream, progress: Callable[[float], None]) -> bytes:
    limit = known.size or MAX_BITSTREAM
    data, end = bytearray(), time.monotonic() + DEADLINE
    try:
        with contextlib.closing(urllib.request.urlopen(known.url, timeout=SILENCE)) as reply:
            expected = known.size or int(reply.headers.get("Content-Length") or 0)
            while block := reply.read(READ_SIZE):
                data += block
                if len(data) > limit:
                    raise _failed(known, f"it is longer than the {limit} bytes it may have")
                if time.monotonic() > end:
                    raise _failed(known, f"it took more than {DEADLINE:.0f} seconds")
                progress(len(data) / max(expected, len(data)))
    except urllib.error.HTTPError as error:
        raise _failed(known, f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(known, getattr(error, "reason", None) or error) from None
    if len(data) < known.size:
        raise _failed(known, f"it ended after {len(data)} of {known.size} bytes")
    return bytes(data)


def _failed(known: KnownBitstream, why: object) -> FleetError:
    return FleetError(
        f"cannot download {known.url}: {why}",
        code="download-failed",
        hint="fetch the file where there is a network, and `vta bitstream check FILE`",
    )
