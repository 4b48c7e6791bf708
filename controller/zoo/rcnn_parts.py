"""What an R-CNN may be made of: parts that compute as torchvision's do, and numbers that fixed shapes allow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from targets.base import ModelError
from targets.detection.operators import CANONICAL_LEVEL, CANONICAL_SIZE

#: Of each part, the methods whose work is done otherwise here: with others in their place it would be another network.
_METHODS: dict[type, tuple[str, ...]] = {
    GeneralizedRCNN: ("forward",),
    RegionProposalNetwork: ("forward", "filter_proposals", "_get_top_n_idx"),
    RoIHeads: ("forward", "postprocess_detections", "has_mask"),
    detection_utils.BoxCoder: ("decode", "decode_single"),
    MultiScaleRoIAlign: ("forward",),
}


def refused(why: str) -> ModelError:
    return ModelError(
        f"this R-CNN cannot be exported: {why}",
        hint="parts that compute as torchvision's can be: any backbone, anchors, heads and predictors",
    )


def check(network: Any) -> None:
    """Raises :class:`ModelError` (``bad-model``) for an R-CNN with parts that compute otherwise than torchvision's."""
    _check_part(network, GeneralizedRCNN, "the network")
    _check_part(network.rpn, RegionProposalNetwork, "rpn")
    _check_part(network.rpn.box_coder, detection_utils.BoxCoder, "rpn.box_coder")
    heads = network.roi_heads
    _check_part(heads, RoIHeads, "roi_heads")
    _check_part(heads.box_coder, detection_utils.BoxCoder, "roi_heads.box_coder")
    _check_part(heads.box_roi_pool, MultiScaleRoIAlign, "roi_heads.box_roi_pool")
    if heads.has_mask():
        _check_part(heads.mask_roi_pool, MultiScaleRoIAlign, "roi_heads.mask_roi_pool")
    if heads.has_keypoint():
        raise refused("it has a head for keypoints (roi_heads.keypoint_head)")


def _check_part(part: Any, kind: type, name: str) -> None:
    if not isinstance(part, kind):
        raise refused(f"{name} is a {type(part).__name__}, no {kind.__name__}")
    for method in _METHODS[kind]:
        if getattr(type(part), method) is not getattr(kind, method):
            raise refused(f"{name} is a {type(part).__name__}, whose {method}() is its own")


def check_anchors(of_levels: Sequence[int], made: int) -> None:
    """Raises :class:`ModelError` unless as many anchors are made as the levels of the head's results have."""
    if sum(of_levels) != made:
        raise refused(f"rpn.anchor_generator makes {made} anchors, rpn.head takes {sum(of_levels)}")


def levels(pool: Any, scales: Mapping[str, float]) -> list[str]:
    """The levels that a ``MultiScaleRoIAlign`` ever takes a box to.

    It counts them from the finest by halves: of two levels of one scale the second is never taken.
    """
    names = [name for name in scales if name in pool.featmap_names]
    return names[: round(math.log2(scales[names[0]] / scales[names[-1]])) + 1] if names else []


def check_pool(pool: Any, scales: Mapping[str, float]) -> None:
    """Raises :class:`ModelError` for a pool that looks at no level of the pyramid, or in another way."""
    used = [scales[name] for name in levels(pool, scales)]
    side, *others = pool.output_size
    if not used:
        raise refused(f"a RoIAlign is on {', '.join(pool.featmap_names)}, the backbone has {', '.join(scales)}")
    if others != [side]:
        raise refused(f"a RoIAlign has {'×'.join(str(size) for size in pool.output_size)} cells, which is no square")
    if pool.sampling_ratio <= 0:
        raise refused(f"a RoIAlign has sampling_ratio={pool.sampling_ratio}: so many points as a box has pixels")
    if len(used) > 1 and (pool.canonical_scale, pool.canonical_level) != (CANONICAL_SIZE, CANONICAL_LEVEL):
        raise refused(
            f"a RoIAlign has canonical_scale={pool.canonical_scale}, canonical_level={pool.canonical_level}: they must "
            f"be {CANONICAL_SIZE} and {CANONICAL_LEVEL}"
        )
    if any(finer != 2 * coarser for finer, coarser in itertools.pairwise(used)):
        raise refused(f"the levels of its backbone are {', '.join(f'1/{1 / each:g}' for each in used)}, no halves")


def scale(level: torch.Size, canvas: tuple[int, int]) -> float:
    """Cells of a level for a pixel of the canvas: a power of two, as ``MultiScaleRoIAlign`` rounds to."""
    return float(2.0 ** round(math.log2(level[0] / canvas[0])))
