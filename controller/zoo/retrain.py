"""Retrains the last layer of `shapes-classifier` on new pictures: what someone does who adapts a network to new data.

The result differs from the committed network in its last layer's weights alone, so a push of it should cost no more::

    python -m controller.zoo.retrain --seed 7 -o retrained.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controller.zoo import card, draw, evaluate
from targets.files import write_atomic
from targets.pictures.answers import softmax
from targets.pictures.prepare import prepare

if TYPE_CHECKING:
    import onnx

_STEPS, _RATE, _DECAY = 200, 0.5, 1e-4


def retrain(network: Path, output: Path, *, seed: int, count: int = 600) -> None:
    """Write a copy of the classifier ``network`` whose last layer learned from ``count`` pictures of ``seed``.

    Softmax regression by gradient descent, starting at the weights that are there.
    """
    import onnx
    from PIL import Image

    model = onnx.load(str(network))
    last = model.graph.node[-1]
    if last.op_type != "Gemm" or not any(a.name == "transB" and a.i for a in last.attribute):
        raise ValueError(f"the last layer of {network} is a {last.op_type}, not the Gemm that this script knows")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (onnx.numpy_helper.to_array(stored[name]).astype(np.float64) for name in last.input[1:])

    preprocess = card.read(card.FOLDER / "shapes-classifier.json").preprocess
    run = evaluate.onnx_session(_features(model, last.input[0]))
    drawn = [draw.picture(seed, index) for index in range(count)]
    inputs = [run(prepare(Image.fromarray(pixels), preprocess))[0] for pixels, _ in drawn]
    features = np.concatenate(inputs).astype(np.float64)
    wanted = np.eye(len(bias))[[label for _, label in drawn]]
    for _ in range(_STEPS):
        slope = (softmax(features @ weight.T + bias) - wanted) / count
        weight -= _RATE * (slope.T @ features + _DECAY * weight)
        bias -= _RATE * slope.sum(axis=0)

    for name, values in zip(last.input[1:], (weight, bias), strict=True):
        stored[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    write_atomic(output, model.SerializeToString(deterministic=True))


def _features(model: onnx.ModelProto, name: str) -> bytes:
    """The same network, giving the value ``name`` instead of its output."""
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.output[:]
    cut.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    data: bytes = cut.SerializeToString()
    return data


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m controller.zoo.retrain", description="Retrain the last layer.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args(argv)
    retrain(card.FOLDER / "shapes-classifier.onnx", chosen.output, seed=chosen.seed)


if __name__ == "__main__":
    main()
