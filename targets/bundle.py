"""A bundle: one model built for one target, content-addressed and signed.

The manifest names every file with its size and SHA-256; the bundle's id is the SHA-256 of the canonical manifest, and an
Ed25519 signature covers the id. Blobs are addressed by their own SHA-256, so two bundles share what is equal.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from targets.base import Option, Postprocess, Preprocess, Requirements, Role, TensorSpec

SCHEMA = 1


class ModelInfo(msgspec.Struct, frozen=True):
    """Which network this is, and where it came from."""

    name: str
    source_sha256: str
    origin: str
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle. ``path`` is relative with ``/``, never ``..``; tensors are raw little-endian C-order bytes."""

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
