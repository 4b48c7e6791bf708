"""`resnet18`: torchvision's definition (He et al. 2015, arXiv:1512.03385), so its weight files load as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.zoo import export, weights
from targets.base import Postprocess, Preprocess, SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {"resnet18": "ResNet-18, names one of the 1,000 classes of ImageNet, 224×224"}
WEIGHTS = "pretrained | FILE.pth | random:SEED"

#: torchvision's ResNet18_Weights.IMAGENET1K_V1; the name carries the first 8 digits of the digest.
PRETRAINED_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
PRETRAINED_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
PRETRAINED_SIZE = 46_830_571

#: How torchvision's reference training and evaluation prepare pictures: short side to 256, the middle 224×224.
PREPROCESS = Preprocess(
    size=(224, 224), resize="crop", crop_ratio=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def source(name: str, text: str, home: Home) -> SourceModel:
    chosen = weights.parse(text, model=name, own="pretrained", choices=WEIGHTS)
    export.require_torch()
    import torchvision

    said = text if chosen.kind == "own" else chosen.said
    if chosen.kind == "own":
        path = weights.download(PRETRAINED_URL, PRETRAINED_SHA256, PRETRAINED_SIZE, home)
        chosen = weights.Weights("file", str(path))
    return export.pt2_source(
        name,
        chosen,
        build=lambda: torchvision.models.resnet18(weights=None),
        said=said,
        definition=f"torchvision {torchvision.__version__}",
        preprocess=PREPROCESS,
        postprocess=Postprocess(kind="classify"),
        labels=labels(),
        home=home,
    )


def labels() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in the order of the challenge of 2012."""
    import torchvision

    return tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    from PIL import Image

    from controller.zoo import leaves

    return [Image.fromarray(leaves.picture(seed, index)) for index in range(count)]
