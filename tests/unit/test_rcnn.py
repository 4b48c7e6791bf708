"""R-CNNs as programs of fixed shapes find what torchvision's own find: same boxes, same order, same masks."""

from __future__ import annotations

import hashlib
import http.server
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN, faster_rcnn, image_list
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from controller import zoo
from controller.home import Home
from controller.zoo import draw, export, rcnn, rcnn_initial, rcnn_parts, torchvision_detectors, weights
from targets import pt2_model
from targets.base import FleetError, ModelError
from targets.pictures import prepare

RTOL = 1e-4


def _coco(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision_detectors.build(name)


def _fewer(name: str) -> Any:
    """COCO's network, with fewer proposals and detections than it has."""
    network = _coco(name)
    network.rpn._post_nms_top_n["testing"] = 200
    network.roi_heads.detections_per_img = 25
    return network


def _custom() -> Any:
    """Five classes, one feature map of MobileNet v2, an anchor generator, pools and thresholds of its own."""
    backbone = torchvision.models.mobilenet_v2(weights=None).features[:8]
    backbone.out_channels = 64
    return FasterRCNN(
        backbone,
        num_classes=5,
        min_size=96,
        max_size=96,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.3, 0.2, 0.1],
        rpn_anchor_generator=AnchorGenerator(sizes=((12, 24, 48),), aspect_ratios=((0.5, 1.0),)),
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_test=60,
        rpn_nms_thresh=0.8,
        rpn_score_thresh=0.5,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 3),
        box_score_thresh=0.15,
        box_nms_thresh=0.4,
        box_detections_per_img=40,
        bbox_reg_weights=(8.0, 6.0, 4.0, 3.0),
    )


def _pyramid() -> Any:
    """Masks over two levels of one pyramid, the mask head over one of them; a head with convolutions."""
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, returned_layers=[2, 3]
    )
    return MaskRCNN(
        backbone,
        num_classes=5,
        min_size=96,
        max_size=128,
        rpn_anchor_generator=AnchorGenerator(sizes=((16,), (32,), (64,)), aspect_ratios=((0.5, 1.0, 2.0),) * 3),
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=80,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=faster_rcnn.FastRCNNConvFCHead((256, 7, 7), [32], [1024]),
        mask_roi_pool=MultiScaleRoIAlign(["1"], 6, 2),
        box_score_thresh=0.15,
        box_detections_per_img=30,
    )


def _lively(make: Callable[[], Any]) -> Callable[[], Any]:
    """With weights that spread what the heads give."""

    def made() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = make().eval()
            for name, parameter in network.named_parameters():
                if name.startswith(("rpn.", "roi_heads.")) and parameter.ndim > 1:
                    torch.nn.init.kaiming_normal_(parameter)
                    rcnn_initial._centre(parameter.data)
            network.rpn.head.bbox_pred.weight.data.mul_(0.2)
        return network

    return made


class Case(NamedTuple):
    """A network, its canvas, and pictures' sizes in it."""

    make: Callable[[], Any]
    canvas: tuple[int, int]
    sizes: Sequence[tuple[int, int]]


CASES = {
    "maskrcnn": Case(lambda: _fewer("maskrcnn_resnet50_fpn"), (128, 128), ((128, 128), (80, 121))),
    "fasterrcnn": Case(lambda: _fewer("fasterrcnn_resnet50_fpn"), (96, 160), ((96, 150), (96, 40))),
    "custom": Case(_lively(_custom), (96, 96), ((96, 96), (50, 90))),
    "pyramid": Case(_lively(_pyramid), (96, 128), ((90, 128), (96, 60))),
}


class Found(NamedTuple):
    """What a network finds in one picture; labels from 0, masks within each box (M, S, S)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


class Parity(NamedTuple):
    """A case, its network as it is and as it is exported, and prepared pictures with what is in them."""

    case: Case
    network: Any
    whole: Any
    program: Any
    images: Tensor
    sizes: Tensor
    expected: list[Found]


def _pictures(network: Any, case: Case) -> Tensor:
    """Scenes and noise, normalised, in their canvas: two batches of two."""
    transform = network.transform
    images = torch.zeros(2 * len(case.sizes), 3, *case.canvas)
    for index, image in enumerate(images):
        height, width = case.sizes[index % len(case.sizes)]
        pixels = draw.scene(5, index, count=6).picture
        if index >= len(case.sizes):
            pixels = np.random.default_rng(index).integers(0, 256, (24, 24, 3), np.uint8)
        picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        image[:, :height, :width] = transform.normalize(torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255)
    return images


def _original(network: Any, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Found]:
    """What torchvision's own code finds in a batch that its transform would have made."""
    with torch.no_grad():
        features = network.backbone(images)
        features = {"0": features} if isinstance(features, Tensor) else features
        proposals, _ = network.rpn(image_list.ImageList(images, list(sizes)), features)
        # Levels are found out from the first pictures: these fill the canvas.
        for pool in (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool):
            if pool is not None:
                pool.scales = pool.map_levels = None
        detections, _ = network.roi_heads(features, proposals, list(sizes))
    return [
        Found(one["boxes"], one["scores"], one["labels"] - 1, one["masks"][:, 0] if "masks" in one else None)
        for one in detections
    ]


@pytest.fixture(scope="module", params=CASES)
def parity(request: pytest.FixtureRequest) -> Parity:
    case = CASES[request.param]
    network = case.make()
    images = _pictures(network, case)
    whole = rcnn.ExportableRcnn(network, case.canvas)
    given = torch.zeros(2, 3, *case.canvas), torch.tensor([case.canvas] * 2, dtype=torch.float32)
    path = request.getfixturevalue("tmp_path_factory").mktemp("rcnn") / "net.pt2"
    path.write_bytes(export.exported(whole, given))
    program = pt2_model.read(path).load().module()
    batches = [_original(network, two, case.sizes) for two in images.split(2)]
    sizes = torch.tensor([*case.sizes, *case.sizes], dtype=torch.float32)
    return Parity(case, network, whole, program, images, sizes, [one for batch in batches for one in batch])


def _found(outputs: Sequence[Tensor]) -> list[Found]:
    boxes, scores, labels, counts, *masks = outputs
    for tensor in (boxes, scores, labels, *masks):
        for picture, count in zip(tensor, counts, strict=True):
            assert not picture[count:].any(), "rows from the count on are zeros"
    return [
        Found(boxes[n, :count], scores[n, :count], labels[n, :count], masks[0][n, :count] if masks else None)
        for n, count in enumerate(counts.tolist())
    ]


def _same(found: Sequence[Found], expected: Sequence[Found]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.scores, other.scores, rtol=RTOL, atol=1e-7)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=RTOL, atol=1e-4)
        assert (one.masks is None) == (other.masks is None)
        if one.masks is not None and other.masks is not None:
            torch.testing.assert_close(one.masks, other.masks, rtol=RTOL, atol=1e-6)


def test_it_finds_what_torchvision_finds(parity: Parity) -> None:
    assert sum(len(one.labels) for one in parity.expected) >= 20, "something must be found to be compared"
    assert len({label for one in parity.expected for label in one.labels.tolist()}) >= 2
    with torch.no_grad():
        _same(_found(parity.whole(parity.images[:2], parity.sizes[:2])), parity.expected[:2])


def test_the_exported_program_finds_the_same_in_batches_of_one_and_two(parity: Parity) -> None:
    with torch.no_grad():
        for first in (0, 2):
            batch = slice(first, first + 2)
            _same(_found(parity.program(parity.images[batch], parity.sizes[batch])), parity.expected[batch])
        _same(_found(parity.program(parity.images[1:2], parity.sizes[1:2])), parity.expected[1:2])


def test_it_has_the_networks_own_parameters(parity: Parity) -> None:
    assert parity.whole.state_dict().keys() == parity.network.state_dict().keys()
    assert parity.whole.backbone is parity.network.backbone
    masks = ("masks",) if parity.expected[0].masks is not None else ()
    assert rcnn.outputs(parity.network) == ("boxes", "scores", "labels", "count", *masks)


def test_pasted_masks_are_torchvisions(parity: Parity) -> None:
    if parity.expected[0].masks is None:
        with pytest.raises(ModelError, match="no mask head"):
            rcnn.ExportableRcnn(parity.network, parity.case.canvas, pasted=True)
        return
    pasting = rcnn.ExportableRcnn(parity.network, parity.case.canvas, pasted=True)
    with torch.no_grad():
        outputs = pasting(parity.images[:2], parity.sizes[:2])
    assert (outputs[4].shape[2:], outputs[4].dtype) == (parity.case.canvas, torch.uint8)
    for ours, one in zip(_found(outputs), parity.expected, strict=False):
        assert ours.masks is not None and one.masks is not None
        mine = ours.masks >= 128
        theirs = paste_masks_in_image(one.masks[:, None], one.boxes, parity.case.canvas)[:, 0] >= 0.5
        together, both = (mine | theirs).sum((1, 2)), (mine & theirs).sum((1, 2))
        assert theirs.any() and (both >= 0.999 * together).all()


def test_whole_pictures_are_prepared_as_torchvision_does() -> None:
    """From the picture on: resizing, normalising and filling up are torchvision's too, and so is what is found."""
    network = _lively(_custom)()
    preprocess = rcnn.preprocess((90, 90), network)
    assert (preprocess.size, preprocess.canvas) == ((90, 90), (96, 96))
    network.transform.min_size, network.transform.max_size = (90,), 90
    network.transform.size_divisible = 96
    whole = rcnn.ExportableRcnn(network, preprocess.canvas)
    inputs = prepare_specs(preprocess.canvas)
    for index, size in enumerate(((128, 128), (150, 70))):
        picture = Image.fromarray(draw.scene(8, index, count=6).picture).resize(size)
        images, sizes = (torch.from_numpy(array) for array in prepare.batch([picture], preprocess, inputs))
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
        theirs, _ = network.transform([pixels])
        assert sizes.tolist() == [list(map(float, theirs.image_sizes[0]))]
        torch.testing.assert_close(images, theirs.tensors, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            (expected,) = network([pixels])
            (found,) = _found(whole(images, sizes))
        scale = torch.tensor([size[0] / theirs.image_sizes[0][1], size[1] / theirs.image_sizes[0][0]] * 2)
        boxes, scores, labels = expected["boxes"] / scale, expected["scores"], expected["labels"] - 1
        assert len(labels) >= 5
        _same([found], [Found(boxes, scores, labels, None)])


def prepare_specs(canvas: tuple[int, int]) -> tuple[Any, ...]:
    from targets.base import TensorSpec

    return TensorSpec("images", (1, 3, *canvas), "float32", "NCHW"), TensorSpec("sizes", (1, 2), "float32")


# --- What cannot be -------------------------------------------------------------------------------


class _OwnHeads(RoIHeads):  # type: ignore[misc]
    def postprocess_detections(self, *given: Any) -> Any:
        return super().postprocess_detections(*given)


def _broken(change: Callable[[Any], None]) -> Any:
    network = _custom().eval()
    change(network)
    return network


def _own_heads(network: Any) -> None:
    network.roi_heads.__class__ = _OwnHeads


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_own_heads, "roi_heads is a _OwnHeads, whose postprocess_detections() is its own"),
        (
            lambda net: setattr(net.roi_heads, "box_roi_pool", torch.nn.Identity()),
            "roi_heads.box_roi_pool is a Identity",
        ),
        (lambda net: setattr(net.roi_heads.box_roi_pool, "sampling_ratio", 0), "sampling_ratio=0"),
        (lambda net: setattr(net.roi_heads.box_roi_pool, "output_size", (5, 7)), "5×7 cells"),
        (lambda net: setattr(net.roi_heads.box_roi_pool, "featmap_names", ["p2"]), "on p2, the backbone has 0"),
        (lambda net: setattr(net.rpn, "box_coder", object()), "rpn.box_coder is a object"),
        (
            lambda net: setattr(net.rpn, "head", RPNHead(64, 3)),
            "makes 216 anchors, rpn.head takes 108",
        ),
    ],
)
def test_parts_that_compute_otherwise_are_named(change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        rcnn.ExportableRcnn(_broken(change), (96, 96))
    assert words in caught.value.message and caught.value.code == "bad-model"


def test_keypoints_and_other_networks_are_refused() -> None:
    with torch.device("meta"):
        keypoints = torchvision.models.get_model("keypointrcnn_resnet50_fpn", weights=None, weights_backbone=None)
        retina = torchvision.models.get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None)
    for network, words in ((keypoints, "keypoint"), (retina, "RetinaNet")):
        with pytest.raises(ModelError, match=words):
            rcnn_parts.check(network)


def test_levels_of_one_scale_are_not_taken_twice() -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    assert rcnn_parts.levels(pool, {"0": 1 / 32, "1": 1 / 32, "pool": 1 / 64}) == ["0"]
    assert rcnn_parts.levels(pool, {"0": 1 / 8, "1": 1 / 16, "2": 1 / 32, "pool": 1 / 64}) == ["0", "1", "2"]
    assert [rcnn_parts.scale(torch.Size((cells, 9)), (200, 300)) for cells in (50, 25, 13, 7)] == [
        1 / 4, 1 / 8, 1 / 16, 1 / 32
    ]  # fmt: skip
    with pytest.raises(ModelError, match="1/8, 1/32"):
        rcnn_parts.check_pool(pool, {"0": 1 / 8, "1": 1 / 32})


def test_a_threshold_that_is_just_reached_is_enough_for_a_proposal() -> None:
    for threshold in (0.05, 0.5, 1e-7):
        below = rcnn._just_below(threshold)
        assert np.float32(below) < np.float32(threshold) == np.nextafter(np.float32(below), np.float32(math.inf))
    assert rcnn._just_below(0.0) < 0


# --- The zoo --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def test_networks_of_the_zoo_say_how_they_are_used(home: Home) -> None:
    source = zoo.source("fasterrcnn_resnet50_fpn@72x100", "random:2", home)
    assert source.origin == "zoo:fasterrcnn_resnet50_fpn@72x100 weights=random:2"
    assert [(spec.name, spec.shape) for spec in source.inputs] == [("images", (-1, 3, 96, 128)), ("sizes", (-1, 2))]
    shapes = {"boxes": (-1, 100, 4), "scores": (-1, 100), "labels": (-1, 100), "count": (-1,)}
    assert {spec.name: spec.shape for spec in source.outputs} == shapes
    assert source.preprocess and (source.preprocess.size, source.preprocess.canvas) == ((72, 100), (96, 128))
    assert source.postprocess and source.postprocess.kind == "detections"
    assert (len(source.labels), source.labels[0], source.labels[-1]) == (90, "person", "toothbrush")
    state = pt2_model.read(Path(source.path)).load().state_dict
    theirs = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    theirs.load_state_dict(state)


def test_wrong_variants_and_weights_are_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="'pasted' is no variant of fasterrcnn"):
        zoo.source("fasterrcnn_resnet50_fpn@pasted", "random:0", home)
    with pytest.raises(FleetError, match="'3000' is no variant"):
        zoo.source("maskrcnn_resnet50_fpn@3000", "random:0", home)
    with pytest.raises(FleetError, match="no weights unless you choose"):
        zoo.source("maskrcnn_resnet50_fpn", "", home)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(FleetError) as caught:
        zoo.source("maskrcnn_resnet50_fpn@64", str(tmp_path / "other.pth"), home)
    assert caught.value.code == "bad-weights"
    assert "other.pth" in caught.value.message and "has bn1.bias, which the network does not" in caught.value.message


def test_files_of_before_have_their_parameters_renamed() -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    now = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    before = [
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("mask_head.3.0.", "mask_head.mask_fcn4.")
        for name in now
    ]
    assert "rpn.head.conv.weight" in before and "roi_heads.mask_head.mask_fcn4.bias" in before
    assert [torchvision_detectors._present_name(name) for name in before] == now
    assert [torchvision_detectors._present_name(name) for name in now] == now


def test_published_weights_are_taken_as_torchvision_takes_them() -> None:
    name = "fasterrcnn_resnet50_fpn"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ours = torchvision_detectors.build(name, published=True)
    # As torchvision builds it for its weights: frozen batch norms, whose eps it overwrites.
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
    ).eval()
    torchvision.models.detection._utils.overwrite_eps(theirs, 0.0)
    weights.fit(theirs, {k: v for k, v in ours.backbone.state_dict().items() if "num_batches" not in k}, "ours")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(ours.backbone(image).values(), theirs(image).values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(torchvision_detectors.PRETRAINED))
def test_known_files_are_those_that_torchvision_names(name: str) -> None:
    theirs = torchvision.models.get_model_weights(name).COCO_V1
    known = torchvision_detectors.PRETRAINED[name]
    assert known.url == theirs.url and len(known.digest) == 64
    assert known.digest.startswith(theirs.url.rsplit("-", 1)[1].removesuffix(".pth"))
    assert round(known.size / 2**20, 2) == round(theirs.meta["_file_size"], 2)
    assert torchvision_detectors.labels() == tuple(theirs.meta["categories"][1:])


def test_a_download_that_ends_early_is_no_weights(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(1000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data[:-1])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/w.pth"
        known = weights.Pretrained(address, hashlib.sha256(data).hexdigest(), len(data))
        monkeypatch.setitem(torchvision_detectors.PRETRAINED, "maskrcnn_resnet50_fpn", known)
        with pytest.raises(FleetError, match="ended after 999 of 1000 bytes") as caught:
            zoo.source("maskrcnn_resnet50_fpn", "pretrained", home)
        thread.join()
    assert caught.value.code == "download-failed"


def test_random_weights_find_many_things_of_many_kinds() -> None:
    network = _coco("fasterrcnn_resnet50_fpn")
    network.transform.min_size, network.transform.max_size = (160,), 160
    counts, labels, scores = [], set(), []
    for index in range(3):
        picture = Image.fromarray(draw.scene(1, index, count=8).picture).resize((160, 160))
        with torch.no_grad():
            (found,) = network([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255])
        counts.append(len(found["labels"]))
        labels |= set(found["labels"].tolist())
        scores += found["scores"].tolist()
    assert sum(counts) / 3 >= 10 and len(labels) >= 15, counts
    assert np.quantile(scores, 0.9) > 0.15 and len(set(scores)) > 0.98 * len(scores)
