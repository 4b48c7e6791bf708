"""MobileNet v1 (Howard et al. 2017, arXiv:1704.04861) in torch, with the structure and names of MXNet Gluon's zoo.

Gluon numbers what ``features`` holds without nesting: convolution, batch norm, ReLU, and so on.
"""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 1000
#: Channels that each separable convolution gives, and its stride.
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → logits (N, 1000); 3×3 depthwise and 1×1 convolutions by turns, width 1.0."""

    def __init__(self) -> None:
        super().__init__()
        layers = _convolved(3, 32, kernel=3, stride=2)
        channels = 32
        for outputs, stride in _SEPARABLE:
            layers += _convolved(channels, channels, kernel=3, stride=stride, groups=channels)
            layers += _convolved(channels, outputs)
            channels = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x))


def _convolved(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
