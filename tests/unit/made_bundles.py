"""Small bundles with real contents, for the tests of what carries and keeps bundles."""

import hashlib
import random
from typing import Any

import msgspec

from targets.base import Requirements, TensorSpec
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo

FLOATS = TensorSpec("data", (2, 3), "float32", "NC")


def blob(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_bundle(seed: int = 0, *, library_size: int = 5000, **changes: Any) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest that keeps all rules, with what lies behind its digests; ``changes`` replaces fields of it."""
    contents = {
        "lib/model.so": blob(seed, library_size),
        "weights/0.bin": blob(seed + 1, 24),
        "golden/in.bin": blob(seed + 2, 24),
        "golden/out.bin": blob(seed + 3, 24),
    }
    roles = ("library", "weight", "golden-input", "golden-output")
    files = tuple(
        FileEntry(path, len(data), sha256(data), role, None if role == "library" else FLOATS)  # type: ignore[arg-type]
        for (path, data), role in zip(contents.items(), roles, strict=True)
    )
    manifest = Manifest(
        model=ModelInfo(name="net", source_sha256=sha256(b"source"), origin="file:net.onnx", labels=("cat", "dog")),
        target="x86",
        toolchain={"apache-tvm": "0.27.0"},
        options={"level": 3, "fast": True, "cpu": "native", "share": 0.5},
        inputs=(FLOATS,),
        outputs=(FLOATS,),
        entry="lib/model.so",
        parameters=("weights/0.bin",),
        engine="time_evaluator",
        requirements=Requirements(),
        golden=Golden((("golden/in.bin",),), (("golden/out.bin",),), 1e-3, 1e-3, "onnxruntime 1.24.0"),
        files=files,
    )
    return msgspec.structs.replace(manifest, **changes), {sha256(data): data for data in contents.values()}
