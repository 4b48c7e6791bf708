"""The two small networks, which come with committed weights as ONNX; using those needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.zoo import card, export, variants, weights
from targets import onnx_model
from targets.base import SourceModel, TensorSpec
from targets.files import hash_file

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {
    "shapes-classifier": "names the one drawn shape in a picture, 12 classes, 64×64",
    "shapes-ssd": "finds drawn shapes in a scene, 12 classes, 128×128",
}
VARIANTS: dict[str, dict[str, str]] = {
    "shapes-classifier": {},
    "shapes-ssd": {"boxes": "boxes, scores and labels, found inside"},
}
WEIGHTS = "committed | FILE.onnx | FILE.pth | random:SEED"

#: Version of the definitions in networks.py: files exported from another one are not used again.
_DEFINITION = "1"


def source(name: str, text: str, home: Home) -> SourceModel:
    base, words, _ = variants.parse(name, VARIANTS[name.partition("@")[0]])
    chosen = weights.parse(text or "committed", model=base, own="committed", choices=WEIGHTS)
    found = card.read(card.FOLDER / f"{base}.json")
    said = "committed" if chosen.kind == "own" else chosen.said
    if chosen.kind == "own":
        chosen = weights.Weights("file", str(card.FOLDER / found.file))
    onnx = chosen.kind == "file" and chosen.path.suffix.lower() == ".onnx"
    if onnx and said != "committed":
        _check_fits(found, chosen.path)
    if onnx and not words:
        digest = found.sha256 if said == "committed" else hash_file(chosen.path)
        return _onnx(found, chosen.path.absolute(), said, digest)
    export.require_torch()
    from controller.zoo import networks, ssd

    makers: dict[str, Callable[[], Any]] = {
        "shapes-classifier": networks.ShapesClassifier,
        "shapes-ssd": networks.ShapesSsd,
    }
    make = makers[base]
    how = networks.shapes_ssd_decoding()
    return export.pt2_source(
        name,
        chosen,
        build=(lambda: networks.fold_norms(make().eval())) if onnx else make,
        said=said,
        definition=_DEFINITION,
        preprocess=found.preprocess,
        postprocess=how.whole() if words else found.postprocess,
        labels=found.labels,
        home=home,
        outputs=ssd.OUTPUTS if words else tuple(spec.name for spec in found.outputs),
        around=(lambda dense: ssd.Ssd(dense, how)) if words else None,
        load=_initializers if onnx else weights.load_state,
    )


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    from PIL import Image

    from controller.zoo import draw

    drawn = draw.picture if name == "shapes-classifier" else draw.scene
    return [Image.fromarray(drawn(seed, index)[0]) for index in range(count)]


def _onnx(found: card.Card, path: Path, said: str, sha256: str) -> SourceModel:
    return SourceModel(
        name=found.name,
        format="onnx",
        path=str(path),
        sha256=sha256,
        origin=f"zoo:{found.name} weights={said}",
        inputs=found.inputs,
        outputs=found.outputs,
        preprocess=found.preprocess,
        postprocess=found.postprocess,
        labels=found.labels,
    )


def _initializers(path: Path) -> dict[str, Any]:
    """The weights in an ONNX file by their names, which are torch's."""
    import torch
    from onnx import TensorProto, numpy_helper

    stored = onnx_model.read(path).graph.initializer
    # Numbers of other types are shapes.
    wanted = (tensor for tensor in stored if tensor.data_type == TensorProto.FLOAT)
    return {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in wanted}


def _check_fits(found: card.Card, path: Path) -> None:
    """Somebody's own file must take and give what the card says: labels, anchors and pictures are taken from it."""
    model = onnx_model.read(path)
    if onnx_model.has_external(onnx_model.read(path, external=False)):
        raise weights.WeightsError(f"{path} keeps its weights in other files", hint="save the model as one file")
    for kind, wanted, got in zip(
        ("inputs", "outputs"), (found.inputs, found.outputs), onnx_model.inputs_and_outputs(model), strict=True
    ):
        if [(t.name, t.shape, t.dtype) for t in got] != [(t.name, t.shape, t.dtype) for t in wanted]:

            def show(tensors: tuple[TensorSpec, ...]) -> str:
                return ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in tensors)

            raise weights.WeightsError(
                f"{path} is no {found.name}: its {kind} are {show(got)}, the network's are {show(wanted)}"
            )
