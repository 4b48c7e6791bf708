"""The zoo: names, weights that are asked for and said out loud, and everything a weights file can do wrong."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision

from controller import zoo
from controller.home import Home
from controller.zoo import card, networks, resnet, weights
from targets import pt2_model
from targets.base import FleetError, TensorSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def _fails(code: str, *words: str, do: Callable[[], object]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        do()
    said = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == code
    assert all(word in said for word in words), said
    return caught.value


# --- The registry -------------------------------------------------------------------------------


def test_every_network_is_described_with_its_weights() -> None:
    gluon = [f"resnet{name}" for name in ("101_v2", "18_v1", "18_v2", "34_v1", "34_v2", "50_v2")]
    torchvisions = [*(f"resnet{depth}" for depth in (18, 34, 50, 101)), "mobilenet_v2"]
    detectors = [f"ssd300_{backbone}" for backbone in ("resnet34", "resnet50", "vgg16")]
    detectors += [
        f"ssd_512_{backbone}_{data}" for backbone in ("resnet50_v1", "mobilenet1.0") for data in ("voc", "coco")
    ]
    detectors += ["ssd_512_resnet101_v2_voc", "ssd_300_vgg16_atrous_voc", "ssd_512_vgg16_atrous_coco"]
    detectors += ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"]
    own = ["shapes-classifier", "shapes-ssd"]
    assert zoo.names() == sorted([*torchvisions, "mobilenet1.0", *gluon, *detectors, *own])
    assert "random:SEED" in zoo.describe("resnet18")
    _fails("unknown-model", "resnet19", "shapes-ssd", do=lambda: zoo.describe("resnet19"))


@pytest.mark.parametrize("name", ["shapes-classifier", "shapes-ssd"])
def test_committed_networks_need_no_torch_and_are_what_their_cards_say(
    name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    source = zoo.source(name, "", home)
    assert source.origin == f"zoo:{name} weights=committed"
    data = Path(source.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == source.sha256
    assert len(data) < 2_000_000
    model = onnx.load(source.path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert str(ROOT).encode() not in data and b"site-packages" not in data, "nothing about the machine it was made on"
    assert (
        source.inputs[0].layout == "NCHW" and source.preprocess and source.inputs[0].shape[2:] == source.preprocess.size
    )
    assert len(source.labels) == 12
    if name == "shapes-ssd":
        assert source.postprocess and source.outputs == (
            TensorSpec("locations", (1, len(source.postprocess.anchors), 4), "float32"),
            TensorSpec("logits", (1, len(source.postprocess.anchors), 13), "float32"),
        )


def test_a_committed_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    for suffix in (".json", ".onnx"):
        data = (card.FOLDER / f"shapes-classifier{suffix}").read_bytes()
        (tmp_path / f"shapes-classifier{suffix}").write_bytes(data)
    path = tmp_path / "shapes-classifier.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    _fails("bad-model", "SHA-256 differs", do=lambda: card.read(tmp_path / "shapes-classifier.json"))
    path.unlink()
    _fails("bad-model", "shapes-classifier.json", do=lambda: card.read(tmp_path / "shapes-classifier.json"))
    (tmp_path / "shapes-classifier.json").write_text('{"name": 3}')
    _fails("bad-model", "cannot read", do=lambda: card.read(tmp_path / "shapes-classifier.json"))


def test_without_torch_the_error_says_how_to_get_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    _fails("torch-missing", "make setup", "fleet-edge[torch]", do=lambda: zoo.source("resnet18", "random:0", home))


# --- What --weights takes -----------------------------------------------------------------------


def test_no_weights_are_never_taken_for_some(home: Home) -> None:
    _fails("bad-weights", "pretrained", "random:SEED", ".pth", do=lambda: zoo.source("resnet18", "", home))


@pytest.mark.parametrize("text", ["random:", "random:-1", "random:x", "random:1.5", "random:٣", f"random:{1 << 63}"])
def test_a_seed_is_a_whole_number(text: str, home: Home) -> None:
    _fails("bad-weights", "seed", "random:SEED", do=lambda: zoo.source("resnet18", text, home))


@pytest.mark.parametrize("text", ["absent.pth", "committed", "Pretrained", "."])
def test_what_is_no_choice_is_refused_with_the_choices(text: str, home: Home) -> None:
    _fails("bad-weights", text, "pretrained", do=lambda: zoo.source("resnet18", text, home))


def _outputs(path: str, *inputs: torch.Tensor) -> Any:
    with torch.no_grad():
        return pt2_model.read(Path(path)).load().module()(*inputs)


def _drawn(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet.build("resnet18").eval()


def test_resnet18_is_torchvisions_with_the_same_weights(home: Home, tmp_path: Path) -> None:
    source = zoo.source("resnet18", "random:5", home)
    assert source.origin == "zoo:resnet18 weights=random:5"
    # The batch is open: a build's option says what it is.
    assert (source.inputs[0].shape, source.outputs[0].shape) == ((-1, 3, 224, 224), (-1, 1000))
    assert (len(source.labels), source.labels[0], source.labels[-1]) == (1000, "tench", "toilet tissue")

    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(_drawn(5).state_dict())
    image = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(_outputs(source.path, image), theirs(image), rtol=1e-4, atol=1e-4)

    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    mine = zoo.source("resnet18", str(tmp_path / "mine.pth"), home)
    assert mine.origin == "zoo:resnet18 weights=file:mine.pth"
    torch.testing.assert_close(_outputs(mine.path, image), theirs(image), rtol=1e-4, atol=1e-4)


def test_a_source_is_made_once_and_the_same_each_time(home: Home, tmp_path: Path) -> None:
    first = zoo.source("shapes-classifier", "random:1", home)
    made = Path(first.path).stat().st_mtime_ns
    assert zoo.source("shapes-classifier", "random:1", home) == first
    assert Path(first.path).stat().st_mtime_ns == made
    elsewhere = zoo.source("shapes-classifier", "random:1", Home.find(tmp_path / "elsewhere"))
    assert elsewhere.sha256 == first.sha256, "equal networks are equal files, wherever they were made"
    assert zoo.source("shapes-classifier", "random:2", home).sha256 != first.sha256


def test_a_seed_is_not_felt_outside(home: Home) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    zoo.source("shapes-classifier", "random:9", home)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_file_of_weights_may_be_wrapped_as_training_scripts_do(
    wrapper: str | None, tmp_path: Path, home: Home
) -> None:
    torch.manual_seed(3)
    network = networks.ShapesClassifier().eval()
    state: dict[str, Any] = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 7}, tmp_path / "w.pth")
    source = zoo.source("shapes-classifier", str(tmp_path / "w.pth"), home)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(_outputs(source.path, image), network(image), rtol=1e-5, atol=1e-5)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, home: Home) -> None:
    mark = tmp_path / "ran"
    torch.save({"fc.weight": _Evil(mark)}, tmp_path / "evil.pth")
    torch.save(networks.ShapesClassifier(), tmp_path / "whole.pth")
    for name in ("evil.pth", "whole.pth"):
        path = str(tmp_path / name)
        _fails(
            "bad-weights",
            name,
            "run code",
            "state_dict",
            do=lambda path=path: zoo.source("shapes-classifier", path, home),
        )
    assert not mark.exists()


def test_files_that_are_no_weights_say_so(tmp_path: Path, home: Home) -> None:
    torch.save(networks.ShapesClassifier().state_dict(), tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
    said = {"list.pth": "no state dict", "nothing.pth": "no state dict"}
    for name in ("list.pth", "nothing.pth", "text.pth", "empty.pth", "cut.pth"):
        path = str(tmp_path / name)
        words = said.get(name, "no PyTorch weights file")
        _fails("bad-weights", name, words, do=lambda path=path: zoo.source("shapes-classifier", path, home))


def test_weights_that_do_not_fit_are_named(tmp_path: Path, home: Home) -> None:
    state = networks.ShapesClassifier().state_dict()
    wrong = {
        "fc.weight is (5, 128), the network's is (12, 128)": {**state, "fc.weight": torch.zeros(5, 128)},
        "lacks fc.bias": {name: tensor for name, tensor in state.items() if name != "fc.bias"},
        "has head, which the network does not": {**state, "head": torch.zeros(1)},
        "fc.bias holds values that are no finite numbers": {**state, "fc.bias": torch.full((12,), torch.nan)},
    }
    path = tmp_path / "wrong.pth"
    for words, content in wrong.items():
        torch.save(content, path)
        _fails("bad-weights", "wrong.pth", words, do=lambda: zoo.source("shapes-classifier", str(path), home))
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    _fails("bad-weights", "more", do=lambda: zoo.source("shapes-classifier", str(path), home))


def test_an_own_onnx_file_must_take_and_give_the_same(tmp_path: Path, home: Home) -> None:
    own = onnx.load(card.FOLDER / "shapes-classifier.onnx")
    bias = next(tensor for tensor in own.graph.initializer if tensor.name == own.graph.node[-1].input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(12, np.float32), bias.name))
    path = tmp_path / "own.onnx"
    onnx.save(own, path)
    source = zoo.source("shapes-classifier", str(path), home)
    assert (source.origin, source.format) == ("zoo:shapes-classifier weights=file:own.onnx", "onnx")
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    _fails("bad-weights", "no shapes-ssd", "[1, 3, 64, 64]", do=lambda: zoo.source("shapes-ssd", str(path), home))
    onnx.save(own, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    _fails("bad-weights", "other files", do=lambda: zoo.source("shapes-classifier", str(tmp_path / "apart.onnx"), home))


# --- Downloads ----------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A real HTTP server: its address, what it serves by path, and the requests it had."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", files, asked
        running.shutdown()
        thread.join()


def test_a_download_is_checked_and_kept(server: tuple[str, dict[str, bytes], list[str]], home: Home) -> None:
    address, files, asked = server
    data = os.urandom(3_000_000)
    sha = hashlib.sha256(data).hexdigest()
    files["/net.pth"] = data
    path = weights.download(f"{address}/net.pth", sha, len(data), home)
    assert path.read_bytes() == data
    assert weights.download(f"{address}/net.pth", sha, len(data), home) == path
    assert asked == ["/net.pth"], "the second time it comes from the cache"

    for name, served, words in (
        ("cut", data[:-1], "ended after"),
        ("long", data + b"x", "longer than"),
        ("other", data[:-1] + bytes([data[-1] ^ 1]), "SHA-256"),
    ):
        files[f"/{name}"] = served
        _fails(
            "download-failed",
            words,
            "--weights FILE",
            do=lambda n=name: weights.download(f"{address}/{n}", sha, len(data), home),
        )
    _fails("download-failed", "404", do=lambda: weights.download(f"{address}/absent", sha, len(data), home))
    assert [entry.name for entry in path.parent.iterdir()] == ["net.pth"], "nothing half-done is left"


def test_offline_pretrained_weights_fail_and_nothing_takes_their_place(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    changed = resnet.PRETRAINED["resnet18"]._replace(url="http://127.0.0.1:9/resnet18-f37072fd.pth")
    monkeypatch.setitem(resnet.PRETRAINED, "resnet18", changed)
    _fails("download-failed", "127.0.0.1:9", "--weights FILE", do=lambda: zoo.source("resnet18", "pretrained", home))
    assert not (home.cache / "zoo").exists()


def test_a_digest_may_be_its_first_digits_of_a_known_algorithm(
    server: tuple[str, dict[str, bytes], list[str]], home: Home
) -> None:
    address, files, _ = server
    data = os.urandom(100_000)
    for name, digest in (("a", hashlib.sha256(data).hexdigest()[:8]), ("b", f"sha1:{hashlib.sha1(data).hexdigest()}")):
        files[f"/{name}"] = data
        known = weights.Pretrained(f"{address}/{name}", digest, 0)
        assert weights.fetch(known, home).read_bytes() == data
        files[f"/{name}-cut"] = data[:-1]
        cut = known._replace(url=f"{known.url}-cut")
        words = "SHA-1 " if name == "b" else "SHA-256 "
        _fails("download-failed", words, "--weights FILE", do=lambda cut=cut: weights.fetch(cut, home))


@pytest.mark.parametrize("name", sorted(resnet.PRETRAINED))
def test_known_files_are_those_that_torchvision_names(name: str) -> None:
    theirs = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    known = resnet.PRETRAINED[name]
    assert known.url == theirs.url
    assert known.digest.startswith(theirs.url.rsplit("-", 1)[1].removesuffix(".pth"))
    assert not known.size or round(known.size / 2**20, 3) == theirs.meta["_file_size"]
    assert known.licence == "BSD-3-Clause"


def test_pretrained_weights_are_taken_as_they_come(
    server: tuple[str, dict[str, bytes], list[str]], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of our own in the place of the real one, which is not for a test to download.
    address, files, _ = server
    torch.manual_seed(8)
    network = torchvision.models.resnet18(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    files["/w.pth"] = (tmp_path / "w.pth").read_bytes()
    served = weights.Pretrained(f"{address}/w.pth", hashlib.sha256(files["/w.pth"]).hexdigest(), len(files["/w.pth"]))
    monkeypatch.setitem(resnet.PRETRAINED, "resnet18", served)
    source = zoo.source("resnet18", "pretrained", home)
    assert source.origin == "zoo:resnet18 weights=pretrained"
    image = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(_outputs(source.path, image), network(image), rtol=1e-5, atol=1e-5)
