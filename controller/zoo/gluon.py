"""The ResNets of MXNet Gluon's model zoo, which VTA's published figures are of.

Gluon's `resnet18_v1` and `resnet34_v1` are the networks that torchvision calls `resnet18` and `resnet34`, operator by
operator, so torchvision's definitions serve and its weight files load. The v2 networks are defined here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from controller.zoo import export, initial, resnet, weights
from targets.base import SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

_LAYERS = {
    **{f"resnet{depth}_v1": (depth, 1) for depth in (18, 34)},
    **{f"resnet{depth}_v2": (depth, 2) for depth in (18, 34, 50, 101)},
}
NETWORKS = {
    name: f"ResNet-{depth} v{version} of MXNet Gluon, names one of the 1,000 classes of ImageNet, 224×224"
    for name, (depth, version) in _LAYERS.items()
}
WEIGHTS = "FILE.pth | random:SEED"

#: Blocks in each stage, by depth.
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
#: From this depth on blocks are bottlenecks.
_DEEP = 50
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "1"


def source(name: str, text: str, home: Home) -> SourceModel:
    chosen = weights.parse(text, model=name, own=None, choices=WEIGHTS)
    export.require_torch()
    return resnet.classifier(name, chosen, chosen.said, home, build=build, definition=_DEFINITION)


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    return resnet.samples(name, count, seed)


def build(name: str) -> Any:
    """The ``torch.nn.Module`` with weights drawn from torch's generator."""
    import torchvision

    from controller.zoo import preactivation

    depth, version = _LAYERS[name]
    if version == 1:
        makers: dict[int, Callable[[], Any]] = {18: torchvision.models.resnet18, 34: torchvision.models.resnet34}
        network = makers[depth]()
    elif depth < _DEEP:
        network = preactivation.ResNetV2(preactivation.BasicBlock, _BLOCKS[depth], (64, 128, 256, 512))
    else:
        network = preactivation.ResNetV2(preactivation.Bottleneck, _BLOCKS[depth], (256, 512, 1024, 2048))
    initial.draw(network, endings=initial.residual_endings(network))
    return network
