"""MobileNets: v1 as MXNet Gluon defines it (`mobilenet1.0`), v2 as torchvision does, whose weight files load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controller.zoo import gluon, initial, resnet
from targets.base import SourceModel

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home

NETWORKS = {
    "mobilenet1.0": "MobileNet v1 of MXNet Gluon, width 1.0, names one of the 1,000 classes of ImageNet, 224×224",
    "mobilenet_v2": "MobileNet v2 of torchvision, width 1.0, names one of the 1,000 classes of ImageNet, 224×224",
}
WEIGHTS = "pretrained | FILE.pth | random:SEED; mobilenet1.0 takes FILE.params too"
#: Version of the definitions: files exported from another one are not used again.
_DEFINITION = "1"


def source(name: str, text: str, home: Home) -> SourceModel:
    if name == "mobilenet1.0":
        # Torch's modules have Gluon's names.
        return gluon.classifier(name, text, home, build, {}, _DEFINITION)
    chosen, said = resnet.chosen_weights(name, text, "pretrained | FILE.pth | random:SEED", home)
    return resnet.classifier(name, chosen, said, home, build=build, definition=_DEFINITION)


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    return resnet.samples(name, count, seed)


def build(name: str) -> Any:
    """The ``torch.nn.Module``, (N, 3, H, W) → logits (N, 1000), with weights drawn from torch's generator."""
    import torchvision

    from controller.zoo import separable

    if name == "mobilenet1.0":
        network = separable.MobileNet()
        initial.draw(network)
        return network
    network = torchvision.models.mobilenet_v2(weights=None)
    # A block expands, filters, and projects without a ReLU: convolution and batch norm are its last two modules.
    blocks = [module.conv for module in network.modules() if hasattr(module, "use_res_connect")]
    residual = [module.conv for module in network.modules() if getattr(module, "use_res_connect", False)]
    initial.draw(network, endings=[block[-1] for block in residual], linear=[block[-2] for block in blocks])
    return network
