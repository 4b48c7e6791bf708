"""Builds from model files to bundles that the device half runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import psutil
import pytest
from build_fixtures import convnet, copied, home_with_tools, model
from onnx import helper

from controller import sources
from controller.build import BuildRequest, Built, build
from controller.events import Event, Progress
from controller.home import Home
from targets.base import FleetError, ModelError, Option
from targets.cores import usable

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def zig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zig's stubs, made once; below the common root of all xdist workers."""
    return tmp_path_factory.getbasetemp().parent / "fleet-test-zig"


@pytest.fixture
def home(tmp_path: Path, zig: Path) -> Home:
    return home_with_tools(tmp_path / "home", zig)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, zig: Path) -> tuple[Home, Path, Built]:
    """A home in which the small network is built for x86, and the network's file."""
    folder = tmp_path_factory.mktemp("built")
    home = home_with_tools(folder / "home", zig)
    path = convnet(folder / "net.onnx")
    return home, path, one(path, home)


def one(path: Path, home: Home, target: str = "x86", **options: Option) -> Built:
    (built,) = build([BuildRequest(sources.resolve(str(path), home=home), target, options)], home=home)
    return built


def good(built: Built) -> Built:
    assert built.error is None, f"{built.error} {built.error and built.error.hint}"
    assert built.manifest is not None
    return built


def digests(built: Built, role: str) -> dict[str, str]:
    assert built.manifest is not None
    return {file.path: file.sha256 for file in built.manifest.files if file.role == role}


#: Two threads, where this process may run two.
TWO = min(2, usable().most)


def ran(built: Built, tmp_path: Path, threads: int = 1) -> dict[str, object]:
    """What the device half finds in a process like a worker's."""
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(good(built).manifest_bytes)
    command = [sys.executable, str(HERE / "run_bundle.py"), str(built.blobs.root.parent), str(manifest), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def assert_right(found: dict[str, object], tolerance: float = 1e-4) -> None:
    assert found["unmet"] == ""
    errors, scale = found["errors"], found["scale"]
    assert isinstance(errors, list) and isinstance(scale, list) and len(errors) >= 2
    assert all(error <= tolerance * max(1.0, size) for error, size in zip(errors, scale, strict=True))
    assert min(scale) > 1e-3


def test_an_onnx_model_runs_as_its_framework_says(base: tuple[Home, Path, Built], tmp_path: Path) -> None:
    _, _, built = base
    found = ran(built, tmp_path, threads=TWO)
    assert_right(found)
    assert found["engine"] == "time_evaluator"
    assert found["conditions"]["threads"] == str(TWO)  # type: ignore[index]
    samples = found["samples"]
    assert isinstance(samples, list) and len(samples) == 25 and all(0 < sample < 1 for sample in samples)
    # The worker of a board must not carry a compiler or torch along.
    assert not found["compiler"] and int(str(found["memory"])) < 150 << 20
    assert "input 'image' is float32 [1, 3, 16, 16]" in str(found["refused"])


def test_the_bundle_says_what_it_is(base: tuple[Home, Path, Built]) -> None:
    _, path, built = base
    manifest = good(built).manifest
    assert manifest is not None
    assert manifest.model.name == "net" and manifest.model.origin == "file:net.onnx"
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("image", (1, 3, 16, 16))]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("scores", (1, 10))]
    assert manifest.requirements.machine == "x86_64"
    assert manifest.requirements.runtime.keys() == {"apache-tvm"}
    assert manifest.golden.reference.startswith("onnxruntime ") and len(manifest.golden.inputs) == 2
    assert str(path.parent) not in built.manifest_bytes.decode()


def test_the_same_build_is_never_made_twice(base: tuple[Home, Path, Built], tmp_path: Path) -> None:
    home, path, built = base
    moved = tmp_path / "elsewhere" / "net.onnx"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    again = one(moved, home)
    assert good(again).cached and again.id == built.id and again.seconds < 1.0


def test_a_build_from_scratch_gives_the_same_bundle(base: tuple[Home, Path, Built], home: Home) -> None:
    _, path, built = base
    again = one(path, home)
    assert not good(again).cached and again.id == built.id
    library = again.blobs.path(next(iter(digests(again, "library").values()))).read_bytes()
    for trace in (b"/home/", b"/tmp/", b"ziglang", str(Path(sys.prefix)).encode(), str(home.cache).encode()):
        assert trace not in library


def test_retrained_weights_cost_their_own_bytes_only(base: tuple[Home, Path, Built], tmp_path: Path) -> None:
    home, _, built = base
    retrained = one(convnet(tmp_path / "net.onnx", head_seed=7), home)
    assert good(retrained).id != built.id
    assert digests(retrained, "library") == digests(built, "library")
    before, after = digests(built, "weight"), digests(retrained, "weight")
    assert before.keys() == after.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1 and "dense" in changed[0]
    assert_right(ran(retrained, tmp_path))


@pytest.mark.parametrize("what", ["blob", "lost blob", "entry"])
def test_a_damaged_cache_is_rebuilt(what: str, base: tuple[Home, Path, Built], tmp_path: Path) -> None:
    origin, path, built = base
    home = copied(origin, tmp_path / "home")
    blob = home.cache / built.blobs.path(next(iter(digests(built, "library").values()))).relative_to(origin.cache)
    if what == "entry":
        entries = [file for file in (home.cache / "builds").iterdir() if not file.suffix]
        (entry,) = (file for file in entries if built.manifest_bytes in file.read_bytes())
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 1
        entry.write_bytes(data)
    else:
        data = bytearray(blob.read_bytes())
        data[100] ^= 1
        blob.unlink()
        if what == "blob":
            blob.write_bytes(data)
    again = one(path, home)
    assert not good(again).cached and again.id == built.id
    assert good(one(path, home)).cached


def test_two_processes_share_one_build(home: Home, tmp_path: Path) -> None:
    path = convnet(tmp_path / "net.onnx", seed=3)
    script = (
        "import sys; from pathlib import Path; from controller import sources; from controller.home import Home\n"
        "from controller.build import BuildRequest, build\n"
        "home = Home.find(Path(sys.argv[1]))\n"
        "(built,) = build([BuildRequest(sources.resolve(sys.argv[2], home=home), 'x86', {})], home=home)\n"
        "assert built.error is None, built.error\n"
        "print(built.id, built.cached)\n"
    )
    command = [sys.executable, "-c", script, str(home.data), str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=120)[0].split() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0][0] == said[1][0] and [line[1] for line in said].count("True") == 1


@pytest.mark.parametrize(("target", "machine", "width"), [("arm64", 183, 2), ("armv7", 40, 1)])
def test_other_machines_are_linked_for(target: str, machine: int, width: int, home: Home, tmp_path: Path) -> None:
    built = good(one(convnet(tmp_path / "net.onnx"), home, target))
    header = built.blobs.path(next(iter(digests(built, "library").values()))).read_bytes()[:64]
    # ELF: magic, class (1: 32 bit, 2: 64 bit), type 3 (shared object), machine (EM_ARM 40, EM_AARCH64 183).
    assert header[:5] == b"\x7fELF" + bytes([width])
    assert int.from_bytes(header[16:18], "little") == 3
    assert int.from_bytes(header[18:20], "little") == machine
    if target == "armv7":
        # EABI version 5 with hard floating point, which Debian armhf has.
        assert int.from_bytes(header[36:40], "little") & 0x05000400 == 0x05000400


def test_an_open_batch_takes_the_number_asked_for(home: Home, tmp_path: Path) -> None:
    path = convnet(tmp_path / "net.onnx", batch="n")
    for asked, batch in (({}, 1), ({"batch": 3}, 3)):
        built = good(one(path, home, "x86", **asked))
        assert built.manifest is not None and built.manifest.outputs[0].shape == (batch, 10)
        assert_right(ran(built, tmp_path))


def test_a_generic_processor_is_asked_nothing(home: Home, tmp_path: Path) -> None:
    built = good(one(convnet(tmp_path / "net.onnx"), home, "x86", mcpu="generic"))
    assert built.manifest is not None and built.manifest.requirements.cpu_features == ()
    assert built.manifest.toolchain["mcpu"] == "x86-64"
    assert_right(ran(built, tmp_path))


def test_a_torch_program_runs_as_torch_says(home: Home, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10),
    ).eval()  # fmt: skip
    path = tmp_path / "net.pt2"
    batch = {"input": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=batch), path)
    built = good(one(path, home, "x86", batch=2))
    assert built.manifest is not None and built.manifest.golden.reference.startswith("torch ")
    assert built.manifest.inputs[0].shape == (2, 3, 16, 16)
    assert_right(ran(built, tmp_path))
    # Batch norm is folded away: weights and a bias for the convolution, the same for the dense layer.
    assert len(built.manifest.parameters) == 4


def test_resnet18(home: Home, tmp_path: Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    path = tmp_path / "resnet18.pt2"
    network = torchvision.models.resnet18(weights=None).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 224, 224),)), path)
    built = good(one(path, home))
    found = ran(built, tmp_path, threads=TWO)
    assert_right(found)
    assert int(str(found["memory"])) < 300 << 20


# --- What cannot be built -----------------------------------------------------------------------


def refused(nodes: list[object], home: Home, folder: Path, inputs: dict[str, list[int | str]]) -> FleetError:
    path = folder / "bad.onnx"
    onnx.save(model(nodes, inputs, {"y": [1, 3, 4, 4]}), path)  # type: ignore[arg-type]
    built = one(path, home)
    assert built.error is not None and built.manifest is None and built.id == ""
    assert "Traceback" not in built.error.message and len(built.error.message) < 1000
    return built.error


def test_an_unsupported_operator_is_named_with_its_place(home: Home, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="fine"),
        helper.make_node("Det", ["r"], ["y"], name="layer4/det"),
    ]
    error = refused(nodes, home, tmp_path, {"x": [1, 3, 4, 4]})
    assert isinstance(error, ModelError) and error.hint
    assert "Det" in error.message and "layer4/det" in error.message


def test_an_operator_of_another_domain_is_named(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    graph = model([helper.make_node("Fancy", ["x"], ["y"], domain="com.acme")], {"x": [1, 4]}, {"y": [1, 4]})
    graph.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(graph, path)
    error = one(path, home).error
    assert isinstance(error, ModelError) and "com.acme.Fancy" in error.message and "'y'" in error.message


def test_an_operator_that_the_importer_chokes_on_is_named(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    loop = helper.make_node("Loop", ["", "c"], ["y"], name="the loop", body=_body())
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])),
        loop,
    ]
    onnx.save(model(nodes, {"x": [1, 4]}, {"y": ["k", 1]}), path)
    error = one(path, home).error
    assert isinstance(error, ModelError) and "Loop" in error.message and "the loop" in error.message


def _body() -> onnx.GraphProto:
    def value(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    constant = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Identity", ["going"], ["still"]),
        helper.make_node("Constant", [], ["out"], value=constant),
    ]
    inputs = [value("i", onnx.TensorProto.INT64), value("going", onnx.TensorProto.BOOL)]
    outputs = [value("still", onnx.TensorProto.BOOL), helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])]
    return helper.make_graph(nodes, "body", inputs, outputs)


def test_an_open_dimension_is_named(home: Home, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    error = refused(nodes, home, tmp_path, {"x": [1, 3, "height", 4]})
    assert "dimension 2 ('height') of input 'x'" in error.message and "fixed" in error.hint


def test_a_torch_operator_is_named(home: Home, tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    path = tmp_path / "bad.pt2"
    torch.export.save(torch.export.export(Net(), (torch.zeros(1, 4),)), path)
    error = one(path, home).error
    assert isinstance(error, ModelError) and "bessel_j0" in error.message and "node" in error.message


def test_a_fixed_batch_cannot_be_changed(home: Home, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 4),)), path)
    error = one(path, home, "x86", batch=4).error
    assert isinstance(error, ModelError) and "batch 1" in error.message and "Dim" in error.hint


def test_a_batch_that_the_graph_fixes_is_named(home: Home, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[1, 48]),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat"),
    ]
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, {"x": ["n", 3, 4, 4]}, {"y": ["n", 48]}), path)
    assert good(one(path, home)).id
    error = one(path, home, "x86", batch=4).error
    assert isinstance(error, ModelError) and "Reshape" in error.message and "flat" in error.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mcpu": "pentium"}, "no processor 'pentium'"),
        ({"opt": 3}, "no option 'opt'"),
        ({"batch": "many"}, "'batch' must be"),
        ({"batch": -1}, "between 1 and"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Option], words: str, base: tuple[Home, Path, Built]) -> None:
    home, path, _ = base
    error = one(path, home, "x86", **options).error
    assert error is not None and error.code == "bad-option" and words in error.message


def test_an_unknown_target_is_refused(base: tuple[Home, Path, Built]) -> None:
    home, path, _ = base
    error = one(path, home, "z80").error
    assert error is not None and error.code == "unknown-target" and "x86" in error.hint


# --- Processes ----------------------------------------------------------------------------------


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "controller.build_process" in child.cmdline()
    ]


def test_a_build_that_crashes_fails_alone(home: Home, tmp_path: Path) -> None:
    victim, other = convnet(tmp_path / "victim.onnx", seed=5), convnet(tmp_path / "other.onnx", seed=6)
    killed = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.detail.startswith("victim") and not killed.is_set():
            killed.set()
            for child in children():
                os.kill(child.pid, signal.SIGSEGV)

    requests = [BuildRequest(sources.resolve(str(path), home=home), "x86", {}) for path in (victim, other)]
    crashed, fine = build(requests, home=home, jobs=1, listener=listen)
    assert killed.is_set() and crashed.error is not None
    assert crashed.error.code == "build-crashed" and "SIGSEGV" in crashed.error.message
    assert good(fine).manifest is not None
    # Nothing is left of it, and the next try works.
    assert list((home.cache / "work").iterdir()) == []
    assert not good(one(victim, home)).cached


def test_an_interrupted_build_stops_at_once(home: Home, tmp_path: Path) -> None:
    request = BuildRequest(sources.resolve(str(convnet(tmp_path / "net.onnx", seed=8)), home=home), "x86", {})
    stop = threading.Event()

    def listen(event: Event) -> None:
        stop.set()

    start = time.monotonic()
    (built,) = build([request], home=home, listener=listen, stop=stop)
    assert built.error is not None and built.error.code == "interrupted"
    assert time.monotonic() - start < 10 and children() == []
    assert not list((home.cache / "builds").glob("*[!k]"))


def test_a_dask_cluster_builds_the_same(base: tuple[Home, Path, Built], home: Home) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
    _, path, built = base
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        request = BuildRequest(sources.resolve(str(path), home=home), "x86", {})
        (there,) = build([request], home=home, scheduler=cluster.scheduler_address)
    assert not good(there).cached and there.id == built.id
    with pytest.raises(FleetError) as caught:
        build([request], home=home, scheduler="tcp://127.0.0.1:1")
    assert caught.value.code == "no-scheduler" and "dask scheduler" in caught.value.hint
