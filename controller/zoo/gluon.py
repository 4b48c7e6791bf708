"""The ResNets of MXNet Gluon's model zoo, which VTA's published figures are of.

Gluon's `resnet18_v1` and `resnet34_v1` are the networks that torchvision calls `resnet18` and `resnet34`, operator by
operator, so torchvision's definitions serve and its weight files load. The v2 networks are defined here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from controller.zoo import export, resnet, weights
from targets.base import Postprocess, SourceModel

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
    import torchvision

    return export.pt2_source(
        name,
        chosen,
        build=lambda: build(name),
        said=chosen.said,
        definition=f"{_DEFINITION}, torchvision {torchvision.__version__}",
        preprocess=resnet.PREPROCESS,
        postprocess=Postprocess(kind="classify"),
        labels=resnet.labels(),
        home=home,
    )


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
    _draw(network, sum(_BLOCKS[depth]))
    return network


def _draw(network: Any, blocks: int) -> None:
    """Random weights that behave as trained ones do.

    Convolutions keep the variance (He et al. 2015, arXiv:1502.01852); batch norms have statistics, scales and shifts,
    so that folding them changes something; and each of ``blocks`` residual blocks adds a small part, so that values do
    not grow with the depth (Zhang et al. 2019, arXiv:1901.09321).
    """
    import torch
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.6, 1.6)
    with torch.no_grad():
        for module in network.modules():
            if not hasattr(module, "downsample"):
                continue
            # What a block ends with: in v1 a batch norm, in v2 a convolution.
            last = [child for name, child in module.named_children() if name not in ("downsample", "relu")][-1]
            last.weight.mul_(1 / math.sqrt(blocks))
