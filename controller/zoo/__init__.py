"""The zoo: networks that are known by name, with their pre- and post-processing, labels and ways to get weights.

A family of networks is one module here that has ``NETWORKS`` (names with a line about each), ``WEIGHTS`` (what
``--weights`` takes), ``source(name, weights, home) -> SourceModel`` and ``samples(name, count, seed)``. It is imported
when it is asked for. A family may have variants, ``NAME@VARIANT[,VARIANT…]``, such as another size or outputs without
post-processing: it is given the whole name and reads it with :func:`controller.zoo.variants.parse`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from controller.zoo import remembered
from targets.base import ModelError

if TYPE_CHECKING:
    from PIL import Image

    from controller.home import Home
    from targets.base import SourceModel

_MODULES = {
    "fasterrcnn_resnet50_fpn": "controller.zoo.torchvision_detectors",
    "maskrcnn_resnet50_fpn": "controller.zoo.torchvision_detectors",
    "mobilenet1.0": "controller.zoo.mobilenet",
    "mobilenet_v2": "controller.zoo.mobilenet",
    "resnet18": "controller.zoo.resnet",
    "resnet34": "controller.zoo.resnet",
    "resnet50": "controller.zoo.resnet",
    "resnet101": "controller.zoo.resnet",
    "resnet18_v1": "controller.zoo.gluon",
    "resnet18_v2": "controller.zoo.gluon",
    "resnet34_v1": "controller.zoo.gluon",
    "resnet34_v2": "controller.zoo.gluon",
    "resnet50_v2": "controller.zoo.gluon",
    "resnet101_v2": "controller.zoo.gluon",
    "shapes-classifier": "controller.zoo.small",
    "shapes-ssd": "controller.zoo.small",
    "ssd300_resnet34": "controller.zoo.ssd300",
    "ssd300_resnet50": "controller.zoo.ssd300",
    "ssd300_vgg16": "controller.zoo.ssd300",
    "ssd_300_vgg16_atrous_voc": "controller.zoo.gluon_ssd",
    "ssd_512_mobilenet1.0_coco": "controller.zoo.gluon_ssd",
    "ssd_512_mobilenet1.0_voc": "controller.zoo.gluon_ssd",
    "ssd_512_resnet101_v2_voc": "controller.zoo.gluon_ssd",
    "ssd_512_resnet50_v1_coco": "controller.zoo.gluon_ssd",
    "ssd_512_resnet50_v1_voc": "controller.zoo.gluon_ssd",
    "ssd_512_vgg16_atrous_coco": "controller.zoo.gluon_ssd",
}


def names() -> list[str]:
    """Names of all networks, sorted."""
    return sorted(_MODULES)


def has(name: str) -> bool:
    """Whether ``name``, without its variants, is a network's."""
    return name.partition("@")[0] in _MODULES


def describe(name: str) -> str:
    """One line about a network: what it is, and which weights it can have."""
    module = _module(name)
    return f"{module.NETWORKS[name]}; weights: {module.WEIGHTS}"


def source(name: str, weights: str, home: Home) -> SourceModel:
    """The network as one self-contained file; ``weights`` is what the person asked for, empty for the network's own.

    Files that have to be made or downloaded are kept below ``home.cache``. Weights are never chosen silently: the
    source's ``origin`` names them.

    Raises:
        FleetError: codes ``unknown-model``, ``bad-weights``, ``download-failed``, ``torch-missing``.
    """
    found = remembered.find(name, weights, home)
    if found is None:
        found = made = _module(name).source(name, weights, home)
        if made.format == "pt2":
            remembered.keep(weights, made, home)
    return found


def samples(name: str, count: int, seed: int) -> list[Image.Image]:
    """Pictures such as the network takes, the same for the same seed: to calibrate on, and to try it with.

    For the `shapes` networks they are what these were trained for; for ImageNet's they only have the statistics of
    photographs (:mod:`controller.zoo.leaves`). Raises :class:`FleetError` ``unknown-model``.
    """
    found: list[Image.Image] = _module(name).samples(name, count, seed)
    return found


def _module(name: str) -> Any:
    base, at, _ = name.partition("@")
    if base not in _MODULES:
        raise ModelError(
            f"there is no model '{name}' in the zoo", code="unknown-model", hint=f"there are: {', '.join(names())}"
        )
    module = importlib.import_module(_MODULES[base])
    if at and not hasattr(module, "VARIANTS"):
        raise ModelError(f"{base} has no variants, such as '{name}' names", code="unknown-model")
    return module
