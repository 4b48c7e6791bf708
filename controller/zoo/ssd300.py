"""SSD300 detectors for COCO's 80 classes: whole, or the dense part, from the picture to offsets and class logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from controller.zoo import export, resnet, variants, weights
from controller.zoo.ssd300_boxes import SIZE, dboxes300_coco, torchvision_boxes
from targets.base import Postprocess, Preprocess, SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home
    from controller.zoo.ssd import Decoding

NETWORKS = {
    "ssd300_resnet34": "SSD300-ResNet34 of MLPerf v0.7 and Ascend's model zoo, finds COCO's 80 classes, 300×300",
    "ssd300_resnet50": "SSD300-ResNet50 of NVIDIA's DeepLearningExamples, finds COCO's 80 classes, 300×300",
    "ssd300_vgg16": "SSD300-VGG16 of torchvision, finds COCO's 80 classes, 300×300",
}
#: MLPerf's and NVIDIA's networks are known by their raw outputs, which other engines' tools expect.
VARIANTS = {
    **{name: {"boxes": "boxes, scores and labels, found inside"} for name in ("ssd300_resnet34", "ssd300_resnet50")},
    "ssd300_vgg16": {"raw": "offsets and logits, for boxes to be found outside"},
}
WEIGHTS = "pretrained (ssd300_vgg16 only) | FILE.pth | random:SEED"
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "2"

PRETRAINED = {
    # torchvision's SSD300_VGG16_Weights.COCO_V1; the name carries the first 8 digits of the digest.
    "ssd300_vgg16": weights.Pretrained(
        "https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth",
        "b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d",
        142_594_222,
    )
}

_RAW_OUTPUTS = {
    "ssd300_resnet34": ("ploc", "plabel"),
    "ssd300_resnet50": ("ploc", "plabel"),
    "ssd300_vgg16": ("bbox_regression", "cls_logits"),
}
#: Both sides become 300 pixels, whatever the picture's aspect.
_IMAGENET = Preprocess(size=(SIZE, SIZE), mean=resnet.PREPROCESS.mean, std=resnet.PREPROCESS.std)
#: torchvision's, which undoes the scaling to 0..1: its backbone was trained on values of 0 to 255. It resizes floats.
_CAFFE = Preprocess(
    size=(SIZE, SIZE), filter="bilinear", mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255)
)


def source(name: str, text: str, home: Home) -> SourceModel:
    base, words, _ = variants.parse(name, VARIANTS[name.partition("@")[0]])
    pretrained = PRETRAINED.get(base)
    choices = WEIGHTS if pretrained else "FILE.pth | random:SEED"
    chosen = weights.parse(text, model=base, own="pretrained" if pretrained else None, choices=choices)
    export.require_torch()
    import torchvision

    from controller.zoo import ssd

    said = text if chosen.kind == "own" else chosen.said
    if chosen.kind == "own" and pretrained:
        chosen = weights.Weights("file", str(weights.fetch(pretrained, home)))
    how = decoding(base)
    whole = "raw" not in words if base == "ssd300_vgg16" else "boxes" in words
    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(base),
        said=said,
        definition=f"{_DEFINITION}, torchvision {torchvision.__version__}",
        preprocess=_CAFFE if base == "ssd300_vgg16" else _IMAGENET,
        postprocess=how.whole() if whole else raw(base, how),
        labels=labels(base),
        home=home,
        outputs=ssd.OUTPUTS if whole else _RAW_OUTPUTS[base],
        rename=_plain if base == "ssd300_resnet50" else None,
        around=(lambda dense: ssd.Ssd(dense, how)) if whole else None,
    )


def decoding(base: str) -> Decoding:
    """How each of the originals finds boxes; MLPerf's and NVIDIA's with the figures of their evaluation."""
    from controller.zoo.ssd import Decoding

    if base == "ssd300_vgg16":
        return Decoding(
            torchvision_boxes(),
            (SIZE, SIZE),
            score_threshold=0.01,
            iou_threshold=0.45,
            per_class=400,
            most=200,
            clip=True,
            max_log_size=math.log(1000 / 16),
            coordinates="pixels",
            shifted=True,
        )
    return Decoding(
        dboxes300_coco(),
        (SIZE, SIZE),
        score_threshold=0.05,
        iou_threshold=0.5,
        per_class=200,
        most=200,
        boxes_last=True,
    )


def raw(base: str, how: Decoding) -> Postprocess:
    """What is done with raw outputs. With those of SSD300-ResNet34 it is what Ascend's published sample does.

    It takes the 200 best boxes before it looks at classes, each then for all 80, and leaves them as large as they are.
    """
    if base != "ssd300_resnet34":
        return how.raw()
    return msgspec.structs.replace(
        how.raw(), score_threshold=0.0, per_class=0, best_boxes=200, box_threshold=0.05, shifted=True, beyond=True
    )


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    from PIL import Image

    from controller.zoo import leaves

    return [Image.fromarray(leaves.picture(seed, index, SIZE)) for index in range(count)]


def build(name: str) -> Any:
    """The ``torch.nn.Module`` with weights drawn from torch's generator."""
    from controller.zoo import ssd300_networks

    makers: dict[str, Callable[[], Any]] = {
        "ssd300_resnet34": ssd300_networks.MlperfSsd300,
        "ssd300_resnet50": ssd300_networks.NvidiaSsd300,
        "ssd300_vgg16": ssd300_networks.Vgg16Ssd300,
    }
    return makers[name]()


def labels(name: str) -> tuple[str, ...]:
    """Classes in the order of the logits' columns after the background's.

    MLPerf and NVIDIA count COCO's 80 classes without gaps; torchvision's columns are COCO's category ids, of which 10
    are classes that were never released (``N/A``).
    """
    from torchvision.models.detection import SSD300_VGG16_Weights

    categories = SSD300_VGG16_Weights.COCO_V1.meta["categories"][1:]
    return tuple(label for label in categories if name == "ssd300_vgg16" or label != "N/A")


def _plain(name: str) -> str:
    """NVIDIA's checkpoints were saved from inside two wrappers, ``module.1.``, of which the first is gone already."""
    return name.removeprefix("1.")
