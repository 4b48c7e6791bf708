"""Faster and Mask R-CNN by torchvision's definitions, whole: from the picture to boxes, labels, scores and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controller.zoo import export, variants, weights
from targets.base import SourceModel
from targets.files import hash_file

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {
    "fasterrcnn_resnet50_fpn": "Faster R-CNN ResNet-50 FPN of torchvision, finds COCO's classes, 800×800 or @HxW",
    "maskrcnn_resnet50_fpn": "Mask R-CNN ResNet-50 FPN of torchvision, finds COCO's classes and masks, 800×800 or @HxW",
}
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "fasterrcnn_resnet50_fpn": {},
    "maskrcnn_resnet50_fpn": {"pasted": "masks in the size of the network's input, laid there inside"},
}
WEIGHTS = "pretrained | FILE.pth | random:SEED"
#: Version of how random weights are drawn: files exported from another one are not used again.
_DEFINITION = "1"
#: Smallest and largest side that these networks are made for.
SIDES = (64, 2048)
_DEFAULT = (800, 800)

PRETRAINED = {
    # torchvision's COCO_V1; the names carry the first 8 digits of the digests.
    "fasterrcnn_resnet50_fpn": weights.Pretrained(
        "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "258fb6c638b15964ddcdd1ae0748c5eef1be9e732750120cc857feed3faac384",
        167_502_836,
    ),
    "maskrcnn_resnet50_fpn": weights.Pretrained(
        "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "bf2d0c1efbc936eeee2bc95a48e80ebc86b891f61b0106485937fc29f9315fc0",
        178_090_079,
    ),
}


def source(name: str, text: str, home: Home) -> SourceModel:
    base, words, size = variants.parse(name, VARIANTS[name.partition("@")[0]], sizes=SIDES)
    chosen = weights.parse(text, model=base, own="pretrained", choices=WEIGHTS)
    export.require_torch()
    import torch
    import torchvision

    from controller.zoo import rcnn

    said = text if chosen.kind == "own" else chosen.said
    if chosen.kind == "own":
        chosen = weights.Weights("file", str(weights.fetch(PRETRAINED[base], home)))
    published = chosen.kind == "file" and hash_file(chosen.path).startswith(PRETRAINED[base].digest)
    with torch.device("meta"):
        network = build(base)
    preprocess = rcnn.preprocess(size or _DEFAULT, network)
    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(base, published=published),
        said=said,
        definition=f"{_DEFINITION}, {rcnn.DEFINITION}, torchvision {torchvision.__version__}",
        preprocess=preprocess,
        postprocess=rcnn.postprocess(network),
        labels=labels(),
        home=home,
        outputs=rcnn.outputs(network),
        sizes=True,
        rename=_present_name,
        around=lambda whole: rcnn.ExportableRcnn(whole, preprocess.canvas, pasted="pasted" in words),
    )


def build(name: str, *, published: bool = False) -> Any:
    """torchvision's network with weights drawn from torch's generator.

    ``published``: as it takes the weights that torchvision publishes. They were trained with batch norms that add
    nothing to the variance, which torchvision sets when it loads them.
    """
    import torchvision
    from torch import nn

    from controller.zoo import rcnn_initial

    network = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    rcnn_initial.draw(network)
    for module in network.modules():
        if published and isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return network


def labels() -> tuple[str, ...]:
    """COCO's category ids from 1 on; 10 of them are classes that were never released (``N/A``)."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    return tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    """Drawn scenes: networks of random weights find things in them too."""
    from PIL import Image

    from controller.zoo import draw

    return [Image.fromarray(scene.picture).resize((512, 512)) for scene in draw.scenes(seed, count)]


def _present_name(name: str) -> str:
    """What torchvision calls a parameter now: its files were saved when convolutions stood alone in these heads."""
    name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
    return re.sub(
        r"^roi_heads\.mask_head\.mask_fcn([1-9])\.(weight|bias)$",
        lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
        name,
    )
