"""What integers cost: the committed classifier on the simulated accelerator, beside the float network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from build_fixtures import home_with_tools
from PIL import Image

from controller import zoo
from controller.build import BuildRequest, build
from controller.home import Home
from controller.zoo import card, draw, evaluate
from targets.base import Option
from targets.pictures.prepare import prepare

#: Neither what the network was trained on, nor what its card was measured with, nor what it is calibrated on.
UNSEEN = 2003
COUNT = 1200
BATCHED = "4x8_i8w8a32_15_16_16_18"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    # The same for every test that links, and every worker: making it takes seconds.
    zig = tmp_path_factory.getbasetemp().parent / "fleet-test-zig"
    return home_with_tools(tmp_path_factory.mktemp("home"), zig)


@pytest.fixture(scope="module")
def expected(home: Home) -> npt.NDArray[np.float32]:
    """Scores of the float network, by ONNX Runtime."""
    found = card.read(card.FOLDER / "shapes-classifier.json")
    run = evaluate.onnx_session(card.FOLDER / found.file)
    drawn = (draw.picture(UNSEEN, index)[0] for index in range(COUNT))
    return np.concatenate([run(prepare(Image.fromarray(pixels), found.preprocess))[0] for pixels in drawn])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"first_conv": True, "dense": True, "weights": "block"}, id="all-on-the-accelerator"),
        pytest.param({"config": BATCHED, "batch": 4, "activations": "minmax"}, id="batched"),
    ],
)
def test_the_classifier_loses_at_most_a_point(
    options: dict[str, Option], home: Home, expected: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    source = zoo.source("shapes-classifier", "", home)
    (built,) = build([BuildRequest(source, "vta-sim", options)], home=home)
    assert built.error is None, built.error
    assert built.manifest is not None and built.manifest.requirements.accelerator
    (tmp_path / "manifest.json").write_bytes(built.manifest_bytes)
    script = Path(__file__).with_name("run_pictures.py")
    arguments = [home.cache, tmp_path / "manifest.json", UNSEEN, COUNT, tmp_path / "scores.npy"]
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scores = np.load(tmp_path / "scores.npy")
    assert scores.shape == expected.shape and np.isfinite(scores).all()

    labels = np.arange(COUNT) % len(source.labels)
    in_float, in_integers = (float(np.mean(found.argmax(axis=1) == labels)) for found in (expected, scores))
    assert in_float > 0.97
    assert in_integers >= in_float - 0.01
    assert np.mean(scores.argmax(axis=1) == expected.argmax(axis=1)) > 0.98
    # It is the network in integers, not the float one in disguise.
    assert not np.allclose(scores, expected, rtol=1e-5, atol=1e-5)
