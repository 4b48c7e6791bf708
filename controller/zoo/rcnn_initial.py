"""Random weights for an R-CNN that finds tens of things in a picture, with scores far apart."""

from __future__ import annotations

from typing import Any

#: Gains on top of what keeps the mean square: chosen on drawn scenes and noise of 320 and 800 pixels. What makes scores
#: differ amplifies rounding: with a gain of 2 for classes torch's own scores in 32 bits are up to 1.3e-4 of themselves
#: off those in 64, which nobody could agree with to 1e-4; with 0.7 they are within 4e-5.
_PYRAMID, _OFFSETS, _BOX_HEAD, _CLASSES, _MASKS = 0.25, 0.1, 5.0, 0.7, 0.5
#: What the background's logit is ahead of the others.
_BACKGROUND = 4.0
#: Standard deviation of the biases of fully connected layers.
_SHIFT = 0.2


def draw(network: Any) -> None:
    """Draw all weights of torchvision's Faster or Mask R-CNN with a ResNet and a pyramid, from torch's generator.

    Convolutions and batch norms are drawn as a classifier's (:func:`controller.zoo.initial.draw`). With weights drawn
    so throughout, all proposals of a picture look alike to the box head, because what their features have in common is
    far larger than what they differ in, and one class wins everywhere. So the layers of the heads are blind to it:
    the first takes of each channel only how it varies within a box, the others only how their inputs differ. What the
    box head sees is then as different as boxes are, and the gains spread the logits over classes and the background.
    """
    import torch
    from torch import nn

    from controller.zoo import initial

    pyramid, proposer, heads = network.backbone.fpn, network.rpn.head, network.roi_heads
    linear = [module for module in pyramid.modules() if isinstance(module, nn.Conv2d)]
    linear += [proposer.cls_logits, proposer.bbox_pred]
    if heads.has_mask():
        linear.append(heads.mask_predictor.mask_fcn_logits)
    initial.draw(network, endings=initial.residual_endings(network), linear=linear)
    with torch.no_grad():
        for block in pyramid.inner_blocks:
            block[0].weight.mul_(_PYRAMID)
        _centre(proposer.cls_logits.weight)
        proposer.bbox_pred.weight.mul_(_OFFSETS)
        first, second, predictor = heads.box_head.fc6, heads.box_head.fc7, heads.box_predictor
        for layer in (first, second, predictor.cls_score, predictor.bbox_pred):
            follower = "relu" if layer in (first, second) else "linear"
            nn.init.kaiming_normal_(layer.weight, nonlinearity=follower)
            nn.init.normal_(layer.bias, std=_SHIFT)
        cells = heads.box_roi_pool.output_size[0] * heads.box_roi_pool.output_size[1]
        _centre(first.weight.view(len(first.weight), -1, cells), 2)
        first.weight.mul_(_BOX_HEAD)
        for layer in (second, predictor.cls_score, predictor.bbox_pred):
            _centre(layer.weight)
        predictor.cls_score.weight.mul_(_CLASSES)
        predictor.cls_score.bias[0] += _BACKGROUND
        if heads.has_mask():
            heads.mask_predictor.mask_fcn_logits.weight.mul_(_MASKS)


def _centre(weight: Any, dim: int = 1) -> None:
    """Take the mean along ``dim`` off a tensor, in place."""
    weight.sub_(weight.mean(dim, keepdim=True))
