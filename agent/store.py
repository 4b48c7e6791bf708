"""What a device holds: blobs, bundles made of them, and which bundle each slot runs.

::

    blobs/ab/<sha256>      whole blobs                     parts/<sha256>   blobs still on their way
    incoming/<sha256>      blobs that others write here
    bundles/<id>/          manifest.json, and in files/ a link to the blob of each file, under its own name
    slots.json             what is active, and what was before

Every file and folder appears by a rename of something complete and fsynced, so whenever the process or the power goes,
each is as it was or as it should be. The store belongs to one process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.incoming import Incoming
from agent.parts import Parts
from agent.protocol import BlobRef, ChunkStored, ImportBlob, MissingBlob, PutChunk
from agent.space import Space, measure
from targets.base import BundleError, FleetError
from targets.blobs import BlobDir, check_digest
from targets.bundle import Manifest, bundle_id, parse_manifest
from targets.defaults import MAX_BLOB, MAX_FILES, MAX_MESSAGE
from targets.files import TEMPORARY, disk_errors, hash_file, make_directory, sync_directory, write_atomic
from targets.keys import Signature, verify

_log = logging.getLogger(__name__)

#: What nobody needs is kept this long (seconds) after it was last asked for: it may belong to a push that goes on.
COLLECT_GRACE = 3600.0


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot runs and what it can go back to (empty when there is nothing)."""

    bundle: str
    model: str = ""
    activated_at: float = 0.0
    previous: str = ""
    previous_model: str = ""


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle in the store; what a runner is given (`targets.base.LoadedBundle`)."""

    id: str
    manifest: Manifest
    manifest_bytes: bytes
    root: Path

    def path(self, name: str) -> Path:
        """Where the file called ``name`` in the manifest lies, under a name with the same suffix."""
        if all(entry.path != name for entry in self.manifest.files):
            raise BundleError(f"bundle {self.id[:12]} has no file '{name[:80]}'", code="no-such-file")
        return self.root / "files" / name


def load_bundle(root: Path) -> StoredBundle:
    """The bundle in a store's folder ``bundles/<id>``. Raises :class:`BundleError` if it is not whole."""
    identity = root.name
    try:
        data = (root / "manifest.json").read_bytes()
    except FileNotFoundError:
        raise BundleError(f"there is no bundle {identity[:12]} in the store", code="no-such-bundle") from None
    if bundle_id(data) != identity:
        raise BundleError(f"the manifest of bundle {identity[:12]} is damaged", code="damaged", hint="deploy it again")
    bundle = StoredBundle(identity, parse_manifest(data), data, root)
    for entry in bundle.manifest.files:
        try:
            size = (root / "files" / entry.path).stat().st_size
        except FileNotFoundError:
            size = -1
        if size != entry.size:
            raise BundleError(
                f"file '{entry.path}' of bundle {identity[:12]} is not whole", code="damaged", hint="deploy it again"
            )
    return bundle


class Store:
    """The store at ``root``. Methods block and may be called from any thread.

    ``quota`` bounds the bytes it holds, like a small disk. ``trusted`` maps ids of signing keys to public keys (hex)
    and is looked at afresh with every bundle: if there are any, a bundle that none of them signed is refused.
    """

    def __init__(self, root: Path, *, quota: int = 0, trusted: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.trusted: Mapping[str, str] = {} if trusted is None else trusted
        self._lock = threading.RLock()
        self._bundles = root / "bundles"
        self._slots = root / "slots.json"
        make_directory(self._bundles)
        self.blobs = BlobDir(root / "blobs")
        self.blobs.clean()
        for path in (*root.glob(f"{TEMPORARY}*"), *self._bundles.glob(f"{TEMPORARY}*")):
            _remove(path)
        self._space = Space(root, quota, root / "incoming")
        #: Blobs whose contents this process has seen.
        self._sound: set[str] = set()
        self._parts = Parts(root / "parts", self.blobs, self._space)
        self.incoming = Incoming(root / "incoming", self.blobs, self._parts, self._space, self._lock)

    def close(self) -> None:
        """Close what is open; nothing is lost without it."""
        with self._lock:
            self._parts.close()

    # --- Blobs ----------------------------------------------------------------------------------

    def missing(self, blobs: list[BlobRef]) -> list[MissingBlob]:
        """Which of these are not here, each once, and from where to go on. The others are kept for a while."""
        if len(blobs) > MAX_FILES:
            raise BundleError(f"{len(blobs)} blobs are asked for, at most {MAX_FILES} are allowed")
        missing: list[MissingBlob] = []
        with self._lock:
            for sha256, size in {blob.sha256: blob.size for blob in blobs}.items():
                if not 0 <= size <= MAX_BLOB:
                    raise BundleError(f"blob {sha256[:12]} has {size} bytes, allowed are 0 to {MAX_BLOB}")
                if self._has(sha256, size):
                    os.utime(self.blobs.path(sha256))
                    continue
                held = self._parts.held(sha256)
                if held == size and self._finish(sha256, size):
                    continue
                offset = held if held < size else 0
                missing.append(MissingBlob(sha256=sha256, offset=offset, incoming=self.incoming.kept(sha256, size)))
        return missing

    def put_chunk(self, request: PutChunk, payload: bytes | memoryview) -> ChunkStored:
        """Take a piece of a blob; ``offset`` of the answer is the number of its bytes that are here now.

        A piece that is already here is taken as it is. Raises :class:`FleetError`: ``bad-offset`` names the byte to go
        on from, ``disk-full`` leaves what came before, ``bad-chunk`` and ``bad-digest`` are the sender's fault.
        """
        data = _unpack(request, payload)
        with self._lock:
            if self._has(request.sha256, request.total):
                held = request.total
            else:
                held = self._parts.put(request.sha256, request.offset, data, request.total)
                if held == request.total:
                    self._sound.add(request.sha256)
        return ChunkStored(id=request.id, sha256=request.sha256, offset=held, complete=held == request.total)

    def import_blob(self, request: ImportBlob) -> ChunkStored:
        """Make a blob of what others have written to ``incoming/``; see `Incoming.take` for what is refused."""
        sha256, total = check_digest(request.sha256), request.total
        if not 0 <= total <= MAX_BLOB:
            raise BundleError(f"blob {sha256[:12]} has {total} bytes, allowed are 0 to {MAX_BLOB}")
        with self._lock:
            held = self._has(sha256, total)
        if held:
            self.incoming.discard(sha256)
        else:
            self.incoming.take(sha256, total)
            with self._lock:
                self._sound.add(sha256)
        return ChunkStored(id=request.id, sha256=sha256, offset=total, complete=True)

    def _has(self, sha256: str, size: int) -> bool:
        held = self.blobs.size(sha256)
        if held is not None and held != size:
            if self._is_sound(sha256):
                raise BundleError(f"blob {sha256[:12]} has {held} bytes, not {size}", code="bad-size")
            return False
        return held is not None

    def _is_sound(self, sha256: str) -> bool:
        """Whether a blob's contents are still what they were; if not it is removed, to be sent again."""
        try:
            if hash_file(self.blobs.path(sha256)) == sha256:
                return True
        except FileNotFoundError:
            return False
        _log.error("blob %s is damaged and is removed", sha256)
        with self._lock:
            self.blobs.remove(sha256)
            self._space.recount()
        return False

    def _finish(self, sha256: str, size: int) -> bool:
        """All bytes of a blob have come, but it was not made one: an earlier process ended just then."""
        try:
            return self._parts.put(sha256, size, b"", size) == size
        except BundleError:
            return False

    # --- Bundles --------------------------------------------------------------------------------

    def stage(self, manifest_bytes: bytes, signature: Signature | None = None) -> str:
        """Make a bundle of blobs that are all here; its id. Staging it again changes nothing.

        Raises :class:`BundleError` for a manifest or signature that cannot be trusted, or (``missing-blobs``) when
        blobs are missing.
        """
        manifest_bytes = bytes(manifest_bytes)
        manifest = parse_manifest(manifest_bytes)
        identity = bundle_id(manifest_bytes)
        if self.trusted:
            if signature is None:
                raise BundleError(
                    f"bundle {identity[:12]} is not signed, and this device takes signed ones only",
                    code="unsigned",
                    hint="sign it with a key that the device trusts (`fleet keys`)",
                )
            verify(identity, signature, self.trusted)
        self._check_contents(manifest)
        with self._lock:
            lacking = [entry for entry in manifest.files if not self._has(entry.sha256, entry.size)]
            if lacking:
                raise BundleError(
                    f"{len(lacking)} blobs of bundle {identity[:12]} are not here, such as that of '{lacking[0].path}'",
                    code="missing-blobs",
                    hint="push the bundle again: only what is missing travels",
                )
            self._make_bundle(identity, manifest, manifest_bytes)
        return identity

    def bundle(self, identity: str) -> StoredBundle:
        """A staged bundle. Raises :class:`BundleError` when it is not here or not whole."""
        return load_bundle(self._bundles / check_digest(identity))

    def bundles(self) -> list[str]:
        """Ids of all staged bundles, sorted."""
        return sorted(path.name for path in self._bundles.iterdir() if not path.name.startswith(TEMPORARY))

    def _check_contents(self, manifest: Manifest) -> None:
        """Once for each blob in the life of a process: power cuts and worn memory cards damage what was whole."""
        for sha256 in {entry.sha256 for entry in manifest.files} - self._sound:
            if self._is_sound(sha256):
                self._sound.add(sha256)

    def _make_bundle(self, identity: str, manifest: Manifest, manifest_bytes: bytes) -> None:
        final = self._bundles / identity
        if final.exists():
            try:
                load_bundle(final)
            except BundleError:
                self._remove_bundle(identity)
                self._space.recount()
            else:
                os.utime(final)
                os.utime(final / "manifest.json")
                return
        self._space.require(len(manifest_bytes), f"bundle {identity[:12]}")
        temporary = self._bundles / f"{TEMPORARY}{identity}"
        try:
            with disk_errors(f"bundle {identity[:12]}"):
                temporary.mkdir()
                self.blobs.sync_names({entry.sha256 for entry in manifest.files})
                write_atomic(temporary / "manifest.json", manifest_bytes)
                folders = {temporary / "files"}
                for entry in manifest.files:
                    link = temporary / "files" / entry.path
                    link.parent.mkdir(parents=True, exist_ok=True)
                    folders.update(parent for parent in link.parents if temporary in parent.parents)
                    link.symlink_to(os.path.relpath(self.blobs.path(entry.sha256), link.parent))
                for folder in (*folders, temporary):
                    sync_directory(folder)
                temporary.rename(final)
                sync_directory(self._bundles)
        except FleetError:
            _remove(temporary)
            raise
        self._space.used += len(manifest_bytes)

    def _remove_bundle(self, identity: str) -> None:
        """Whole or gone: it vanishes by a rename before its files are removed."""
        path = self._bundles / identity
        temporary = self._bundles / f"{TEMPORARY}{identity}"
        size = measure(path)
        path.rename(temporary)
        sync_directory(self._bundles)
        self._space.used -= size
        _remove(temporary)

    # --- Slots ----------------------------------------------------------------------------------

    def slots(self) -> dict[str, SlotRecord]:
        """What each slot runs. Raises :class:`FleetError` with code ``store-damaged`` when that cannot be read."""
        try:
            return msgspec.json.decode(self._slots.read_bytes(), type=dict[str, SlotRecord])
        except FileNotFoundError:
            return {}
        except (msgspec.MsgspecError, ValueError) as error:
            raise FleetError(
                f"{self._slots} is damaged: {error}",
                code="store-damaged",
                hint="remove the file and deploy again; bundles in the store are not sent again",
            ) from None

    def save_slots(self, slots: Mapping[str, SlotRecord]) -> None:
        """Replace what each slot runs, all at once; it survives a power cut once this returns."""
        with self._lock, disk_errors("which releases are active"):
            before = _in_slots(self.slots())
            size = measure(self._slots)
            data = msgspec.json.encode(dict(slots), order="sorted")
            write_atomic(self._slots, data)
            self._space.used += len(data) - size
            for identity in before - _in_slots(slots):
                # Its time is over: `collect` need not wait.
                with contextlib.suppress(FileNotFoundError):
                    os.utime(self._bundles / identity, (0, 0))

    # --- Room -----------------------------------------------------------------------------------

    def collect(self, keep: set[str], *, grace: float = COLLECT_GRACE) -> int:
        """Remove bundles that are in no slot and not in ``keep``, blobs of no bundle, and parts of cut pushes.

        What was pushed, staged or asked for in the last ``grace`` seconds stays; what has left the slots does not.
        The number of bytes freed.
        """
        with self._lock:
            keep = keep | _in_slots(self.slots())
            before = time.time() - grace
            used = self._space.total
            loose: set[str] = set()
            for identity in self.bundles():
                path = self._bundles / identity
                if identity not in keep and _last_used(path) <= before:
                    staged = _last_used(path / "manifest.json")
                    # Its blobs go with it, but for those that a push has asked for since.
                    loose.update(name for name in _blobs_of(path) if _last_used(self.blobs.path(name)) <= staged)
                    self._remove_bundle(identity)
            needed = {name for identity in self.bundles() for name in _blobs_of(self._bundles / identity)}
            for sha256 in list(self.blobs):
                if sha256 not in needed and (sha256 in loose or _last_used(self.blobs.path(sha256)) <= before):
                    self._space.used -= self.blobs.size(sha256) or 0
                    self.blobs.remove(sha256)
                    self._sound.discard(sha256)
            self._parts.collect(before)
            self.incoming.collect(before)
            return used - self._space.total

    def usage(self) -> tuple[int, int]:
        """Bytes that the store holds, and bytes that it may still take."""
        return self._space.total, self._space.free


def _unpack(request: PutChunk, payload: bytes | memoryview) -> bytes | memoryview:
    """The bytes of a piece, after every claim about them was checked."""
    check_digest(request.sha256)
    fits = request.offset >= 0 and 0 <= request.length <= MAX_MESSAGE and request.total <= MAX_BLOB
    if not fits or request.offset + request.length > request.total:
        raise BundleError(
            f"a piece of {request.length} bytes at {request.offset} is not part of a blob of {request.total} bytes",
            code="bad-chunk",
        )
    data = payload if request.codec == "raw" else _decompress(payload, request.length)
    if len(data) != request.length:
        raise BundleError(f"a piece has {len(data)} bytes instead of {request.length}", code="bad-chunk")
    return data


def _decompress(payload: bytes | memoryview, length: int) -> bytes:
    import zstandard

    try:
        # A frame that states its size is given that much memory, whatever the limit: so look first.
        stated = zstandard.frame_content_size(payload)
        if stated not in (-1, length):
            raise BundleError(f"a compressed piece has {stated} bytes instead of {length}", code="bad-chunk")
        if length == 0:
            return b""
        decompressor = zstandard.ZstdDecompressor()
        return decompressor.decompress(payload, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BundleError(f"a compressed piece cannot be read: {error}", code="bad-chunk") from None


def _in_slots(slots: Mapping[str, SlotRecord]) -> set[str]:
    return {name for slot in slots.values() for name in (slot.bundle, slot.previous) if name}


def _last_used(path: Path) -> float:
    """Unix time; that of something that is no more is long past."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _blobs_of(root: Path) -> set[str]:
    """Digests of the blobs that a bundle links to; true even if its manifest can no longer be read."""
    return {link.readlink().name for link in (root / "files").rglob("*") if link.is_symlink()}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
