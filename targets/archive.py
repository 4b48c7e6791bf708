"""A bundle as one file to pass around: a zip of ``manifest.json``, ``signature.json`` and ``blobs/<sha256>``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from targets import defaults
from targets.base import BundleError, FleetError
from targets.blobs import BlobDir
from targets.bundle import Manifest, canonical, parse_manifest
from targets.files import READ_SIZE, TEMPORARY, disk_errors, disk_full, sync_directory, write_all
from targets.keys import Signature

_MANIFEST = "manifest.json"
_SIGNATURE = "signature.json"
_BLOBS = "blobs/"
_MAX_SIGNATURE = 4096
_ENCRYPTED = 0x41
#: What `zipfile` raises, besides its own error, for fields that make no sense.
_MISREAD = (EOFError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError, struct.error)
#: The first moment a zip can tell: an archive depends on what is in it and on nothing else.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_archive(out: Path, manifest_bytes: bytes, signature: Signature | None, blobs: BlobDir) -> None:
    """Write the bundle's archive to ``out``, whole or not at all. Equal bundles make equal files.

    Raises :class:`BundleError` when ``blobs`` lacks one of the bundle's, :class:`FleetError` when the disk is full.
    """
    manifest = parse_manifest(manifest_bytes)
    roles = {entry.sha256: entry.role for entry in manifest.files}
    for sha256 in roles:
        if not blobs.has(sha256):
            raise BundleError(f"blob {sha256[:12]} is not here", code="missing-blobs", hint="build the bundle again")
    with disk_errors(str(out)):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=out.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(_member(_MANIFEST, compress=True), manifest_bytes)
                    if signature is not None:
                        archive.writestr(_member(_SIGNATURE), msgspec.json.encode(signature, order="sorted"))
                    for sha256, role in sorted(roles.items()):
                        # Code shrinks to a third, numbers hardly at all.
                        member = _member(f"{_BLOBS}{sha256}", compress=role in ("library", "extra"))
                        member.file_size = blobs.size(sha256) or 0
                        with blobs.path(sha256).open("rb") as source, archive.open(member, "w") as target:
                            shutil.copyfileobj(source, target, READ_SIZE)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            temporary.replace(out)
            sync_directory(out.parent)
        finally:
            temporary.unlink(missing_ok=True)


def read_archive(path: Path, blobs: BlobDir) -> tuple[Manifest, Signature | None]:
    """Check an archive that anybody may have made and add its blobs to ``blobs``; nothing of a bad one is kept.

    Raises :class:`BundleError` for anything but a whole bundle. The signature is not checked: who trusts whom is for
    the caller to know (`targets.keys.verify`).
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise FleetError(f"cannot read the bundle {path}: {reason}", code="no-such-file") from None
        with _hostile(path):
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = _members(archive, os.fstat(file.fileno()).st_size)
            manifest_bytes = _read(archive, members, _MANIFEST, defaults.MAX_MANIFEST)
            manifest = parse_manifest(manifest_bytes)
            if canonical(manifest) != manifest_bytes:
                raise BundleError("its manifest says things that this version does not know", hint="update fleet")
            signature = None
            if _SIGNATURE in members:
                data = _read(archive, members, _SIGNATURE, _MAX_SIGNATURE)
                signature = msgspec.json.decode(data, type=Signature)
            sizes = {entry.sha256: entry.size for entry in manifest.files}
            _check_members(members, sizes)
        with disk_errors(f"the bundle {path.name}"):
            folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=blobs.root))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if sum(sizes.values()) > shutil.disk_usage(folder).free:
                raise disk_full(f"there is no room for the bundle {path.name}: it needs {sum(sizes.values())} bytes")
            for sha256, size in sizes.items():
                _copy(path, archive, members[f"{_BLOBS}{sha256}"], folder / sha256, sha256, size)
            for sha256 in sizes:
                blobs.adopt(folder / sha256, sha256)
    return manifest, signature


@contextlib.contextmanager
def _hostile(path: Path) -> Iterator[None]:
    """Whatever a library makes of a damaged or made-up archive, it is a bad bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(
            f"{path.name} is not a good bundle: {error.message}", hint=error.hint, code=error.code
        ) from None
    except (zipfile.BadZipFile, zlib.error, msgspec.MsgspecError, *_MISREAD) as error:
        raise BundleError(f"{path.name} is not a good bundle: {error}", hint="build or fetch it again") from None


def _members(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if member.filename in members:
            raise BundleError(f"it holds '{member.filename[:80]}' twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & _ENCRYPTED:
            raise BundleError(f"'{member.filename[:80]}' is compressed or encrypted in a way that bundles are not")
        members[member.filename] = member
    if sum(member.compress_size for member in members.values()) > file_size:
        raise BundleError("its members overlap")
    return members


def _check_members(members: dict[str, zipfile.ZipInfo], sizes: dict[str, int]) -> None:
    """The archive holds what the manifest names, of the size that it says, and nothing else."""
    expected = {f"{_BLOBS}{sha256}": size for sha256, size in sizes.items()}
    for name, size in expected.items():
        if name not in members:
            raise BundleError(f"it lacks blob {name[len(_BLOBS) :][:12]}")
        if members[name].file_size != size:
            raise BundleError(f"blob {name[len(_BLOBS) :][:12]} has {members[name].file_size} bytes, not {size}")
    for name in members.keys() - expected.keys() - {_MANIFEST, _SIGNATURE}:
        raise BundleError(f"it holds '{name[:80]}', which the manifest does not name")


def _read(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    member = members.get(name)
    if member is None:
        raise BundleError(f"it has no {name}")
    with archive.open(member) as source:
        data = source.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"its {name} has more than {limit} bytes")
    return data


def _copy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, sha256: str, size: int) -> None:
    """Unpack one blob to ``target``, never more than ``size`` bytes, and check its digest."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb", buffering=0) as file:
        with _hostile(path):
            source = archive.open(member)
        with source:
            while done <= size:
                with _hostile(path):
                    block = source.read(READ_SIZE)
                if not block:
                    break
                digest.update(block)
                write_all(file.fileno(), block, done)
                done += len(block)
        with _hostile(path):
            if done != size or digest.hexdigest() != sha256:
                raise BundleError(f"blob {sha256[:12]} is not what the manifest says", code="bad-digest")
        os.fsync(file.fileno())


def _member(name: str, *, compress: bool = False) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, date_time=_EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    member.external_attr = 0o644 << 16
    return member
