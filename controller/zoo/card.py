"""Model cards: the JSON beside each committed network that says what it is, what it was measured at, and its digest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from targets import onnx_model
from targets.base import FleetError, Postprocess, Preprocess, TensorSpec
from targets.files import hash_file

#: Where the committed networks lie.
FOLDER = Path(__file__).parent / "committed"


class Metric(msgspec.Struct, frozen=True):
    """What the network reached on ``pictures`` held-back pictures drawn with ``seed``."""

    name: str
    value: float
    pictures: int
    seed: int


class Training(msgspec.Struct, frozen=True):
    seed: int
    pictures: int
    epochs: int
    torch: str


class Card(msgspec.Struct, frozen=True):
    name: str
    file: str
    sha256: str
    licence: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    preprocess: Preprocess
    postprocess: Postprocess
    metric: Metric
    training: Training


def describe(
    path: Path,
    *,
    name: str,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    postprocess: Postprocess,
    metric: Metric,
    training: Training,
) -> Card:
    """The card of an ONNX file; shapes and names are read from the file."""
    inputs, outputs = onnx_model.inputs_and_outputs(onnx_model.read(path))
    return Card(
        name=name,
        file=path.name,
        sha256=hash_file(path),
        licence="Apache-2.0",
        # The file does not say how its picture is laid out, the preprocessing does.
        inputs=(msgspec.structs.replace(inputs[0], layout=preprocess.layout), *inputs[1:]),
        outputs=outputs,
        labels=labels,
        preprocess=preprocess,
        postprocess=postprocess,
        metric=metric,
        training=training,
    )


def write(made: Card, path: Path) -> None:
    """One line for each field: lists of hundreds of boxes would be thousands of lines otherwise."""
    fields = (f'"{name}": {msgspec.json.encode(getattr(made, name)).decode()}' for name in made.__struct_fields__)
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def read(path: Path) -> Card:
    """Raises :class:`FleetError` when the card cannot be read or its network is not the one it was written for."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Card)
        same = hash_file(path.parent / found.file) == found.sha256
    except (OSError, msgspec.MsgspecError) as error:
        raise FleetError(f"cannot read the model card {path}: {error}", code="bad-model") from None
    if not same:
        raise FleetError(
            f"{found.file} is not the network that {path.name} describes: its SHA-256 differs",
            code="bad-model",
            hint="install fleet again: a file of it was changed",
        )
    return found
