"""A bundle: one model built for one target, content-addressed and signed.

The manifest names every file with its size and SHA-256; the bundle's id is the SHA-256 of the canonical manifest, and
an Ed25519 signature covers the id. Blobs are addressed by their own SHA-256, so two bundles share what is equal.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from typing import Final, Literal

import msgspec

from targets import defaults
from targets.base import BundleError, Option, Postprocess, Preprocess, Requirements, Role, TensorSpec
from targets.blobs import check_digest

SCHEMA: Final = 1


class ModelInfo(msgspec.Struct, frozen=True):
    """Which network this is, and where it came from."""

    name: str
    source_sha256: str
    origin: str
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None


class FileEntry(msgspec.Struct, frozen=True):
    """One file. ``path`` is relative with ``/``, never ``..``; tensors are raw little-endian C-order bytes."""

    path: str
    size: int
    sha256: str
    role: Role
    tensor: TensorSpec | None = None


class Golden(msgspec.Struct, frozen=True):
    """Inputs and the outputs the source framework gives for them, as file paths in the model's order.

    Several sets may be given: ``inputs[i]`` goes with ``outputs[i]``. Checked as ``|a - b| <= atol + rtol * |b|``.
    """

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]
    rtol: float
    atol: float
    #: Which framework computed the outputs, with its version, such as ``onnxruntime 1.24.0``.
    reference: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that a device needs to know about a bundle."""

    schema: Literal[1] = SCHEMA
    model: ModelInfo
    target: str
    #: Versions of what made it, and the resolved options (provenance); part of the id.
    toolchain: dict[str, str]
    options: dict[str, Option]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    entry: str
    parameters: tuple[str, ...]
    engine: str
    requirements: Requirements
    golden: Golden
    files: tuple[FileEntry, ...]
    #: What the build had to say about itself. Without any the key is not there: older bundles keep their ids.
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


# --- Canonical form -----------------------------------------------------------------------------

_decoder: msgspec.json.Decoder[Manifest] = msgspec.json.Decoder(Manifest)


def canonical(manifest: Manifest) -> bytes:
    """The one JSON text of a manifest: keys sorted, no spaces, UTF-8. Raises :class:`BundleError` if it has none."""
    try:
        data = msgspec.json.encode(manifest, order="sorted")
        again = msgspec.json.encode(_decoder.decode(data), order="sorted")
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"the manifest cannot be written as JSON: {error}") from None
    if again != data:
        raise BundleError("the manifest has values that JSON cannot carry, such as an infinite tolerance")
    return data


def bundle_id(manifest: Manifest | bytes) -> str:
    """SHA-256 of the canonical manifest, in hex. Bytes are taken as they are: `parse_manifest` checks their form."""
    data = manifest if isinstance(manifest, bytes) else canonical(manifest)
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Decode and check a canonical manifest that anybody may have made. Raises :class:`BundleError`.

    Keys that this version does not know are allowed (and covered by the id); every rule of the format is enforced.
    """
    if len(data) > defaults.MAX_MANIFEST:
        raise BundleError(f"the manifest has {len(data)} bytes, at most {defaults.MAX_MANIFEST} are allowed")
    try:
        manifest = _decoder.decode(data)
        # Anything else than the canonical form could say two things: to this reader and to the next one.
        is_canonical = msgspec.json.encode(msgspec.json.decode(data), order="sorted") == data
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest cannot be read: {error}") from None
    if not is_canonical:
        raise BundleError("the manifest is not in canonical form (keys sorted, none twice, no spaces)")
    check(manifest)
    return manifest


# --- Rules --------------------------------------------------------------------------------------

#: Bytes of one element. Those after ``float64`` are of ml_dtypes, which a device need not have installed.
ITEM_SIZES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e4m3b11fnuz": 1, "float8_e3m4": 1,
    "float8_e8m0fnu": 1, "int4": 1, "uint4": 1, "int2": 1, "uint2": 1,
}  # fmt: skip
_MAX_PATH = 1024
_MAX_NAME = 255
_MAX_DEPTH = 16
_MAX_TEXT = 4096
#: What NumPy had for long; and no picture is larger before it meets a network.
_MAX_RANK = 32
_MAX_PICTURE = 16_384
#: Names that some file systems keep for devices, with any extension.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_FORBIDDEN = frozenset('\\:*?"<>|')


def nbytes(tensor: TensorSpec) -> int:
    """Bytes of a tensor's contents. Raises :class:`BundleError` for an unknown dtype or an impossible shape."""
    size = ITEM_SIZES.get(tensor.dtype)
    if size is None:
        raise BundleError(f"tensor '{tensor.name[:80]}' has the unknown dtype '{tensor.dtype[:80]}'")
    if len(tensor.shape) > _MAX_RANK or any(extent < 1 for extent in tensor.shape):
        raise BundleError(f"tensor '{tensor.name[:80]}' has the impossible shape {tensor.shape}")
    return math.prod(tensor.shape, start=size)


def check_path(path: str) -> str:
    """The path itself. Raises :class:`BundleError` unless it stays inside a bundle on every file system."""
    shown = path[:80]
    if not path.isprintable() or _FORBIDDEN & set(path) or unicodedata.normalize("NFC", path) != path:
        raise BundleError(f"the path {shown!r} has characters that not every file system keeps", code="bad-path")
    if not path or len(path.encode()) > _MAX_PATH:
        raise BundleError(f"'{shown}' is not a path of 1 to {_MAX_PATH} bytes", code="bad-path")
    names = path.split("/")
    if len(names) > _MAX_DEPTH:
        raise BundleError(f"the path '{shown}' has more than {_MAX_DEPTH} levels", code="bad-path")
    for name in names:
        if name in ("", ".", ".."):
            raise BundleError(f"the path '{shown}' is not relative or leaves the bundle", code="bad-path")
        if len(name.encode()) > _MAX_NAME or name.endswith((".", " ")) or name.startswith(" "):
            raise BundleError(f"the path '{shown}' has a name that not every file system keeps", code="bad-path")
        if name.split(".")[0].casefold() in _RESERVED:
            raise BundleError(f"the path '{shown}' has a name that is reserved for a device", code="bad-path")
    return path


def check(manifest: Manifest) -> None:
    """Enforce the rules of the format on a decoded manifest. Raises :class:`BundleError` that names one broken."""
    _check_texts(manifest)
    preprocess = manifest.model.preprocess
    if preprocess and (not all(1 <= side <= _MAX_PICTURE for side in preprocess.size) or 0.0 in preprocess.std):
        raise BundleError("the preprocessing has an impossible size or divides by zero")
    files = _check_files(manifest.files)
    for tensor in (*manifest.inputs, *manifest.outputs):
        nbytes(tensor)
    if not manifest.inputs or not manifest.outputs:
        raise BundleError("the manifest names no inputs or no outputs")
    if _file(files, manifest.entry, "entry").role != "library":
        raise BundleError(f"the entry '{manifest.entry}' is not a library")
    for name in manifest.parameters:
        if _file(files, name, "parameter").role != "weight":
            raise BundleError(f"the parameter '{name}' is not a weight")
    _check_golden(manifest, files)


def _check_texts(manifest: Manifest) -> None:
    """Texts are shown to people and end up in file names and terminals: none may carry control characters."""
    model = manifest.model
    check_digest(model.source_sha256)
    for what, text in (
        ("model name", model.name),
        ("origin", model.origin),
        ("target", manifest.target),
        ("engine", manifest.engine),
    ):
        if not text or len(text) > _MAX_TEXT or not text.isprintable():
            raise BundleError(f"the {what} {text[:80]!r} is empty, too long or not printable")
    for text in (
        *model.labels,
        *manifest.toolchain,
        *manifest.toolchain.values(),
        *manifest.options,
        *(value for value in manifest.options.values() if isinstance(value, str)),
        *(tensor.name for tensor in (*manifest.inputs, *manifest.outputs)),
        *(entry.tensor.name for entry in manifest.files if entry.tensor is not None),
        *manifest.requirements.runtime,
        *manifest.requirements.runtime.values(),
        *manifest.requirements.cpu_features,
        manifest.requirements.agent,
        manifest.requirements.machine,
        manifest.requirements.accelerator,
        manifest.requirements.bitstream,
        manifest.golden.reference,
        *(manifest.warnings or ()),
    ):
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise BundleError(f"the text {text[:80]!r} is too long or not printable")


def _check_files(entries: tuple[FileEntry, ...]) -> dict[str, FileEntry]:
    if len(entries) > defaults.MAX_FILES:
        raise BundleError(f"the bundle has {len(entries)} files, at most {defaults.MAX_FILES} are allowed")
    files: dict[str, FileEntry] = {}
    folded: set[str] = set()
    sizes: dict[str, int] = {}
    for entry in entries:
        check_path(entry.path)
        check_digest(entry.sha256)
        if entry.path.casefold() in folded:
            raise BundleError(f"the path '{entry.path}' is there twice, or differs from another only by case")
        if not 0 <= entry.size <= defaults.MAX_BLOB:
            raise BundleError(f"'{entry.path}' has {entry.size} bytes, allowed are 0 to {defaults.MAX_BLOB}")
        if sizes.setdefault(entry.sha256, entry.size) != entry.size:
            raise BundleError(f"'{entry.path}' has the digest of another file but not its size")
        if entry.tensor is None:
            if entry.role in ("weight", "golden-input", "golden-output"):
                raise BundleError(f"'{entry.path}' is a {entry.role} without a tensor's shape and dtype")
        elif nbytes(entry.tensor) != entry.size:
            raise BundleError(f"'{entry.path}' has {entry.size} bytes, its tensor {nbytes(entry.tensor)}")
        files[entry.path] = entry
        folded.add(entry.path.casefold())
    if sum(sizes.values()) > defaults.MAX_BUNDLE:
        raise BundleError(f"the bundle has {sum(sizes.values())} bytes, at most {defaults.MAX_BUNDLE} are allowed")
    for path in files:
        for position, letter in enumerate(path):
            if letter == "/" and path[:position].casefold() in folded:
                raise BundleError(f"'{path[:position]}' is a file and a folder at once")
    return files


def _check_golden(manifest: Manifest, files: dict[str, FileEntry]) -> None:
    golden = manifest.golden
    if not golden.inputs or len(golden.inputs) != len(golden.outputs):
        raise BundleError(f"{len(golden.inputs)} sets of golden inputs, {len(golden.outputs)} of golden outputs")
    if not (0 <= golden.rtol < math.inf and 0 <= golden.atol < math.inf):
        raise BundleError("the golden tolerance is negative or infinite")
    for role, sets, tensors in (
        ("golden-input", golden.inputs, manifest.inputs),
        ("golden-output", golden.outputs, manifest.outputs),
    ):
        for names in sets:
            if len(names) != len(tensors):
                raise BundleError(f"a set of {role}s has {len(names)} files, the model takes or gives {len(tensors)}")
            for name, tensor in zip(names, tensors, strict=True):
                entry = _file(files, name, role)
                if entry.role != role or entry.tensor is None:
                    raise BundleError(f"'{name}' is used as a {role} but is a {entry.role}")
                # The reference may compute outputs in a wider type than the device.
                same_type = role == "golden-output" or entry.tensor.dtype == tensor.dtype
                if entry.tensor.shape != tensor.shape or not same_type:
                    raise BundleError(f"the {role} '{name}' has another shape or dtype than '{tensor.name}'")


def _file(files: dict[str, FileEntry], name: str, what: str) -> FileEntry:
    entry = files.get(name)
    if entry is None:
        raise BundleError(f"the {what} '{name[:80]}' is not among the bundle's files")
    return entry
