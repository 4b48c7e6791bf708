"""The detectors of the benchmark: weights, bundles and pictures, and whether two engines find the same."""

from __future__ import annotations

import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.cpu_engines import EngineError, Worker
from targets.base import SourceModel, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

SEED = 0
WEIGHTS = f"random:{SEED}"
#: Scores and boxes may differ by so much of themselves; scores near nothing by a millionth.
RTOL, ATOL = 1e-4, 1e-6
#: What the suppression alone runs on: SSD300's default boxes, COCO's classes with the background.
BOXES, CLASSES = 8732, 81
#: MLPerf's thresholds; the best of each class take part, and as many are kept.
SCORE, IOU, KEPT = 0.05, 0.5, 200
REPEATS = 31


@dataclass(frozen=True, slots=True)
class Case:
    """``wanted``: the highest ratio to the peer's time."""

    model: str
    peer: str
    wanted: float | None = None
    wanted_build: float | None = None


CASES = (
    Case("maskrcnn_resnet50_fpn@300,pasted", "torchvision", 0.8, 120.0),
    Case("maskrcnn_resnet50_fpn@pasted", "torchvision", 0.8, 120.0),
    Case("fasterrcnn_resnet50_fpn@300", "torchvision"),
    Case("ssd300_vgg16", "torchvision", 0.8),
    Case("ssd_512_resnet50_v1_voc", "mxnet", 0.5),
    Case("ssd_300_vgg16_atrous_voc", "mxnet"),
    Case("ssd_512_mobilenet1.0_coco", "mxnet"),
)
WANTED_NMS_MS, WANTED_POST, WANTED_IOU, WANTED_BUILD_GB = 3.0, 0.10, 0.999, 6.0


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle in a cache, what it was made of, and what making it took."""

    source: SourceModel
    blobs: str
    manifest: bytes
    inputs: tuple[TensorSpec, ...]
    seconds: float
    peak_bytes: int


def weights(case: Case, folder: Path) -> str:
    """What ``--weights`` takes: of MXNet's networks a file that MXNet has written. Raises EngineError."""
    if case.peer != "mxnet":
        return WEIGHTS
    from benchmarks.detection_peers import Originals

    path = folder / f"{case.model}.params"
    with Originals(folder) as originals:
        originals.ask(do="make", network=case.model, seed=SEED, params=str(path))
    return str(path)


def build(case: Case, chosen: str, threads: int, root: Path) -> Built:
    """Build as `fleet build --target x86` does, nothing cached. Raises FleetError."""
    from controller import sources
    from controller.build import BuildRequest
    from controller.build import build as build_all
    from controller.home import Home

    home = Home.find(root)
    source = sources.resolve(case.model, weights=chosen, home=home)
    (made,) = build_all([BuildRequest(source, "x86", {"batch": 1, "cores": threads})], home=home, jobs=1)
    if made.error is not None or made.manifest is None:
        raise EngineError(str(made.error))
    # The build is a process of its own: the largest of this one's children.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Built(source, str(made.blobs.root), made.manifest_bytes, made.manifest.inputs, made.seconds, peak)


def original(case: Case, built: Built, chosen: str) -> str:
    """What the peer loads."""
    return f"{case.model}={chosen if case.peer == 'mxnet' else built.source.path}"


def prepare(built: Built, count: int, folder: Path) -> str:
    """Write the pictures, and the network's inputs for each; the first's are what is timed."""
    import numpy as np

    from targets.bundle import parse_manifest
    from targets.pictures import prepare as preparing

    manifest = parse_manifest(built.manifest)
    preprocess = manifest.model.preprocess
    assert preprocess is not None
    for index in range(count):
        image = picture(index, preprocess.size)
        arrays = preparing.batch([image], preprocess, manifest.inputs)
        # By the name that MXNet's side knows, too.
        named = {"images": arrays[0]} | {spec.name: one for spec, one in zip(manifest.inputs, arrays, strict=True)}
        np.savez(folder / f"given-{index}.npz", **{"picture": np.asarray(image), **named})  # type: ignore[arg-type]
    return str(folder / "given-0.npz")


def picture(index: int, size: tuple[int, int]) -> Image.Image:
    """A drawn scene, or noise of several grains, of the size that the network takes: nothing resizes it."""
    import numpy as np
    from PIL import Image

    from controller.zoo import draw

    height, width = size
    if index % 2 == 0:
        return Image.fromarray(draw.scene(SEED, index)[0]).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng([SEED, index]).integers(
        0, 256, (height >> index % 5, width >> index % 5, 3), np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


class _Found(NamedTuple):
    """A :class:`targets.detection.compare.Rows`; masks are compared by their overlap."""

    boxes: Any
    scores: Any
    labels: Any
    masks: None = None


def parity(ours: Worker, peer: Worker, built: Built, count: int, given: str) -> dict[str, Any]:
    """How many pictures have the same detections, and how far the numbers are apart."""
    import numpy as np

    from targets.bundle import parse_manifest
    from targets.detection.compare import Cuts, compare

    manifest = parse_manifest(built.manifest)
    postprocess = manifest.model.postprocess
    assert postprocess is not None and manifest.model.preprocess is not None
    height, width = manifest.model.preprocess.size
    cuts = Cuts(postprocess.score_threshold, postprocess.iou_threshold, postprocess.max_boxes)
    same, worst, found, lowest, notes = 0, 0.0, 0, 1.0, []
    for index in range(count):
        path = given.replace("given-0", f"given-{index}")
        with np.load(path, allow_pickle=False) as arrays:
            inputs = [arrays[spec.name] for spec in manifest.inputs]
        named = dict(zip((spec.name for spec in manifest.outputs), ours.ask("infer", inputs), strict=True))
        rows = int(named["count"][0])
        mine = _Found(*(named[name][0, :rows] for name in ("boxes", "scores", "labels")))
        if postprocess.coordinates == "relative":
            mine = mine._replace(boxes=mine.boxes * np.array([width, height] * 2, np.float32))
        theirs = peer.ask("detect", path)
        reference = _Found(theirs["boxes"], theirs["scores"], theirs["labels"])
        comparison = compare(mine, reference, RTOL, ATOL, cuts)
        same += comparison.same
        worst, found = max(worst, comparison.worst), found + rows
        if not comparison.same:
            notes.append(f"picture {index}: {comparison}")
        if "masks" in theirs:
            lowest = min([lowest, *_ious(named["masks"][0, :rows, :height, :width] >= 128, theirs, mine, reference)])
    result = {"same": same, "worst": worst, "detections": found, "notes": notes}
    return {**result, "mask_iou": lowest} if manifest.outputs[-1].name == "masks" else result


def _ious(ours: Any, theirs: dict[str, Any], mine: Any, reference: Any) -> list[float]:
    """Of the masks of detections that are the same, row by row; pixels that are ties are left out."""
    import numpy as np

    found = []
    for row in range(min(len(ours), len(theirs["masks"]))):
        if abs(mine.scores[row] - reference.scores[row]) > RTOL or mine.labels[row] != reference.labels[row]:
            continue
        one, other = (mask & ~theirs["ties"][row] for mask in (ours[row], theirs["masks"][row]))
        union = np.logical_or(one, other).sum()
        found.append(float(np.logical_and(one, other).sum() / union) if union else 1.0)
    return found


def suppression() -> list[dict[str, Any]]:
    """Milliseconds of non-maximum suppression of 8,732 boxes × 81 classes on one core, beside torchvision's."""
    os.environ["TVM_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import torch
    import tvm
    from tvm import relax

    from controller.zoo.ssd300_boxes import torchvision_boxes
    from targets.cpu.compile import compile_module
    from targets.cpu.machine import MACHINES
    from targets.cpu.machine import machine as here
    from targets.detection import calls

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    centres = torch.from_numpy(torchvision_boxes()).float() * 300
    boxes = torch.cat([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1)[None, None]
    boxes = (boxes + torch.randn_like(boxes) * 4).contiguous()
    rows = []
    for words, spread in (("scores of a detector that is sure", 4.0), ("scores of one that is not", 2.0)):
        scores = (torch.randn(1, CLASSES, BOXES) * spread).softmax(1).contiguous()
        how: list[float] = [SCORE, IOU, KEPT, 0, KEPT, 0.0, 0]
        b, s = (
            relax.Var(name, relax.TensorType(list(x.shape), "float32")) for name, x in (("b", boxes), ("s", scores))
        )
        shapes = {"boxes": ([1, KEPT, 4], "float32"), "scores": ([1, KEPT], "float32")}
        shapes |= {"labels": ([1, KEPT], "int64"), "count": ([1], "int32")}
        builder = relax.BlockBuilder()
        with builder.function("main", [b, s]):
            with builder.dataflow():
                found = builder.emit(
                    calls.packed("class_nms", [b, s], how, [relax.TensorType(*each) for each in shapes.values()])
                )
                result = builder.emit_output(found)
            builder.emit_func_output(result)
        machine = MACHINES[here()]
        compiled = compile_module(builder.finalize(), machine, machine.processor("host"))
        vm = relax.VirtualMachine(compiled.executable.jit(), tvm.cpu())
        vm.set_input("main", tvm.runtime.tensor(boxes.numpy()), tvm.runtime.tensor(scores.numpy()))
        times: dict[str, list[float]] = {"ms": [], "torch_ms": []}
        for repeat in range(REPEATS + 3):
            begin = time.perf_counter()
            vm.invoke_stateful("main")
            middle = time.perf_counter()
            _torchvision(boxes[0, 0], scores[0])
            if repeat >= 3:
                times["ms"].append((middle - begin) * 1e3)
                times["torch_ms"].append((time.perf_counter() - middle) * 1e3)
        rows.append(
            {
                "words": words,
                "candidates": int((scores > SCORE).sum()),
                "kept": int(vm.get_outputs("main")[3].numpy()[0]),
            }
            | {name: statistics.median(each) for name, each in times.items()}
        )
    return rows


def _torchvision(boxes: Any, scores: Any) -> Any:
    """As torchvision.models.detection.ssd.SSD.postprocess_detections does it."""
    import torch
    import torchvision

    found = []
    for label, column in enumerate(scores):
        keep = column > SCORE
        values, order = column[keep].topk(min(KEPT, int(keep.sum())))
        found.append((boxes[keep][order], values, torch.full_like(values, label, dtype=torch.int64)))
    of_all = [torch.cat(each) for each in zip(*found, strict=True)]
    return torchvision.ops.batched_nms(*of_all, IOU)[:KEPT]
