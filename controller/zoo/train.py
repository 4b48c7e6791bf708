"""Trains the two small networks from nothing, measures them on held-back pictures and writes what is committed.

``python -m controller.zoo.train shapes-classifier|shapes-ssd [-o FOLDER]`` takes some ten minutes on one core. Every
random choice comes from the recipe's seeds: the same versions on the same kind of machine give the same network.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from controller.zoo import anchors, card, draw, evaluate, multibox
from controller.zoo.networks import ShapesClassifier, ShapesSsd, fold_norms, shapes_ssd_decoding
from controller.zoo.shapes import CLASSES
from targets.base import Postprocess, Preprocess

MEAN, STD = 0.5, 0.25
OPSET = 18

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. Seeds name pictures: no picture of one seed appears under another."""

    network: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    pictures: int
    epochs: int
    batch: int
    rate: float
    train_seed: int = 1
    held_back_seed: int = 2
    held_back: int = 2000
    weight_decay: float = 0.02


RECIPES = {
    "shapes-classifier": Recipe(ShapesClassifier, ("logits",), pictures=18_000, epochs=18, batch=64, rate=4e-3),
    "shapes-ssd": Recipe(
        ShapesSsd, ("locations", "logits"), pictures=8_000, epochs=18, batch=32, rate=3e-3, held_back=500
    ),
}


def _pictures(recipe: Recipe) -> Batch:
    drawn = [draw.picture(recipe.train_seed, index) for index in range(recipe.pictures)]
    return torch.from_numpy(np.stack([p for p, _ in drawn])), torch.tensor([label for _, label in drawn])


def _scenes(recipe: Recipe) -> Batch:
    pixels = np.empty((recipe.pictures, draw.SCENE_SIZE, draw.SCENE_SIZE, 3), np.uint8)
    # Padding boxes have an area, so that encoding one is finite.
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (recipe.pictures, draw.MAX_SHAPES, 1))
    labels = np.full((recipe.pictures, draw.MAX_SHAPES), -1)
    for index, one in enumerate(draw.scenes(recipe.train_seed, recipe.pictures)):
        pixels[index] = one.picture
        boxes[index, : len(one.boxes)] = one.boxes / draw.SCENE_SIZE
        labels[index, : len(one.labels)] = one.labels
    return torch.from_numpy(pixels), torch.from_numpy(boxes), torch.from_numpy(labels)


def _turn(pixels: Tensor, boxes: Tensor | None, how: int) -> tuple[Tensor, Tensor | None]:
    """One of the eight symmetries of the square, on pictures (N, H, W, 3) and boxes (N, M, 4) as corners in 0..1."""
    if how & 1:
        pixels = pixels.flip(2)
        boxes = (
            boxes
            if boxes is None
            else torch.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
        )
    if how & 2:
        pixels = pixels.flip(1)
        boxes = (
            boxes
            if boxes is None
            else torch.stack([boxes[..., 0], 1 - boxes[..., 3], boxes[..., 2], 1 - boxes[..., 1]], -1)
        )
    if how & 4:
        pixels = pixels.transpose(1, 2)
        boxes = boxes if boxes is None else boxes[..., [1, 0, 3, 2]]
    return pixels, boxes


def _network_input(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 → normalised (N, 3, H, W) with channels last in memory, which is faster on a CPU."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def _batches(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    for chosen in torch.randperm(len(data[0]), generator=generator).split(size):
        how = int(torch.randint(8, (), generator=generator))
        pixels, boxes = _turn(data[0][chosen], data[1][chosen] if len(data) == 3 else None, how)
        yield (_network_input(pixels), *((data[1][chosen],) if boxes is None else (boxes, data[2][chosen])))


def _classifier_loss(network: nn.Module, batch: Batch) -> Tensor:
    pictures, labels = batch
    return functional.cross_entropy(network(pictures), labels, label_smoothing=0.05)


def _ssd_loss(network: nn.Module, batch: Batch) -> Tensor:
    pictures, boxes, labels = batch
    locations, logits = network(pictures)
    default = torch.from_numpy(anchors.default_boxes()).float()
    return multibox.multibox_loss(locations, logits, default, multibox.Truth(boxes, labels))


def fit(recipe: Recipe, data: Batch, loss_of: Callable[[nn.Module, Batch], Tensor]) -> nn.Module:
    """AdamW under a one-cycle schedule. Returns the network in evaluation mode."""
    torch.manual_seed(recipe.train_seed)
    generator = torch.Generator().manual_seed(recipe.train_seed)
    network = recipe.network().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(data[0]) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps, pct_start=0.15)
    for epoch in range(recipe.epochs):
        started, total, count = time.monotonic(), 0.0, 0
        for batch in _batches(data, recipe.batch, generator):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {total / count:.4f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return network.eval()


def export(network: nn.Module, size: int, outputs: Sequence[str], path: Path) -> None:
    """Write an ONNX file of batch 1 with batch norms folded, all weights inside, and nothing about this machine."""
    import onnx

    folded = fold_norms(network).to(memory_format=torch.contiguous_format)
    program = torch.onnx.export(
        folded,
        (torch.zeros(1, 3, size, size),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=list(outputs),
        verbose=False,
    )
    model = program.model_proto
    # The exporter notes source lines and paths on every node.
    del model.metadata_props[:], model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    model.doc_string = model.graph.doc_string = ""
    _open_batch(model.graph)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _open_batch(graph: Any) -> None:
    """Reshapes copy the batch of what they are given, so that whoever compiles the network may choose another one."""
    import onnx

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = onnx.numpy_helper.to_array(stored[node.input[1]]).copy()
            shape[0] = -1
            stored[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(shape, node.input[1]))
            # It says what a 0 in the shape means, and there is none.
            del node.attribute[:]


def train(name: str, folder: Path, recipe: Recipe) -> card.Card:
    """Train, export, measure; writes NAME.onnx and NAME.json into ``folder``."""
    started = time.monotonic()
    detector = name == "shapes-ssd"
    size = draw.SCENE_SIZE if detector else draw.PICTURE_SIZE
    print(f"drawing {recipe.pictures} pictures", flush=True)
    data = _scenes(recipe) if detector else _pictures(recipe)
    network = fit(recipe, data, _ssd_loss if detector else _classifier_loss)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    export(network, size, recipe.outputs, path)

    preprocess = Preprocess(size=(size, size), mean=(MEAN,) * 3, std=(STD,) * 3)
    postprocess = shapes_ssd_decoding().raw() if detector else Postprocess(kind="classify")
    measure: Any = evaluate.mean_average_precision if detector else evaluate.top1
    value = measure(path, preprocess, postprocess, recipe.held_back_seed, recipe.held_back)
    made = card.describe(
        path,
        name=name,
        labels=CLASSES,
        preprocess=preprocess,
        postprocess=postprocess,
        metric=card.Metric(
            name="mAP@[.5:.95]" if detector else "top-1",
            value=round(value, 4),
            pictures=recipe.held_back,
            seed=recipe.held_back_seed,
        ),
        training=card.Training(
            seed=recipe.train_seed, pictures=recipe.pictures, epochs=recipe.epochs, torch=str(torch.__version__)
        ),
    )
    card.write(made, folder / f"{name}.json")
    print(f"{name}: {made.metric.name} {made.metric.value} after {time.monotonic() - started:.0f} s", flush=True)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m controller.zoo.train", description="Train a small network.")
    parser.add_argument("network", choices=sorted(RECIPES))
    parser.add_argument("-o", "--output", type=Path, default=card.FOLDER, help="folder for the .onnx and its .json")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    recipe = RECIPES[chosen.network]
    if chosen.epochs:
        recipe = dataclasses.replace(recipe, epochs=chosen.epochs)
    train(chosen.network, chosen.output, recipe)


if __name__ == "__main__":
    main()
