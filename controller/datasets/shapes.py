"""Data sets of drawn shapes, in the formats of real ones: accuracy can be measured anywhere, without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from controller.zoo import draw
from controller.zoo.shapes import CLASSES
from targets.base import FleetError

Kind = Literal["detection", "classification"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def write(folder: Path, *, kind: Kind, count: int, seed: int) -> Path:
    """Draw ``count`` pictures into an empty or new folder; what to give to `fleet eval`. Seeds draw the same again.

    ``detection``: scenes in ``images/`` and COCO's ``annotations/instances_shapes.json``; ``classification``: a folder
    of pictures for each shape. Raises :class:`FleetError` (``exists``) for a folder that holds something.
    """
    from PIL import Image

    from targets.pictures.draw import save

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FleetError(f"{folder} is not an empty folder", code="exists", hint="name one that is not there yet")
    if kind == "classification":
        for index in range(count):
            pixels, label = draw.picture(seed, index)
            save(Image.fromarray(pixels), folder / CLASSES[label] / f"{index:05d}.png")
        return folder
    scenes = []
    names = [f"{index:05d}.png" for index in range(count)]
    for scene, name in zip(draw.scenes(seed, count), names, strict=True):
        save(Image.fromarray(scene.picture), folder / "images" / name)
        # Annotations need a scene's size, and there may be many scenes.
        scenes.append(scene._replace(picture=scene.picture[:, :, :0]))
    path = folder / "annotations" / "instances_shapes.json"
    path.parent.mkdir()
    path.write_text(json.dumps(draw.coco_annotations(scenes, names)), encoding="utf-8")
    return folder
