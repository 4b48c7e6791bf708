"""SSD300 detectors for COCO's 80 classes: the dense part, from the picture to offsets and class logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from controller.zoo import export, resnet, weights
from controller.zoo.ssd300_boxes import SIZE, torchvision_boxes
from targets.base import Postprocess, Preprocess, SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {
    "ssd300_resnet34": "SSD300-ResNet34 of MLPerf v0.7 and Ascend's model zoo, finds COCO's 80 classes, 300×300",
    "ssd300_resnet50": "SSD300-ResNet50 of NVIDIA's DeepLearningExamples, finds COCO's 80 classes, 300×300",
    "ssd300_vgg16": "SSD300-VGG16 of torchvision, finds COCO's 80 classes, 300×300",
}
WEIGHTS = "FILE.pth | random:SEED"
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "1"

_OUTPUTS = {
    "ssd300_resnet34": ("ploc", "plabel"),
    "ssd300_resnet50": ("ploc", "plabel"),
    "ssd300_vgg16": ("bbox_regression", "cls_logits"),
}
#: Both sides become 300 pixels, whatever the picture's aspect.
_IMAGENET = Preprocess(size=(SIZE, SIZE), mean=resnet.PREPROCESS.mean, std=resnet.PREPROCESS.std)
#: torchvision's, which undoes the scaling to 0..1: its backbone was trained on values of 0 to 255.
_CAFFE = Preprocess(size=(SIZE, SIZE), mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))


def source(name: str, text: str, home: Home) -> SourceModel:
    chosen = weights.parse(text, model=name, own=None, choices=WEIGHTS)
    export.require_torch()
    import torchvision

    vgg = name == "ssd300_vgg16"
    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(name),
        said=chosen.said,
        definition=f"{_DEFINITION}, torchvision {torchvision.__version__}",
        preprocess=_CAFFE if vgg else _IMAGENET,
        # The ResNets' outputs have the boxes on their last axis, which a `Postprocess` cannot say: they stay raw.
        postprocess=_postprocess() if vgg else None,
        labels=labels(name),
        home=home,
        outputs=_OUTPUTS[name],
        rename=_plain if name == "ssd300_resnet50" else None,
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


def _postprocess() -> Postprocess:
    """torchvision's thresholds. Millionths of a picture are enough for a box, and a third as long when written."""
    anchors = tuple((x, y, width, height) for x, y, width, height in torchvision_boxes().round(6).tolist())
    return Postprocess(kind="ssd", anchors=anchors, score_threshold=0.01, iou_threshold=0.45, max_boxes=200)


def _plain(name: str) -> str:
    """NVIDIA's checkpoints were saved from inside two wrappers, ``module.1.``, of which the first is gone already."""
    return name.removeprefix("1.")
