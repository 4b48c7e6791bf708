"""GluonCV's single-shot detectors, with MXNet's weight files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.zoo import export, gluon_names, gluon_store, initial, resnet, variants, weights
from targets.base import Preprocess, SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home
    from controller.zoo.gluon_dense import Floats, Spec
    from controller.zoo.ssd import Decoding

NETWORKS = {
    f"ssd_{side}_{backbone}_{dataset}": f"SSD{side} on {said} of GluonCV, finds {classes} classes, {side}×{side}"
    for side, backbone, said, datasets in (
        (512, "resnet50_v1", "ResNet-50 v1", "voc coco"),
        (512, "resnet101_v2", "ResNet-101 v2", "voc"),
        (512, "mobilenet1.0", "MobileNet v1", "voc coco"),
        (300, "vgg16_atrous", "VGG-16", "voc"),
        (512, "vgg16_atrous", "VGG-16", "coco"),
    )
    for dataset in datasets.split()
    for classes in [{"voc": "Pascal VOC's 20", "coco": "COCO's 80"}[dataset]]
}
WEIGHTS = "pretrained | FILE.params | FILE.pth | random:SEED"
VARIANTS = {"raw": "offsets and class logits, without the boxes made of them"}
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "1"
#: About the root mean square of what VGG's first convolution takes.
_VGG_PIXEL = 64.0
#: Random weights: how far the background is ahead, and the deviation of offsets.
_BACKGROUND, _OFFSET = 4.0, 0.7
_RAW_OUTPUTS = ("box_preds", "cls_preds")


def source(name: str, text: str, home: Home) -> SourceModel:
    from controller.zoo import gluon_dense, ssd

    base, words, _ = variants.parse(name, VARIANTS)
    chosen = weights.parse(text, model=base, own="pretrained", choices=WEIGHTS)
    export.require_torch()
    said = text if chosen.kind == "own" else chosen.said
    if chosen.kind == "own":
        chosen = weights.Weights("file", str(gluon_store.fetch(base, home)))
    spec = gluon_dense.SPECS[base]
    how = decoding(spec)
    raw = "raw" in words
    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(base),
        said=said,
        definition=_DEFINITION,
        preprocess=Preprocess(
            size=(spec.side, spec.side), filter="bilinear", mean=resnet.PREPROCESS.mean, std=resnet.PREPROCESS.std
        ),
        postprocess=how.raw() if raw else how.whole(),
        labels=labels(spec.dataset),
        home=home,
        outputs=_RAW_OUTPUTS if raw else ssd.OUTPUTS,
        around=None if raw else lambda dense: ssd.Ssd(dense, how),
        load=lambda path: load(path, spec),
    )


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    from PIL import Image

    from controller.zoo import leaves

    side = int(name.split("_")[1])
    return [Image.fromarray(leaves.picture(seed, index, side)) for index in range(count)]


def build(base: str) -> Any:
    """The dense part with weights drawn from torch's generator, by which many boxes of many classes are found."""

    import torch

    from controller.zoo import gluon_dense

    spec = gluon_dense.SPECS[base]
    network = gluon_dense.Dense(spec, len(labels(spec.dataset)))
    heads = [*network.class_predictors, *network.box_predictors]
    initial.draw(network, endings=initial.residual_endings(network), linear=heads)
    with torch.no_grad():
        if spec.backbone == "vgg16_atrous":
            network.features.stages[0][0].weight.div_(_VGG_PIXEL)
        for head in network.class_predictors:
            # Of the 20 or 80 logits of a box one would nearly always be high.
            head.bias.reshape(-1, network.columns)[:, 0] += _BACKGROUND
        for head in network.box_predictors:
            head.weight.mul_(_OFFSET)
    return network


def decoding(spec: Spec) -> Decoding:
    """With the thresholds of GluonCV's decoders and of its ``box_nms``; boxes in pixels, as there."""
    import numpy as np

    from controller.zoo import ssd

    return ssd.Decoding(
        default_boxes=np.concatenate(spec.default_boxes()) / spec.side,
        size=(spec.side, spec.side),
        score_threshold=0.01,
        iou_threshold=0.45,
        most=100,
        total=400,
        coordinates="pixels",
    )


def labels(dataset: str) -> tuple[str, ...]:
    """Classes in the order of the logits' columns after the background's."""
    from controller.zoo import gluon_dense, ssd300

    return gluon_dense.VOC if dataset == "voc" else ssd300.labels("ssd300_resnet34")


def load(path: Path, spec: Spec) -> dict[str, Any]:
    """A file's tensors by the names of :class:`~controller.zoo.gluon_dense.Dense`.

    Raises :class:`WeightsError` for weights of another network, or that were trained with other default boxes.
    """
    import torch

    from controller.zoo import gluon_dense

    with torch.device("meta"):
        known = names(gluon_dense.Dense(spec, len(labels(spec.dataset))))
    state = weights.load_state(path)
    for level, wanted in enumerate(spec.default_boxes()):
        _check_boxes(state, level, wanted, spec.cells[level], path)
    state = known.state(state, f"'{path}'")
    for name in state:
        # GluonCV makes these batch norms of MXNet's operator, whose default ignores the scale.
        if name.startswith(("features.expand_trans_bn.", "features.expand_bn.")) and name.endswith(".weight"):
            state[name] = torch.ones_like(state[name])
    return state


def _check_boxes(state: dict[str, Any], level: int, wanted: Floats, cells: int, path: Path) -> None:
    """Take a level's default boxes out of what Gluon saved: they are constants, more than are needed."""
    import torch

    name = f"anchor_generators.{level}.anchors"
    given = state.pop(name, None)
    if given is None:
        return
    fits = given.ndim == 5 and given.shape[:2] == (1, 1)
    if fits:
        given = given[0, 0, :cells, :cells].reshape(-1)
        wanted = wanted.reshape(-1)
        fits = given.shape == wanted.shape and torch.allclose(given.double(), torch.from_numpy(wanted), rtol=1e-6)
    if not fits:
        raise weights.WeightsError(f"'{path}' does not fit: {name} are not the network's default boxes")


def names(dense: Any) -> gluon_names.Names:
    """GluonCV's names: counted ones of the backbone below ``features.``, and those of the operators appended to it."""
    found = gluon_names.Names()
    if hasattr(dense.features, "backbone"):
        for name, counted, module in gluon_names.layers(dense.features.backbone):
            found.add(module, f"features.backbone.{name}", f"features.{counted}_{{}}".format)
        for appended in ("expand_trans_conv", "expand_trans_bn", "expand_conv", "expand_bn"):
            for index, module in enumerate(getattr(dense.features, appended)):
                gluon = f"features.{appended}{index}_{{}}".format
                found.add(module, f"features.{appended}.{index}", gluon, operator=True)
    else:
        for name, _, module in gluon_names.layers(dense.features):
            found.add(module, f"features.{name}", f"features.{name}.{{}}".format)
        found.tensor("features.init_scale", dense.features.init_scale)
        found.tensor("features.norm4.scale", dense.features.norm4.scale)
    for predictors in ("class_predictors", "box_predictors"):
        for index, module in enumerate(getattr(dense, predictors)):
            found.add(module, f"{predictors}.{index}", f"{predictors}.{index}.predictor.{{}}".format)
    return found
