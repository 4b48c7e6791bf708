"""Models that a person's own Python function makes, and what a ``.pt2`` file says of itself."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from controller import sources
from controller.home import Home
from controller.inventory import InventoryError
from controller.inventory_file import check
from controller.zoo import described, draw, entry, initial
from targets import pt2_model
from targets.base import FleetError, ModelError, Preprocess
from targets.pictures import prepare

HEADER = "import torch\nfrom torch import nn\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes modules into the current folder; they are forgotten afterwards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = set(sys.modules)

    def write(name: str, code: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    yield write
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _fails(model: str, home: Home, code: str, *words: str, **options: str) -> None:
    with pytest.raises(FleetError) as caught:
        sources.resolve(model, home=home, **options)
    said = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == code
    assert all(word in said for word in words), said


def _rcnn() -> Any:
    backbone = torchvision.models.mobilenet_v2(weights=None).features[:4]
    backbone.out_channels = 24
    anchors = AnchorGenerator(sizes=((12, 24),), aspect_ratios=((0.5, 1.0),))
    return FasterRCNN(
        backbone,
        num_classes=4,
        min_size=64,
        max_size=100,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=5,
    )


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("nets:make", True),
        ("my.package.nets:make", True),
        ("nets:make@300,pasted", True),
        ("nets", False),
        ("nets:", False),
        (":make", False),
        ("nets:make()", False),
        ("my-net:make", False),
        ("tcp://host:80", False),
        ("folder/nets.py:make", False),
    ],
)
def test_what_is_a_function(text: str, whether: bool) -> None:
    assert entry.is_entry(text) is whether


# --- Functions --------------------------------------------------------------------------------------


def test_a_module_and_its_examples_become_a_model(
    written: Callable[..., None], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    written("entry_pack/__init__.py", "")
    written(
        "entry_pack/nets.py",
        f"{HEADER}print('a word for the person')\n"
        "def make():\n    torch.manual_seed(0)\n    net = nn.Conv2d(3, 4, 3)\n    net.labels = ['a', 'b', 'c', 'd']\n"
        "    return net, (torch.zeros(2, 3, 8, 8),)\n"
        "def one():\n    return nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)\n",
    )
    path = list(sys.path)
    source = sources.resolve("entry_pack.nets:make", home=home)
    assert (source.name, source.origin, source.labels) == ("make", "python:entry_pack.nets:make", ("a", "b", "c", "d"))
    assert (source.inputs[0].shape, source.outputs[0].shape) == ((-1, 3, 8, 8), (-1, 4, 6, 6))
    program = pt2_model.read(Path(source.path)).load().module()
    torch.manual_seed(0)
    expected = torch.nn.Conv2d(3, 4, 3)
    for batch in (1, 3):
        image = torch.rand(batch, 3, 8, 8)
        torch.testing.assert_close(program(image), expected(image))
    assert sources.resolve("entry_pack.nets:one", home=home).inputs[0].shape == (1, 3, 8, 8), "a batch of 1 stays it"
    assert sources.resolve("entry_pack.nets:make", home=home).sha256 == source.sha256
    said = capsys.readouterr()
    assert not said.out and "a word for the person" in said.err
    assert sys.path == path


def test_a_function_that_is_not_there_or_fails_is_named(written: Callable[..., None], home: Home) -> None:
    written(
        "entry_bad.py",
        f"{HEADER}number = 3\n"
        "def raises():\n    return 1 / 0\n"
        "def leaves():\n    raise SystemExit('no weights here')\n"
        "def nothing():\n    return [1]\n"
        "def bare():\n    return nn.ReLU()\n"
        "def labelled():\n    net = nn.ReLU()\n    net.labels = 'cat'\n    return net, (torch.zeros(2, 3),)\n",
    )
    written("entry_broken.py", "import absent_thing\n")
    written("entry_wrong.py", "def make(:\n")
    _fails("entry_absent.part:make", home, "unknown-model", "no Python module 'entry_absent'", str(Path.cwd()))
    _fails("entry_bad.part:make", home, "unknown-model", "no Python module 'entry_bad.part'")
    _fails("entry_bad:make", home, "unknown-model", "no function 'make'", "raises")
    _fails("entry_bad:number", home, "unknown-model", "no function 'number'")
    _fails("entry_broken:make", home, "bad-model", "No module named 'absent_thing'", "line 1 of entry_broken.py")
    _fails("entry_wrong:make", home, "bad-model", "importing entry_wrong failed", "SyntaxError")
    _fails("entry_bad:raises", home, "bad-model", "ZeroDivisionError", "line 5 of entry_bad.py: `return 1 / 0`")
    _fails("entry_bad:leaves", home, "bad-model", "no weights here")
    _fails("entry_bad:nothing", home, "bad-model", "returned list", "torch.nn.Module")
    _fails("entry_bad:bare", home, "bad-model", "ReLU", "example inputs")
    _fails("entry_bad:labelled", home, "bad-model", "labels", "list of strings")
    _fails("entry_bad:bare@300", home, "bad-model", "ReLU has one size")
    _fails("entry_bad:bare@large", home, "unknown-model", "'large' is no variant of bare")
    _fails("entry_bad:bare", home, "bad-option", "random:0", weights="random:0")


def test_what_cannot_be_exported_is_named_with_its_line(
    written: Callable[..., None], home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    written(
        "entry_dynamic.py",
        f"{HEADER}import numpy as np\n"
        "class Branch(nn.Module):\n    def forward(self, x):\n        if x.sum() > 0:\n            return x\n"
        "        return -x\n"
        "class Numbers(nn.Module):\n    def forward(self, x):\n        return torch.from_numpy(np.sin(x.numpy()))\n"
        "def branch():\n    return Branch(), (torch.zeros(2, 3),)\n"
        "def numbers():\n    return Numbers(), (torch.zeros(2, 3),)\n"
        "def unknown():\n    return nn.RNN(2, 2), (torch.zeros(2, 2, 2).bool(),)\n",
    )
    _fails("entry_dynamic:branch", home, "bad-model", "Branch", "line 6 of entry_dynamic.py: `if x.sum() > 0:`")
    _fails("entry_dynamic:numbers", home, "bad-model", "Numbers", "line 11 of entry_dynamic.py")
    _fails("entry_dynamic:unknown", home, "bad-model", "RNN")
    assert "Unable to find user code" not in capfd.readouterr().err, "torch's own pages are not for the person"


def test_other_detectors_of_torchvision_are_named(written: Callable[..., None], home: Home) -> None:
    written(
        "entry_retina.py",
        "from torchvision.models.detection import retinanet_resnet50_fpn\n"
        "def make():\n    return retinanet_resnet50_fpn(weights=None, weights_backbone=None)\n",
    )
    _fails("entry_retina:make", home, "bad-model", "RetinaNet", "MaskRCNN")


def test_fleet_yaml_may_name_a_function(tmp_path: Path) -> None:
    text = "models:\n  mine:\n    file: nets:make\n    labels: [a]\n"
    assert check(tmp_path / "fleet.yaml", text).models["mine"].file == "nets:make"
    with pytest.raises(InventoryError, match="no file"):
        check(tmp_path / "fleet.yaml", text.replace("nets:make", "nets:make()"))


# --- Detectors ---------------------------------------------------------------------------------------


def test_a_detectors_file_says_how_it_is_used(tmp_path: Path, home: Home) -> None:
    network = _rcnn()
    path = entry.export_detector(network, tmp_path / "mine.pt2", size=(60, 80), labels=["cup", "pen", "key"])
    source = sources.resolve(str(path), home=home)
    assert (source.name, source.origin, source.labels) == ("mine", "file:mine.pt2", ("cup", "pen", "key"))
    assert [(spec.name, spec.shape) for spec in source.inputs] == [("images", (-1, 3, 64, 96)), ("sizes", (-1, 2))]
    assert [spec.name for spec in source.outputs] == ["boxes", "scores", "labels", "count"]
    assert source.preprocess and (source.preprocess.size, source.preprocess.resize) == ((60, 80), "fit")
    assert source.postprocess and source.postprocess.kind == "detections" and source.postprocess.max_boxes == 5
    assert source.sha256 == sources.resolve(str(path), home=home).sha256
    entry.export_detector(network, tmp_path / "square.pt2", size=70)
    entry.export_detector(network, tmp_path / "own.pt2")
    for name, size in (("square", (70, 70)), ("own", (64, 64))):
        preprocess = sources.resolve(str(tmp_path / f"{name}.pt2"), home=home).preprocess
        assert preprocess is not None and preprocess.size == size
    with pytest.raises(ModelError, match="example inputs"):
        entry.export_detector(torch.nn.ReLU(), tmp_path / "no.pt2")
    with pytest.raises(FleetError, match="cannot store"):
        entry.export_detector(network, tmp_path / "absent" / "no.pt2")


def test_torchvisions_ssds_find_what_they_found(tmp_path: Path, home: Home) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6).eval()
        initial.draw(network)
        # Scores that are not all next to 1 have one order.
        for parameter in network.head.classification_head.parameters():
            parameter.data.mul_(0.3)
    path = entry.export_detector(network, tmp_path / "lite.pt2")
    source = sources.resolve(str(path), home=home)
    assert source.preprocess and source.preprocess.size == (320, 320)
    program = pt2_model.read(path).load().module()
    picture = Image.fromarray(draw.scene(4, 0, count=6).picture).resize((200, 150))
    spec = msgspec.structs.replace(source.inputs[0], shape=(1, 3, 320, 320))
    images = prepare.batch([picture], source.preprocess, [spec])
    with torch.no_grad():
        boxes, scores, labels, count = program(*(torch.from_numpy(array) for array in images))
        (expected,) = network([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255])
    assert int(count) == len(expected["labels"]) >= 5
    assert labels[0, : int(count)].tolist() == (expected["labels"] - 1).tolist()
    torch.testing.assert_close(scores[0, : int(count)], expected["scores"], rtol=1e-4, atol=1e-6)
    scale = torch.tensor([200 / 320, 150 / 320] * 2)
    torch.testing.assert_close(boxes[0, : int(count)] * scale, expected["boxes"], rtol=1e-4, atol=1e-3)


def test_ssds_that_find_otherwise_are_refused(tmp_path: Path) -> None:
    class Own(torchvision.models.detection.ssd.SSD):  # type: ignore[misc]
        def postprocess_detections(self, *given: Any) -> Any:
            return super().postprocess_detections(*given)

    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6)
    network.__class__ = Own
    with pytest.raises(ModelError, match=r"postprocess_detections\(\) is its own"):
        entry.export_detector(network, tmp_path / "no.pt2")
    network.__class__ = torchvision.models.detection.ssd.SSD
    network.transform.fixed_size = None
    with pytest.raises(ModelError, match="no fixed_size"):
        entry.export_detector(network, tmp_path / "no.pt2")


# --- Descriptions that were written by others ---------------------------------------------------------


def _with_description(path: Path, text: bytes) -> Path:
    """A copy of a ``.pt2`` file with another description."""
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for item in old.infolist():
            new.writestr(item, text if item.filename.endswith(f"/extra/{described.MEMBER}") else old.read(item))
    return other


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return entry.export_detector(_rcnn(), tmp_path_factory.mktemp("pt2") / "mine.pt2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "cannot be read"),
        (b'{"labels": 3}', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"outputs": ["boxes"]}', "names 1 outputs, the program has 4"),
        (b'{"outputs": ["a", "a", "b", "c"]}', "names 4 outputs"),
        (b'{"preprocess": {"size": [10, 10]}}', "prepares pictures as 3×10×10, the program takes 3×64×64"),
        (json.dumps({"labels": ["x" * (17 << 20)]}).encode(), "larger than 16 MiB"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(text: bytes, words: str, detector: Path, home: Home) -> None:
    _fails(str(_with_description(detector, text)), home, "bad-model", words)


def test_a_file_without_a_description_is_a_model_too(tmp_path: Path, home: Home) -> None:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 3),)), buffer)
    (tmp_path / "plain.pt2").write_bytes(buffer.getvalue())
    source = sources.resolve(str(tmp_path / "plain.pt2"), home=home)
    assert (source.preprocess, source.postprocess, source.labels) == (None, None, ())
    assert described.read(tmp_path / "plain.pt2", pt2_model.read(tmp_path / "plain.pt2")) == described.Description()


def test_a_description_comes_back_as_it_was() -> None:
    about = described.Description(Preprocess((3, 4)), None, ("ä", "b"), ("x",))
    assert msgspec.json.decode(about.text(), type=described.Description) == about
