"""Whole networks of the zoo, divided between the CPU and the accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_fixtures import home_with_tools

from controller import sources
from controller.home import Home
from targets.cpu import passes
from targets.cpu.compile import compile_module, link
from targets.cpu.machine import MACHINES, machine
from targets.relax_import import to_relax
from targets.vta.config import DEFAULT
from targets.vta.float_part import FloatPart, in_float, in_integers
from targets.vta.graph import Conv, Graph
from targets.vta.host_module import deployment_module
from targets.vta.lower import lower
from targets.vta.partition import Partitioned, PartitionOptions, partition
from targets.vta.quantise import QuantiseOptions, quantise


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Home:
    zig = tmp_path_factory.getbasetemp().parent / "fleet-test-zig"
    zig.mkdir(exist_ok=True)
    monkeypatch.setenv("FLEET_ZIG_CACHE", str(zig))
    return home_with_tools(tmp_path / "home", zig)


def divided(name: str, home: Home, options: PartitionOptions | None = None, weights: str = "") -> Partitioned:
    module, _, _ = to_relax(sources.resolve(name, weights=weights, home=home))
    return partition(passes.simplify()(module), DEFAULT, options)


def convolutions(graph: Graph) -> list[Conv]:
    return [node for node in graph.nodes if isinstance(node, Conv)]


def macs(graph: Graph) -> int:
    """Block operations, as the accelerator counts them: 1×16 times 16×16."""
    total = 0
    for node in convolutions(graph):
        _, _, height, width = graph.tensors[node.output]
        outputs, inputs, kernel_h, kernel_w = node.weight.shape
        total += height * width * (outputs // 16) * (inputs // 16) * kernel_h * kernel_w
    return total


def test_resnet18_is_divided_as_tvm_did(home: Home) -> None:
    made = divided("resnet18", home, weights="random:0")
    (graph,) = made.regions
    found = convolutions(graph)
    assert len(found) == len(graph.nodes) == 19
    assert Counter(node.weight.shape[2:] for node in found) == {(3, 3): 16, (1, 1): 3}
    sums = [node for node in found if node.residual]
    assert len(sums) == 8 and all(node.weight.shape[2:] == (3, 3) and node.relu for node in sums)
    assert [graph.tensors[name] for name in graph.inputs] == [(1, 64, 56, 56)]
    assert [graph.tensors[name] for name in graph.outputs] == [(1, 512, 7, 7)]
    assert macs(graph) == 6_623_232  # gemm_counter as TVM's tutorial prints it
    stays = {note.partition(" ")[0] for note in made.notes}
    assert stays == {"conv2d-0", "max_pool2d-0", "avg_pool2d-0", "dense-0"}
    pools = PartitionOptions(pools=("nn.max_pool2d", "nn.global_avg_pool2d"))
    (named,) = divided("resnet18", home, pools, "random:0").regions
    assert [node.name for node in named.nodes] == [node.name for node in graph.nodes]


def test_a_preactivated_network_is_one_region(home: Home) -> None:
    """Batch norms with no convolution before them are scales on the accelerator: one in each block, and the last."""
    (graph,) = divided("resnet18_v2", home, weights="random:0").regions
    assert Counter(node.operator for node in graph.nodes) == {"conv2d": 19, "scale": 9}
    assert sum(bool(node.residual) for node in convolutions(graph)) == 8
    assert all(node.relu for node in convolutions(graph) if node.operator == "scale")
    assert [graph.tensors[each] for each in graph.inputs] == [(1, 64, 56, 56)]


@pytest.mark.parametrize("everything", [False, True])
def test_the_classifier_runs_with_the_runtime_library_alone(everything: bool, home: Home, tmp_path: Path) -> None:
    """The library and the programs, as files, give in another process what the integer graphs do here, to the bit."""
    made = divided("shapes-classifier", home, PartitionOptions(first_conv=everything, dense=everything))
    (graph,) = made.regions
    assert Counter(node.operator for node in graph.nodes) == (
        {"conv2d": 12, "avg_pool2d": 1, "dense": 1} if everything else {"conv2d": 11}
    )
    image = np.random.default_rng(0).uniform(-2, 2, (1, 3, 64, 64)).astype(np.float32)
    network = FloatPart(made)
    seen: list[dict[str, Any]] = []

    def watched(number: int, inputs: Any) -> Any:
        seen.append(dict(zip(made.regions[number].inputs, inputs, strict=True)))
        return in_float(made.regions)(number, inputs)

    (scores,) = network.run([image], watched)
    qgraph, _ = quantise(graph, seen, QuantiseOptions(block=DEFAULT.block))
    (expected,) = network.run([image], in_integers([qgraph]))
    assert np.abs(expected - scores).max() < 0.1 * np.abs(scores).max()  # type: ignore[operator]

    here = MACHINES[machine()]
    compiled = compile_module(deployment_module(made, [qgraph], DEFAULT), here, here.processor("host"))
    (tmp_path / "built").mkdir()
    link(compiled.executable, here, tmp_path / "built")
    (tmp_path / "built" / "model.so").rename(tmp_path / "model.so")
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in compiled.weights})
    lower(qgraph, DEFAULT).save(tmp_path / "program-0.vta")
    np.save(tmp_path / "input.npy", image)
    script = Path(__file__).with_name("run_vta_library.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert any("runtime" in name for name in said["loaded"]), said
    assert not any(name.startswith(("libtvm.", "libtvm_compiler", "libtorch")) for name in said["loaded"]), said
    assert said["gemm"] > 0
    np.testing.assert_array_equal(np.load(tmp_path / "output.npy"), expected)
