"""Single-shot detectors (Liu et al. 2016, arXiv:1512.02325): how offsets and class logits become boxes.

A network has a dense part, which gives an offset from each default box and logits of its classes. :class:`Decoding`
says the rest, once: as a torch module around the dense part (:class:`Ssd`), or as data of a manifest
(:meth:`Decoding.raw`), by which :mod:`targets.detection.ssd` does the same outside of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import targets.detection.operators  # noqa: F401  (registers torch.ops.fleet)
from targets.base import Postprocess

#: Names of what a whole detector gives, in order.
OUTPUTS = ("boxes", "scores", "labels", "count")


@dataclass(frozen=True, eq=False)
class Decoding:
    """What comes after the dense part; arguments of ``torch.ops.fleet.class_nms`` have its names and meanings.

    ``default_boxes``: (A, 4) centre-x, centre-y, width, height in 0..1; the dense part gives locations (N, A, 4) and
    logits (N, A, 1 + classes), or with ``boxes_last`` (N, 4, A) and (N, 1 + classes, A); column 0 is the background.
    Offsets are in units of the ``variances``; logarithms of sizes are at most ``max_log_size``.
    Boxes are found ``relative`` to the picture, or in ``pixels`` of the input, which is ``size`` (height, width);
    with ``clip`` they end at the picture's edges.
    """

    default_boxes: npt.NDArray[np.float64]
    size: tuple[int, int]
    score_threshold: float
    iou_threshold: float
    most: int
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    boxes_last: bool = False
    per_class: int = 0
    total: int = 0
    clip: bool = False
    max_log_size: float | None = None
    coordinates: Literal["relative", "pixels"] = "relative"
    shifted: bool = False

    def raw(self) -> Postprocess:
        """For the dense part alone: everything is to be done with what it gives."""
        # A number that is a float32 needs at most nine digits to be that float32 again.
        anchors = [[float(str(value)) for value in box] for box in self.default_boxes.astype(np.float32)]
        return Postprocess(
            kind="ssd",
            anchors=tuple((x, y, width, height) for x, y, width, height in anchors),
            variances=self.variances,
            boxes_last=self.boxes_last,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_boxes=self.most,
            per_class=self.per_class,
            total=self.total,
            coordinates=self.coordinates,
            clip=self.clip,
            max_log_size=self.max_log_size,
            shifted=self.shifted,
        )

    def whole(self) -> Postprocess:
        """For :class:`Ssd`: all is done inside the network."""
        return Postprocess(
            kind="detections",
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_boxes=self.most,
            coordinates=self.coordinates,
        )


class Ssd(nn.Module):  # type: ignore[misc]
    """A dense part and its decoding: (N, 3, H, W) → boxes (N, M, 4) as corners, scores (N, M), labels (N, M) int64
    that count the classes from 0 without the background, and counts (N,) int32 of the rows that are something.
    """

    def __init__(self, dense: nn.Module, decoding: Decoding) -> None:
        super().__init__()
        self.dense, self.decoding = dense, decoding
        height, width = decoding.size if decoding.coordinates == "pixels" else (1, 1)
        boxes = torch.from_numpy(decoding.default_boxes.astype(np.float32)) * torch.tensor(
            [width, height, width, height], dtype=torch.float32
        )
        self.register_buffer("centres", boxes[:, :2].contiguous(), persistent=False)
        self.register_buffer("sides", boxes[:, 2:].contiguous(), persistent=False)
        self.register_buffer("variances", torch.tensor(decoding.variances, dtype=torch.float32), persistent=False)
        self.register_buffer("corner", torch.tensor([width, height] * 2, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        locations, logits = self.dense(image)
        if self.decoding.boxes_last:
            scores = logits.softmax(1)[:, 1:]
            locations = locations.transpose(1, 2)
        else:
            scores = logits.softmax(2)[..., 1:].transpose(1, 2)
        one = self.decoding
        kept, best, labels, count = torch.ops.fleet.class_nms(
            self.decode(locations).unsqueeze(1),
            scores,
            one.score_threshold,
            one.iou_threshold,
            one.per_class,
            one.total,
            one.most,
            0.0,
            one.shifted,
        )
        return kept, best, labels, count

    def decode(self, locations: Tensor) -> Tensor:
        """Offsets (N, A, 4) from the default boxes → corners (N, A, 4)."""
        offsets = locations * self.variances
        centres = self.centres + offsets[..., :2] * self.sides
        log_sizes = offsets[..., 2:]
        if self.decoding.max_log_size is not None:
            log_sizes = log_sizes.clamp(max=self.decoding.max_log_size)
        halves = self.sides * log_sizes.exp() * 0.5
        corners = torch.cat([centres - halves, centres + halves], -1)
        return torch.minimum(corners.clamp(min=0), self.corner) if self.decoding.clip else corners
