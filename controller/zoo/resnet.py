"""ResNets by torchvision's definitions (He et al. 2015, arXiv:1512.03385), so its weight files load as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.zoo import export, initial, weights
from targets.base import Postprocess, Preprocess, SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {
    f"resnet{depth}": f"ResNet-{depth} of torchvision, names one of the 1,000 classes of ImageNet, 224×224"
    for depth in (18, 34, 50, 101)
}
WEIGHTS = "pretrained | FILE.pth | random:SEED"
#: Version of how random weights are drawn: files exported from another one are not used again.
_DEFINITION = "2"


_FILES = "https://download.pytorch.org/models/"
#: torchvision's IMAGENET1K_V1; a name carries the first 8 digits of the file's digest.
PRETRAINED = {
    "resnet18": weights.Pretrained(
        f"{_FILES}resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        46_830_571,
    ),
    "resnet34": weights.Pretrained(
        f"{_FILES}resnet34-b627a593.pth",
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
        87_319_819,
    ),
    "resnet50": weights.Pretrained(
        f"{_FILES}resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        102_530_333,
    ),
    "resnet101": weights.Pretrained(
        f"{_FILES}resnet101-63fe2227.pth", "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a", 0
    ),
    "mobilenet_v2": weights.Pretrained(f"{_FILES}mobilenet_v2-b0353104.pth", "b0353104", 0),
}

#: How torchvision's reference training and evaluation prepare pictures: short side to 256, the middle 224×224.
PREPROCESS = Preprocess(
    size=(224, 224), resize="crop", crop_ratio=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def source(name: str, text: str, home: Home) -> SourceModel:
    chosen, said = chosen_weights(name, text, WEIGHTS, home)
    return classifier(name, chosen, said, home, build=build, definition=_DEFINITION)


def chosen_weights(name: str, text: str, choices: str, home: Home) -> tuple[weights.Weights, str]:
    """What ``--weights`` asks for of a network that is in `PRETRAINED`, fetched, and how an origin says it."""
    chosen = weights.parse(text, model=name, own="pretrained", choices=choices)
    export.require_torch()
    if chosen.kind != "own":
        return chosen, chosen.said
    return weights.Weights("file", str(weights.fetch(PRETRAINED[name], home))), text


def classifier(
    name: str,
    chosen: weights.Weights,
    said: str,
    home: Home,
    *,
    build: Callable[[str], Any],
    definition: str,
    load: Callable[[Path], Mapping[str, Any]] = weights.load_state,
) -> SourceModel:
    """An ImageNet classifier that takes pictures prepared as for these ResNets; ``build`` makes its torch module.

    ``load`` reads a file's tensors by the names that they have in the module.
    """
    import torchvision

    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(name),
        said=said,
        definition=f"{definition}, torchvision {torchvision.__version__}",
        preprocess=PREPROCESS,
        postprocess=Postprocess(kind="classify"),
        labels=labels(),
        home=home,
        load=load,
    )


def build(name: str) -> Any:
    """The ``torch.nn.Module``, (N, 3, H, W) → logits (N, 1000), with weights drawn from torch's generator."""
    import torchvision

    network = torchvision.models.get_model(name, weights=None)
    initial.draw(network, endings=initial.residual_endings(network))
    return network


def labels() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in the order of the challenge of 2012."""
    import torchvision

    return tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    from PIL import Image

    from controller.zoo import leaves

    return [Image.fromarray(leaves.picture(seed, index)) for index in range(count)]
