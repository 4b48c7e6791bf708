"""R-CNNs of torchvision as programs of fixed shapes, which ``torch.export`` can take down.

Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) and Mask R-CNN (He et al. 2017, arXiv:1703.06870), whatever their
backbone: what is built here around the modules of a ``GeneralizedRCNN`` is the same network with the same parameters.
Only how many proposals and detections there are is no longer a shape, but a count (:mod:`targets.detection.operators`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import image_list
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from controller.zoo import rcnn_parts
from targets.base import Postprocess, Preprocess
from targets.detection import operators  # noqa: F401  registers torch.ops.fleet

#: torchvision.models.detection.roi_heads.RoIHeads.postprocess_detections: pixels that a detection has along each side.
MIN_DETECTION = 1e-2
#: Scores of what is no candidate: below every probability, and so is the lowest threshold.
_NEVER, _ANY = -2.0, -1.0
#: Version of what is built here: files exported from another one are not used again.
DEFINITION = "1"


class ExportableRcnn(nn.Module):  # type: ignore[misc]
    """A ``GeneralizedRCNN`` in evaluation, for batches of pictures that lie in a canvas of one size.

    Takes ``images`` (N, 3, H, W), normalised, with zeros at the right and below, and ``sizes`` (N, 2) float32: height
    and width of each picture in it. Gives, with M the most detections of a picture:

    - boxes (N, M, 4): corners in pixels of the canvas, clipped to the picture; scores (N, M), best first;
    - labels (N, M) int64: torchvision's less one, as the background is not among them;
    - count (N,) int32: rows from it on are zeros;
    - with a mask head, masks (N, M, S, S): probabilities within each box; or with ``pasted`` (N, M, H, W) uint8.

    Its state dict is the network's: the modules are the same objects.
    """

    def __init__(self, network: GeneralizedRCNN, canvas: tuple[int, int], *, pasted: bool = False) -> None:
        """``canvas`` is height and width of ``images``.

        Raises :class:`targets.base.ModelError` (``bad-model``) for parts that compute otherwise than torchvision's.
        """
        super().__init__()
        rcnn_parts.check(network)
        self.backbone: Any = network.backbone
        self.rpn: Any = network.rpn
        self.roi_heads: Any = network.roi_heads
        self.canvas = canvas
        self.pasted = pasted
        self.has_masks = bool(self.roi_heads.has_mask())
        if pasted and not self.has_masks:
            raise rcnn_parts.refused("the network has no mask head, so there are no masks to paste")
        self.eval()
        with torch.no_grad():
            blank = torch.zeros(1, 3, *canvas, device=next(network.parameters()).device)
            features = _by_name(self.backbone(blank))
            logits, _ = self.rpn.head(list(features.values()))
            pictures = image_list.ImageList(blank, [canvas])
            (anchors,) = self.rpn.anchor_generator(pictures, list(features.values()))
        self.anchors_of_level = [level.shape[1:].numel() for level in logits]
        rcnn_parts.check_anchors(self.anchors_of_level, len(anchors))
        for number, level in enumerate(anchors.split(self.anchors_of_level)):
            self.register_buffer(f"anchors{number}", level.clone(), persistent=False)
        self.scales = {name: rcnn_parts.scale(level.shape[-2:], canvas) for name, level in features.items()}
        pools = [self.roi_heads.box_roi_pool] + ([self.roi_heads.mask_roi_pool] if self.has_masks else [])
        for pool in pools:
            rcnn_parts.check_pool(pool, self.scales)
        #: What the heads look at: the coarsest level of a pyramid is the proposals' alone.
        used = {name for pool in pools for name in rcnn_parts.levels(pool, self.scales)}
        self.pooled = [name for name in features if name in used]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        features = _by_name(self.backbone(images))
        # (N, 1, 4): what corners are clipped to.
        limits = torch.cat((sizes[:, 1:], sizes[:, :1], sizes[:, 1:], sizes[:, :1]), 1)[:, None]
        proposals, proposed = self._propose(list(features.values()), limits)
        levels = {name: features[name].permute(0, 2, 3, 1) for name in self.pooled}
        boxes, scores, labels, count = self._detect(levels, proposals, proposed, limits)
        # Rows that are nothing have the background's number, 0, and keep it.
        found = boxes, scores, (labels - 1).clamp(min=0), count
        if not self.has_masks:
            return found
        masks = self._masks(levels, boxes, labels, count)
        if self.pasted:
            masks = torch.ops.fleet.paste_masks(masks, boxes, count, *self.canvas)
        return *found, masks

    def _propose(self, features: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) where something may be, best first, and their counts (N,)."""
        rpn = self.rpn
        most = [min(rpn.pre_nms_top_n(), anchors) for anchors in self.anchors_of_level]
        boxes, scores = [], []
        for number, (logits, deltas) in enumerate(zip(*rpn.head(features), strict=True)):
            anchors = self.get_buffer(f"anchors{number}")
            # (N, A, H, W) and (N, A * 4, H, W) in the order of the anchors: row, column, anchor of a cell.
            level_logits = logits.permute(0, 2, 3, 1).flatten(1)
            level_deltas = deltas.permute(0, 2, 3, 1).reshape(-1, len(anchors), 4)
            best, order = level_logits.topk(most[number], dim=1)
            chosen = level_deltas.gather(1, order[..., None].expand(-1, -1, 4))
            decoded = _decode(chosen, nn.functional.embedding(order, anchors), rpn.box_coder)
            missing = max(most) - most[number]
            boxes.append(nn.functional.pad(_clip(decoded, limits), (0, 0, 0, missing)))
            scores.append(nn.functional.pad(best.sigmoid(), (0, missing), value=_NEVER))
        kept, _, _, count = torch.ops.fleet.class_nms(
            torch.stack(boxes, 1),
            torch.stack(scores, 1),
            _just_below(rpn.score_thresh),
            rpn.nms_thresh,
            0,
            0,
            rpn.post_nms_top_n(),
            rpn.min_size,
            True,
        )
        return kept, count

    def _detect(
        self, levels: Mapping[str, Tensor], proposals: Tensor, proposed: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (N, M, 4), scores (N, M), torchvision's labels (N, M) and counts (N,) of what is in the proposals."""
        heads = self.roi_heads
        (rois,) = torch.ops.fleet.begin_rows([_rois(proposals)], proposed)
        features = heads.box_head(self._pool(heads.box_roi_pool, levels, rois))
        logits, deltas = heads.box_predictor(features)
        classes = logits.shape[1]
        decoded = _decode(deltas.reshape(-1, classes, 4), rois[:, None, 1:], heads.box_coder)
        decoded, probabilities = torch.ops.fleet.end_rows([decoded, logits.softmax(-1)], proposed)
        most = proposals.shape[1]
        boxes = _clip(decoded.reshape(-1, most, classes * 4), limits.repeat(1, 1, classes))
        scores = probabilities.reshape(-1, most, classes).permute(0, 2, 1)
        # The background stays among the classes, as something never found: it counts where classes are moved apart.
        scores = nn.functional.pad(scores[:, 1:], (0, 0, 1, 0), value=_NEVER)
        found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.fleet.class_nms(
            boxes.reshape(-1, most, classes, 4).permute(0, 2, 1, 3),
            scores,
            max(heads.score_thresh, _ANY),
            heads.nms_thresh,
            0,
            0,
            heads.detections_per_img,
            MIN_DETECTION,
            True,
        )
        return found

    def _masks(self, levels: Mapping[str, Tensor], boxes: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        """(N, M, S, S): of each detection its own class's mask."""
        heads = self.roi_heads
        rois, label = torch.ops.fleet.begin_rows([_rois(boxes), labels.flatten()], count)
        logits = heads.mask_predictor(heads.mask_head(self._pool(heads.mask_roi_pool, levels, rois)))
        own = label.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        (masks,) = torch.ops.fleet.end_rows([logits.gather(1, own).sigmoid()], count)
        pooled: Tensor = masks.reshape(-1, boxes.shape[1], *logits.shape[2:])
        return pooled

    def _pool(self, pool: Any, levels: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        names = rcnn_parts.levels(pool, self.scales)
        pooled: Tensor = torch.ops.fleet.roi_align(
            [levels[name] for name in names],
            rois,
            [self.scales[name] for name in names],
            pool.output_size[0],
            pool.sampling_ratio,
            False,
        )
        return pooled


def preprocess(size: tuple[int, int], network: GeneralizedRCNN) -> Preprocess:
    """How pictures become ``images``: made as large as fits into ``size`` (height, width), and filled up with zeros.

    It is what torchvision does with ``min_size = max_size`` of a square ``size``; its batches are as large as their
    largest picture, these always as a picture of ``size``.
    """
    transform: Any = network.transform
    step = transform.size_divisible
    height, width = (math.ceil(side / step) * step for side in size)
    return Preprocess(
        size=size,
        resize="stretch" if transform.fixed_size else "fit",
        filter="bilinear",
        canvas=(height, width),
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )


def postprocess(network: GeneralizedRCNN) -> Postprocess:
    """What the outputs of an :class:`ExportableRcnn` are."""
    heads: Any = network.roi_heads
    return Postprocess(
        kind="detections",
        score_threshold=heads.score_thresh,
        iou_threshold=heads.nms_thresh,
        max_boxes=heads.detections_per_img,
        coordinates="pixels",
    )


def outputs(network: GeneralizedRCNN) -> tuple[str, ...]:
    """Names of the outputs of an :class:`ExportableRcnn`, in order."""
    heads: Any = network.roi_heads
    return ("boxes", "scores", "labels", "count", "masks")[: 5 if heads.has_mask() else 4]


def _by_name(features: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"0": features} if isinstance(features, Tensor) else features


def _rois(boxes: Tensor) -> Tensor:
    """(N, M, 4) → (N * M, 5), with the number of the picture first."""
    pictures = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    return torch.cat((pictures[:, None, None].expand(-1, boxes.shape[1], -1), boxes), 2).reshape(-1, 5)


def _decode(deltas: Tensor, boxes: Tensor, coder: Any) -> Tensor:
    """What torchvision's ``BoxCoder.decode_single`` computes, of (…, 4) and (…, 4)."""
    across, down, wide, high = coder.weights
    lower, upper = boxes[..., :2], boxes[..., 2:]
    sides = upper - lower
    centres = lower + 0.5 * sides
    moves, growth = deltas[..., :2], deltas[..., 2:]
    if across == down and wide == high:
        moves, growth = moves / across, growth / wide
    else:
        moves, growth = moves / deltas.new_tensor((across, down)), growth / deltas.new_tensor((wide, high))
    middle = moves * sides + centres
    half = 0.5 * (growth.clamp(max=coder.bbox_xform_clip).exp() * sides)
    return torch.cat((middle - half, middle + half), -1)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def _just_below(threshold: float) -> float:
    """Above which is what is at least the threshold: proposals that just reach it are kept. Scores are 0..1."""
    if threshold <= 0:
        return _ANY
    return float(np.nextafter(np.float32(threshold), np.float32(-math.inf)))
