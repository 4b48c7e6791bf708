"""Trained weights from the store that MXNet's and GluonCV's model zoos share; its files are under the Apache licence.

A file's name carries the first eight digits of the SHA-1 of the ``.params`` file that lies, alone, in a zip archive.
Digests as in mxnet.gluon.model_zoo.model_store and gluoncv.model_zoo.model_store.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from controller.zoo import weights
from targets.files import READ_SIZE, TEMPORARY, disk_errors

if TYPE_CHECKING:
    from controller.home import Home

ADDRESS = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/models/"
LICENCE = "Apache-2.0"
SHA1 = {
    "resnet18_v1": "a0666292f0a30ff61f857b0b66efc0228eb6a54b",
    "resnet34_v1": "48216ba99a8b1005d75c0f3a0c422301a0473233",
    "resnet18_v2": "a81db45fd7b7a2d12ab97cd88ef0a5ac48b8f657",
    "resnet34_v2": "9d6b80bbc35169de6b6edecffdd6047c56fdd322",
    "resnet50_v2": "ecdde35339c1aadbec4f547857078e734a76fb49",
    "resnet101_v2": "18e93e4f48947e002547f50eabbcc9c83e516aa6",
    "mobilenet1.0": "6b8c5106c730e8750bcd82ceb75220a3351157cd",
    "ssd_300_vgg16_atrous_voc": "0e169fbb64efdee6985c3c175ec4298c4bda0298",
    "ssd_512_vgg16_atrous_coco": "5c86064290c05eccbdd88475376c71c595c8325c",
    "ssd_512_resnet50_v1_voc": "9c8b225a552614e4284a0f647331bfdc6940eb4a",
    "ssd_512_resnet50_v1_coco": "c48351620d4f0cbc49e4f7a84c8e67ef8fdc6e09",
    "ssd_512_resnet101_v2_voc": "2cc0f93edf1467f428018cc7261d3246dfa15259",
    "ssd_512_mobilenet1.0_voc": "37c180765a4eb3e67751d6bacac47bb9156f5fff",
    "ssd_512_mobilenet1.0_coco": "da9756faa5b9b4e34dedcf83ee0733d5895796ad",
}
#: The largest of these files have 160 MB.
_MAX_PARAMS = 1 << 30


def fetch(name: str, home: Home, *, address: str = ADDRESS) -> Path:
    """The ``.params`` file of a network, from the cache or from the store.

    Raises :class:`WeightsError` with code ``download-failed`` for an archive that cannot be had or is another.
    """
    stem = f"{name}-{SHA1[name][:8]}"
    path = home.cache / "downloads" / f"{stem}.params"
    if path.is_file():
        return path
    # Nobody publishes the archive's own digest or size: what counts is what is in it.
    archive = weights.download(f"{address}{stem}.zip", "sha1:", 0, home)
    try:
        with disk_errors(path.name):
            _unpack(archive, path, SHA1[name])
    finally:
        archive.unlink(missing_ok=True)
    return path


def _unpack(archive: Path, path: Path, sha1: str) -> None:
    """Only the file that is asked for is read, whatever else there is, and only as far as it may be long."""
    with tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=path.parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            try:
                with zipfile.ZipFile(archive) as packed, packed.open(path.name) as member:
                    found = _copy(member, file)
            except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
                raise _failed(archive, f"it is no zip archive with {path.name} in it: {error}") from None
            if found != sha1:
                raise _failed(archive, f"the SHA-1 of {path.name} in it is {found}, it should be {sha1}")
            file.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _copy(member: IO[bytes], file: IO[bytes]) -> str:
    """The SHA-1 of what was copied, which is nothing that lies beyond the bound."""
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    while size <= _MAX_PARAMS and (block := member.read(READ_SIZE)):
        size += len(block)
        digest.update(block)
        file.write(block)
    return digest.hexdigest()


def _failed(archive: Path, why: str) -> weights.WeightsError:
    return weights.WeightsError(
        f"{archive.name} is damaged or not what it should be: {why}",
        code="download-failed",
        hint="try again, or fetch the .params file elsewhere and give its path: --weights FILE",
    )
