"""The training script, run for real on a handful of pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from controller.zoo import card, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", sorted(train.RECIPES))
def test_training_writes_the_same_network_and_its_card_again(name: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(train.RECIPES[name], pictures=48, epochs=1, batch=16, held_back=12)
    made = train.train(name, tmp_path / "a", recipe)
    assert card.read(tmp_path / "a" / f"{name}.json") == made
    again = train.train(name, tmp_path / "b", recipe)
    assert again == made, "every random choice comes from the recipe's seeds"

    committed = card.read(card.FOLDER / f"{name}.json")
    assert (made.inputs, made.outputs, made.labels) == (committed.inputs, committed.outputs, committed.labels)
    assert (made.preprocess, made.postprocess) == (committed.preprocess, committed.postprocess)


def test_training_learns_a_few_pictures_by_heart() -> None:
    recipe = dataclasses.replace(train.RECIPES["shapes-classifier"], pictures=36, epochs=60, batch=12)
    data = train._pictures(recipe)
    network = train.fit(recipe, data, train._classifier_loss)
    with torch.no_grad():
        found = network(train._network_input(data[0])).argmax(1)
    # By heart: guessing is right once in twelve times.
    assert (found == data[1]).float().mean() > 0.8


def test_turning_keeps_boxes_on_their_shapes() -> None:
    recipe = dataclasses.replace(train.RECIPES["shapes-ssd"], pictures=1)
    pixels, boxes, labels = train._scenes(recipe)
    count = int((labels[0] >= 0).sum())
    size = pixels.shape[1]

    def cut(pixels: torch.Tensor, boxes: torch.Tensor, which: int) -> torch.Tensor:
        x0, y0, x1, y1 = (boxes[0, which] * size).round().int().tolist()
        return pixels[0, y0:y1, x0:x1].float().mean(dim=(0, 1))

    for how in range(8):
        turned, moved = train._turn(pixels, boxes, how)
        assert moved is not None
        for which in range(count):
            # The same pixels are inside the box, give or take a row where its sides fall between two.
            torch.testing.assert_close(cut(turned, moved, which), cut(pixels, boxes, which), rtol=0, atol=6.0)
