"""Random weights that behave as trained ones do, for networks that are measured and compared without training.

They are drawn from torch's generator and from nothing else: a seed gives the same network whatever it was given before.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

#: Standard deviation of biases, of the shifts of batch norms and of the means they take off.
_SHIFT = 0.2


def draw(network: Any, *, endings: Collection[Any] = (), linear: Collection[Any] = ()) -> None:
    """Draw the convolutions and batch norms of a ``torch.nn.Module`` in place.

    Convolutions keep the mean square of what they take (He et al. 2015, arXiv:1502.01852): those in ``linear`` have no
    ReLU after them, the others are taken to have one. Batch norms have statistics, scales and shifts, so that folding
    them changes something. ``endings`` are the last modules of residual blocks: each of them adds a small part, so that
    values do not grow with the depth (Zhang et al. 2019, arXiv:1901.09321).
    """
    import torch
    from torch import nn

    without_relu = {id(module) for module in linear}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            follower = "linear" if id(module) in without_relu else "relu"
            nn.init.kaiming_normal_(module.weight, nonlinearity=follower)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=_SHIFT)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=_SHIFT)
            module.running_mean.normal_(std=_SHIFT)
            module.running_var.uniform_(0.6, 1.6)
    with torch.no_grad():
        for module in endings:
            module.weight.mul_(1 / math.sqrt(len(endings)))


def residual_endings(network: Any) -> list[Any]:
    """What the blocks of a ResNet end with: in v1 a batch norm, in v2 a convolution."""
    return [
        [child for name, child in block.named_children() if name not in ("downsample", "relu")][-1]
        for block in network.modules()
        if hasattr(block, "downsample")
    ]
