"""Annotated pictures to measure accuracy on: COCO, VOC, and folders of pictures by class."""

from controller.datasets.base import Dataset, Objects, Picture, Segmentation
from controller.datasets.find import load

__all__ = ["Dataset", "Objects", "Picture", "Segmentation", "load"]
