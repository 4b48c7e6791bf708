"""GluonCV's and MXNet's own networks, to compare with and to race: a process that answers JSON, line by line.

It runs in the environment that scripts/originals.sh makes, and knows nothing of this project. Each request is one line
on standard input, each answer one on standard output, ``{"error": …}`` if it went wrong:

``{"do": "make", "network": NAME, "seed": 0, "params": FILE}``
    random weights, written as ``save_parameters`` writes them; the network stays loaded. With ``"counted": FILE`` also
    as older versions of MXNet wrote them, whose names count what was made.
``{"do": "load", "network": NAME, "params": FILE}``
``{"do": "run", "inputs": FILE.npz, "outputs": FILE.npz}``
    ``images`` (N, 3, H, W) float32 → of a detector ``ids``, ``scores`` (N, M, 1), ``boxes`` (N, M, 4) in pixels, -1
    where there is none, and what its dense part gives, ``class_logits`` and ``offsets``; of a classifier ``logits``.
``{"do": "time", "inputs": FILE.npz, "repeats": 1}``
    seconds of each run, hybridised.
"""

import json
import os
import re
import sys
import time
import warnings
import zlib

warnings.filterwarnings("ignore")
# MXNet prints; what it prints must not come between the answers.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import gluoncv  # noqa: E402
import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402

#: Deviation of the logits, and by how much the background is ahead: so that many boxes of many classes are found.
LOGITS, BACKGROUND = 2.0, 4.0
OFFSETS = 0.7


def build(name):
    """GluonCV's detectors; MXNet's own classifiers, of which GluonCV has copies."""
    if name.startswith("ssd_"):
        return gluoncv.model_zoo.get_model(name, pretrained=False, pretrained_base=False)
    return mx.gluon.model_zoo.vision.get_model(name, pretrained=False)


def side(name):
    return int(name.split("_")[1]) if name.startswith("ssd_") else 224


def draw(name, values, seed):
    """New values for a parameter, the same for the same seed and name."""
    # A number in a prefix counts the networks of the process: it says nothing.
    name = re.sub(r"(resnetv[12]|mobilenet)\d+_", r"\1_", name)
    random = np.random.RandomState([seed, zlib.crc32(name.encode())])
    shape = values.shape
    if name.endswith("anchors") or name.endswith("init_scale"):
        return None
    if name.endswith("weight"):
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    if name.endswith("gamma"):
        return random.uniform(0.6, 1.4, shape)
    if name.endswith("var"):
        return random.uniform(0.6, 1.6, shape)
    if name.endswith("scale"):
        return random.uniform(10, 30, shape)
    return random.normal(0, 0.2, shape)


def rescale(layer, output, wanted, bias):
    """Make a last layer's values deviate by ``wanted`` from the ``bias``."""
    weight = layer.weight.data()
    layer.weight.set_data(weight * (wanted / float(output.asnumpy().std())))
    layer.bias.set_data(mx.nd.array(bias))


def make(name, seed, path, counted):
    network = build(name)
    network.initialize()
    image = mx.nd.array(np.random.RandomState(seed).normal(0, 1, (2, 3, side(name), side(name))))
    network(image)
    for key, parameter in network._collect_params_with_prefix().items():
        # MXNet leaves these out of the first batch norm of its v2 ResNets, and adds them nevertheless.
        drawn = None if parameter.grad_req == "null" and key.endswith("beta") else draw(key, parameter.data(), seed)
        if drawn is not None:
            parameter.set_data(mx.nd.array(drawn))
    if name.startswith("ssd_"):
        maps = network.features(image)
        random = np.random.RandomState(seed + 1)
        for each, classes, boxes in zip(maps, network.class_predictors, network.box_predictors, strict=True):
            layer = classes.predictor
            bias = random.normal(0, 0.5, layer.bias.shape)
            bias.reshape(-1, len(network.classes) + 1)[:, 0] += BACKGROUND
            rescale(layer, classes(each), LOGITS, bias)
            rescale(boxes.predictor, boxes(each), OFFSETS, random.normal(0, 0.5, boxes.predictor.bias.shape))
    else:
        rescale(network.output, network(image), LOGITS, network.output.bias.data().asnumpy())
    network.save_parameters(path)
    if counted:
        network.collect_params().save(counted)


def load(name, path):
    network = build(name)
    network.load_parameters(path)
    return network


def joined(maps, predictors, values):
    """What predictors give of their maps: (N, boxes, values)."""
    each = [predictor(one).transpose((0, 2, 3, 1)).flatten() for one, predictor in zip(maps, predictors, strict=True)]
    return mx.nd.concat(*each, dim=1).reshape((0, -1, values)).asnumpy()


def run(network, images):
    images = mx.nd.array(images)
    if not hasattr(network, "class_predictors"):
        return {"logits": network(images).asnumpy()}
    ids, scores, boxes = (each.asnumpy() for each in network(images))
    maps = network.features(images)
    return {
        "ids": ids,
        "scores": scores,
        "boxes": boxes,
        "class_logits": joined(maps, network.class_predictors, len(network.classes) + 1),
        "offsets": joined(maps, network.box_predictors, 4),
    }


def seconds(network, images, repeats):
    images = mx.nd.array(images)
    found = []
    for _ in range(repeats):
        mx.nd.waitall()
        start = time.perf_counter()
        outputs = network(images)
        for each in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            each.wait_to_read()
        found.append(time.perf_counter() - start)
    return found


class Server:
    def __init__(self):
        self.network = None

    def answer(self, request):
        do = request["do"]
        if do in ("make", "load"):
            if do == "make":
                make(request["network"], request["seed"], request["params"], request.get("counted"))
            self.network = load(request["network"], request["params"])
            self.network.hybridize(static_alloc=True, static_shape=True)
            return {"classes": list(getattr(self.network, "classes", ()))}
        with np.load(request["inputs"]) as given:
            images = given["images"]
        if do == "run":
            outputs = run(self.network, images)
            np.savez(request["outputs"], **outputs)
            return {"shapes": {name: list(value.shape) for name, value in outputs.items()}}
        if do == "time":
            return {"seconds": seconds(self.network, images, request.get("repeats", 1))}
        raise ValueError(f"nothing is called {do!r}")


def main():
    server = Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


main()
