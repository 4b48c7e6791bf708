"""The ResNets of MXNet Gluon's model zoo, which VTA's published figures are of.

Gluon's `resnet18_v1` and `resnet34_v1` are the networks that torchvision calls `resnet18` and `resnet34`, operator by
operator, so torchvision's definitions serve and its weight files load too. The v2 networks are defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.zoo import export, gluon_names, gluon_store, initial, resnet, weights
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
WEIGHTS = "pretrained | FILE.params | FILE.pth | random:SEED"

#: Blocks in each stage, by depth.
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
#: From this depth on blocks are bottlenecks.
_DEEP = 50
#: Patterns of the names of torch's modules, and how Gluon reaches the same, by version: v1's are torchvision's.
ATTRIBUTES = {
    1: {
        r"conv1": "features.0",
        r"bn1": "features.1",
        **{rf"layer{stage}\.(\d+)\.conv1": rf"features.{stage + 3}.\1.body.0" for stage in range(1, 5)},
        **{rf"layer{stage}\.(\d+)\.bn1": rf"features.{stage + 3}.\1.body.1" for stage in range(1, 5)},
        **{rf"layer{stage}\.(\d+)\.conv2": rf"features.{stage + 3}.\1.body.3" for stage in range(1, 5)},
        **{rf"layer{stage}\.(\d+)\.bn2": rf"features.{stage + 3}.\1.body.4" for stage in range(1, 5)},
        **{rf"layer{stage}\.(.+downsample.+)": rf"features.{stage + 3}.\1" for stage in range(1, 5)},
        r"fc": "output",
    },
    2: {
        r"normalise": "features.0",
        r"conv1": "features.1",
        r"bn1": "features.2",
        **{rf"stages\.{stage}\.(.+)": rf"features.{stage + 5}.\1" for stage in range(4)},
        r"bn2": "features.9",
        r"fc": "output",
    },
}
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "1"


def source(name: str, text: str, home: Home) -> SourceModel:
    return classifier(name, text, home, build, ATTRIBUTES[_LAYERS[name][1]], _DEFINITION)


def classifier(
    name: str, text: str, home: Home, build: Callable[[str], Any], attributes: Mapping[str, str], definition: str
) -> SourceModel:
    """A classifier of Gluon's, with MXNet's weight files; ``attributes`` as for `gluon_names.of_classifier`."""
    chosen = weights.parse(text, model=name, own="pretrained", choices=WEIGHTS)
    export.require_torch()
    said = text if chosen.kind == "own" else chosen.said
    if chosen.kind == "own":
        chosen = weights.Weights("file", str(gluon_store.fetch(name, home)))

    def load(path: Path) -> dict[str, Any]:
        import torch

        with torch.device("meta"):
            names = gluon_names.of_classifier(build(name), attributes)
        return names.state(weights.load_state(path), f"'{path}'")

    return resnet.classifier(name, chosen, said, home, build=build, definition=definition, load=load)


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
