"""Ctrl-C, SIGTERM and a terminal that goes away at every stage of a command."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from build_fixtures import convnet
from cli_fixtures import FLEET, Cli, boards, environment

NET = "shapes-classifier"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One board with a release."""
    for cli in boards(tmp_path_factory.mktemp("stop") / "home", 1):
        cli.good("deploy", NET, "--all")
        yield cli


def free(cli: Cli) -> None:
    """Wait until nobody holds the board."""
    cli.until(lambda found: all(d["state"] == "idle" and not d["lease"] for d in found["devices"]), "devices")


def build_processes(cli: Cli) -> list[psutil.Process]:
    """Processes of a build that still work in this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(cli.home) in " ".join(process.info["cmdline"] or []) and "agent.main" not in process.info["cmdline"]:
            found.append(process)
    return found


def release(cli: Cli) -> str:
    return str(cli.good("devices")["devices"][0]["release"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_build(cli: Cli, number: signal.Signals, tmp_path: Path) -> None:
    model = convnet(tmp_path / f"net{number}.onnx", seed=number)
    called = cli.interrupted("build", model, "--target", "x86", "--json", at="build net", number=number)
    assert called.code == 130
    assert called.error["code"] == "interrupted"
    assert not list((cli.home / "cache" / "work").glob("*"))
    assert build_processes(cli) == []
    (built,) = cli.good("build", model, "--target", "x86")["builds"]
    assert not built["cached"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_in_a_deployment_s_build(cli: Cli, number: signal.Signals, tmp_path: Path) -> None:
    before = release(cli)
    model = convnet(tmp_path / f"deployed{number}.onnx", seed=100 + number)
    called = cli.interrupted("deploy", model, "--all", at="build deployed", number=number)
    assert called.code == 130
    assert called.out == ""
    assert called.err.endswith("interrupted\n")
    free(cli)
    assert release(cli) == before


def test_in_a_push(cli: Cli, tmp_path: Path) -> None:
    """The connection is cut by a fault; while the controller tries to get it back, the board stands still."""
    (board,) = cli.good("sim", "up", "--fault", "drop:3")["boards"]
    agent = board["pid"]
    try:
        model = large(tmp_path / "large.onnx")
        cli.good("build", model, "--target", "x86", "-o", "large.fleet")
        try:
            called = cli.interrupted(
                "deploy",
                "large.fleet",
                "--device",
                board["name"],
                "--json",
                at="connection lost",
                first=lambda: os.kill(agent, signal.SIGSTOP),
            )
        finally:
            os.kill(agent, signal.SIGCONT)
        assert called.code == 130
        assert called.error["code"] == "interrupted"
        (device,) = cli.good("devices", "--device", board["name"])["devices"]
        assert device["release"] == ""
        # It had no way to give the lease back, which runs out by itself.
        assert device["state"] in ("idle", "leased")
    finally:
        cli.good("sim", "down", board["name"])


def large(path: Path) -> Path:
    """A model with 8 MB of weights that do not compress."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(1448, 1448)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1448])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1448])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_in_a_bench(cli: Cli) -> None:
    before = release(cli)
    called = cli.interrupted("bench", "--all", "--min-duration", "60", "--json", at="sim-1 measure")
    assert called.code == 130
    assert called.error["code"] == "interrupted"
    free(cli)
    assert release(cli) == before
    (run,) = cli.good("bench", "--all", "--min-duration", "0.2")["runs"]
    assert run["samples"] >= 64


def test_while_watching(cli: Cli) -> None:
    assert cli.interrupted("top", at="idle").code == 130


def test_while_following_logs(cli: Cli) -> None:
    command = [FLEET, "logs", "-f", "-n", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(cli.home)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("sim-1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
