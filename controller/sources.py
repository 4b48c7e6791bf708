"""From what a person calls a model to one self-contained file and what is known about it."""

from __future__ import annotations

from pathlib import Path

from controller.home import Home
from targets import onnx_model
from targets.base import FleetError, ModelError, SourceModel
from targets.files import hash_file, make_directory, write_atomic


def resolve(model: str, *, weights: str = "", home: Home) -> SourceModel:
    """The source of ``model``: a zoo name, the path of an ``.onnx`` or ``.pt2`` file, or ``package.module:function``.

    What a file does not say (labels, how to prepare a picture) is empty; use ``msgspec.structs.replace`` to set it.

    Raises:
        ModelError: unreadable, or not a model; ``unknown-model`` for what is neither a file nor in the zoo.
    """
    path = Path(model).expanduser()
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".pt2"):
        if weights:
            raise _own_weights(model, "is a file and holds", weights)
        return _onnx(path, home) if suffix == ".onnx" else _pt2(path)
    from controller import zoo
    from controller.zoo import entry

    if entry.is_entry(model):
        if weights:
            raise _own_weights(model, "makes", weights)
        return entry.source(model, home)
    if zoo.has(model):
        return zoo.source(model, weights, home)
    is_file = path.exists() or "/" in model
    raise ModelError(
        f"'{model}' is not a model file" if is_file else f"there is no model '{model}'",
        code="unknown-model",
        hint="give an .onnx or .pt2 file, a Python function (package.module:function), or one of the zoo: "
        + ", ".join(zoo.names()),
    )


def _own_weights(model: str, why: str, weights: str) -> FleetError:
    return FleetError(
        f"'{model}' {why} its own weights; weights '{weights}' cannot be used with it",
        code="bad-option",
        hint="weights are chosen for models of the zoo only",
    )


def _onnx(path: Path, home: Home) -> SourceModel:
    model = onnx_model.read(path, external=False)
    inputs, outputs = onnx_model.inputs_and_outputs(model)
    if onnx_model.has_external(model):
        path, name = _joined(path, home), path
    else:
        name = path
    return SourceModel(
        name=name.stem,
        format="onnx",
        path=str(path.absolute()),
        sha256=hash_file(path),
        origin=f"file:{name.name}",
        inputs=inputs,
        outputs=outputs,
    )


def _joined(path: Path, home: Home) -> Path:
    """One file with the model and its external data: what is built and what is hashed must be the same thing."""
    import hashlib

    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    try:
        data = onnx_model.read(path).SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        raise ModelError(
            f"{path} with its external data is larger than an ONNX file can be (2 GiB)",
            hint="export it with torch.export as a .pt2 file",
        ) from None
    folder = home.cache / "sources"
    make_directory(folder)
    joined = folder / f"{hashlib.sha256(data).hexdigest()}.onnx"
    if not joined.exists():
        write_atomic(joined, data)
    return joined


def _pt2(path: Path) -> SourceModel:
    from controller.zoo import entry

    return entry.pt2(path, name=path.stem, origin=f"file:{path.name}", sha256=hash_file(path))
