"""Programs in a board's Python: a real helper with this machine's torch, on its processor; and everything that can go
wrong with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from build_fixtures import convnet
from run_bundle import Loaded

from controller import sources
from controller.build import BuildRequest, Built, build
from controller.home import Home
from targets.base import FleetError, Option, Requirements
from targets.board_files import CACHE_VARIABLE
from targets.jetson import board_python
from targets.jetson.board_python import BoardError, BoardPython
from targets.jetson.device import CACHE_SIZE, JetsonDevice
from targets.jetson.runner import TorchRunner

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these are about a machine without a GPU"),
    # Compilers run in these, on machines that others load too.
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.find(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convnet(tmp_path_factory.mktemp("net") / "net.onnx", batch="n")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "jetson" / "engines"


@pytest.fixture
def built(home: Home, network: Path) -> Callable[..., Built]:
    def make(**options: Option) -> Built:
        model = sources.resolve(str(network), home=home)
        (found,) = build([BuildRequest(model, "jetson", options)], home=home)
        if found.error:
            raise found.error
        return found

    return make


class Board:
    """A simulated Jetson; every runner that it gave is closed at the end."""

    def __init__(self) -> None:
        self.half = JetsonDevice(simulated=True)
        self.stages: list[str] = []
        self.runners: list[TorchRunner] = []

    def load(self, found: Built, threads: int = 1, told: Callable[[str], None] = lambda _: None) -> TorchRunner:
        def progress(stage: str) -> None:
            self.stages.append(stage)
            told(stage)

        assert found.manifest is not None
        assert self.half.unmet(found.manifest.requirements) == ""
        runner = self.half.load_telling(Loaded(found.blobs, found.manifest), threads, progress)
        assert isinstance(runner, TorchRunner)
        self.runners.append(runner)
        return runner


@pytest.fixture
def board() -> Iterator[Board]:
    used = Board()
    yield used
    for runner in used.runners:
        runner.close()
    assert helpers() == []


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def helpers() -> list[psutil.Process]:
    """Helpers that this process has started and that still run."""
    mine = psutil.Process().children(recursive=True)
    return [each for each in mine if each.is_running() and each.status() != psutil.STATUS_ZOMBIE and _is_helper(each)]


def _is_helper(process: psutil.Process) -> bool:
    try:
        return str(board_python.HELPER) in process.cmdline()
    except psutil.Error:
        return False


def proven(runner: TorchRunner, found: Built) -> float:
    """The largest error of the golden outputs, as a share of what is allowed."""
    manifest = found.manifest
    assert manifest is not None
    bundle, worst = Loaded(found.blobs, manifest), 0.0
    for given, expected in zip(manifest.golden.inputs, manifest.golden.outputs, strict=True):
        outputs = runner.infer([bundle.array(name) for name in given])
        for name, output in zip(expected, outputs, strict=True):
            wanted = bundle.array(name)
            allowed = manifest.golden.atol + manifest.golden.rtol * np.abs(wanted)
            worst = max(worst, float((np.abs(output - wanted) / allowed).max()))
    return worst


# --- Engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "precision", "weights", "products"),
    [
        ("eager", "fp32", "float32", "float32 ×2"),
        ("eager", "fp16", "float16", "float16 ×2"),
        ("eager", "autocast", "float32", "bfloat16 ×2"),
        ("torchscript", "fp32", "float32", "float32 ×2"),
        ("torchscript", "fp16", "float16", "float16 ×2"),
        ("inductor", "fp32", "float32", "float32 ×2"),
    ],
)
def test_an_engine_says_what_really_ran(
    engine: str, precision: str, weights: str, products: str, board: Board, built: Callable[..., Built]
) -> None:
    found = built(engine=engine, precision=precision, batch=2)
    runner = board.load(found)
    assert runner.engine == engine
    assert proven(runner, found) <= 1
    known = runner.conditions()
    assert (known["engine"], known["precision"]) == (engine, precision)
    assert (known["weight_dtype"], known["layer_dtypes"]) == (weights, products)
    assert known["input_dtype"] == ("float16" if precision == "fp16" else "float32")
    # Nobody can take this for a figure of a Jetson.
    assert known["device"] == "cpu, which stands for a Jetson"
    assert known["torch"] == torch.__version__ and "gpu" not in known
    seconds = runner.measure(7)
    assert seconds.shape == (7,) and (seconds > 0).all() and runner.counters() == {}
    assert runner.measure_on_host(2).shape == (2,) and runner.run_together(2) > 0


def test_eight_bits_are_made_with_scales_and_proven_against_themselves(
    board: Board, built: Callable[..., Built]
) -> None:
    found = built(engine="eager", precision="int8")
    assert found.manifest is not None and "Q/DQ" in found.manifest.golden.reference
    plain = built(engine="eager")
    runner = board.load(found)
    assert proven(runner, found) < 0.01
    # It computes something else than float32 does, and not by much.
    assert plain.manifest is not None
    bundle = Loaded(plain.blobs, plain.manifest)
    # Of the numbers that it was calibrated on, 0 to 1; the first golden input reaches further.
    (given,), (wanted,) = plain.manifest.golden.inputs[1], plain.manifest.golden.outputs[1]
    (output,) = runner.infer([bundle.array(given)])
    difference = np.abs(output - bundle.array(wanted)).max() / np.abs(bundle.array(wanted)).max()
    assert 1e-6 < difference < 0.05


def test_a_dynamic_batch_is_one_program_for_all(board: Board, built: Callable[..., Built]) -> None:
    found = built(engine="eager", dynamic=True, batch=4)
    runner = board.load(found)
    assert proven(runner, found) <= 1
    assert found.manifest is not None and found.manifest.inputs[0].shape[0] == 4


def test_inputs_that_are_not_the_models_are_refused(board: Board, built: Callable[..., Built]) -> None:
    runner = board.load(built(engine="eager"))
    with pytest.raises(ValueError, match="takes 1 inputs, 0 were given"):
        runner.infer([])
    with pytest.raises(ValueError, match="input 'image' is float32"):
        runner.infer([np.zeros((1, 3, 16, 16), np.float64)])


# --- The cache ----------------------------------------------------------------------------------


def test_what_was_built_is_loaded_the_next_time(board: Board, built: Callable[..., Built], cache: Path) -> None:
    found = built(engine="torchscript")
    assert board.load(found).conditions()["engine_from"].startswith("built here in")
    assert "trace" in board.stages
    board.stages.clear()
    again = board.load(found)
    assert again.conditions()["engine_from"].startswith("cache, built in")
    assert "trace" not in board.stages and proven(again, found) <= 1
    # What the engine said of itself when it was built is still known.
    assert again.conditions()["layer_dtypes"] == "float32 ×2"
    # Other settings are another engine.
    assert "built here" in board.load(built(engine="torchscript", precision="fp16")).conditions()["engine_from"]
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 2


@pytest.mark.parametrize("damage", ["digest", "engine"])
def test_a_damaged_engine_is_built_again(damage: str, board: Board, built: Callable[..., Built], cache: Path) -> None:
    found = built(engine="torchscript")
    board.load(found)
    (file,) = cache.glob("*/module.ts")
    data = b"no engine" * 100
    file.write_bytes(data)
    if damage == "engine":
        # Whole by its digest, and still not what this torch can load.
        from targets.jetson.cache import EngineCache

        place = EngineCache(cache, 1 << 30)
        key = file.parent.name
        place.drop(key)
        with place.staging() as folder:
            (folder / "module.ts").write_bytes(data)
            place.keep(key, folder, {}, 1.0)
    runner = board.load(found)
    assert runner.conditions()["engine_from"].startswith("built here in") and proven(runner, found) <= 1
    assert board.load(found).conditions()["engine_from"].startswith("cache")


def test_the_cache_is_bounded(
    board: Board, built: Callable[..., Built], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_SIZE, "0")
    for precision in ("fp32", "fp16"):
        board.load(built(engine="torchscript", precision=precision))
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 1
    monkeypatch.setenv(CACHE_SIZE, "much")
    with pytest.raises(BoardError, match="is 'much', which is no number"):
        board.load(built(engine="torchscript"))


# --- What can go wrong --------------------------------------------------------------------------


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_board_python_without_torch_is_said_before_anything_is_loaded(
    built: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    # This Python without its packages.
    monkeypatch.setenv(board_python.PYTHON, _script(tmp_path / "bare", f'exec {sys._base_executable} -I -S "$@"'))
    why = JetsonDevice(simulated=True).unmet(manifest.requirements)
    assert why.startswith("no Python of this board has torch")
    monkeypatch.setenv(board_python.PYTHON, str(tmp_path / "nowhere"))
    assert "which cannot be run" in JetsonDevice(simulated=True).unmet(manifest.requirements)


def test_a_torch_that_cannot_be_imported_is_said(
    built: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    (tmp_path / "torch.py").write_text("print('noise')\nraise Exception('libcudart.so.12 cannot be opened')")
    run = f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"'
    monkeypatch.setenv(board_python.PYTHON, _script(tmp_path / "broken", run))
    assert "libcudart.so.12 cannot be opened" in JetsonDevice(simulated=True).unmet(manifest.requirements)


def test_a_real_board_without_a_gpu_is_unmet(built: Callable[..., Built], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    monkeypatch.setenv(board_python.PYTHON, sys.executable)
    half = JetsonDevice()
    assert "finds no GPU of a Jetson that it can use" in half.unmet(manifest.requirements)
    with pytest.raises(BoardError) as refused:
        half.load(Loaded(built(engine="eager").blobs, manifest), 1)
    assert refused.value.code == "unmet"
    assert helpers() == []


@pytest.mark.parametrize("engine", ["torch-tensorrt", "sm_87"])
def test_a_simulated_board_says_what_it_has_not(engine: str) -> None:
    why = JetsonDevice(simulated=True).unmet(Requirements(accelerator=engine))
    assert why.startswith("a simulated Jetson has no") and "eager, torchscript" in why


def test_a_helper_that_hangs_is_ended_at_its_deadline(
    board: Board, built: Callable[..., Built], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv(board_python.BUILD_SECONDS, "4")

    def stop(stage: str) -> None:
        if stage == "trace":
            for each in helpers():
                each.suspend()

    with pytest.raises(BoardError, match="did not answer 'build' within 4 s") as refused:
        board.load(built(engine="torchscript"), told=stop)
    assert refused.value.code == "helper-ended"
    # It was told of while it lasted, and nothing is left of it.
    assert any(stage.startswith("trace, ") for stage in board.stages)
    wait_for(lambda: helpers() == [], 10)
    assert [path for path in cache.iterdir() if not path.name.startswith(".")] == []


def test_a_python_that_does_not_answer_is_ended(
    built: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    monkeypatch.setattr(board_python, "_HELLO_SECONDS", 1.5)
    monkeypatch.setenv(
        board_python.PYTHON, _script(tmp_path / "deaf", 'case "$1" in -c) exit 0;; *) exec sleep 600;; esac')
    )
    assert "did not answer 'hello' within 1.5 s" in JetsonDevice(simulated=True).unmet(manifest.requirements)


def test_a_helper_that_speaks_nonsense_is_ended(
    built: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    monkeypatch.setenv(
        board_python.PYTHON, _script(tmp_path / "mad", 'case "$1" in -c) exit 0;; *) exec yes nonsense;; esac')
    )
    assert "cannot be understood" in JetsonDevice(simulated=True).unmet(manifest.requirements)


def test_a_helper_that_dies_says_its_last_words(board: Board, built: Callable[..., Built]) -> None:
    def kill(stage: str) -> None:
        if stage == "trace":
            for each in helpers():
                each.send_signal(signal.SIGSEGV)

    with pytest.raises(BoardError, match=r"has ended .*signal 11") as refused:
        board.load(built(engine="torchscript"), told=kill)
    assert refused.value.code == "helper-ended" and refused.value.hint
    # The board is as it was.
    found = built(engine="torchscript")
    assert proven(board.load(found), found) <= 1


def test_a_helper_that_dies_between_calls_is_noticed(board: Board, built: Callable[..., Built]) -> None:
    runner = board.load(built(engine="eager"))
    (helper,) = helpers()
    helper.kill()
    with pytest.raises(BoardError, match="has ended"):
        runner.measure(3)
    with pytest.raises(BoardError, match="has ended"):
        runner.measure(3)


def test_a_helper_that_takes_too_much_memory_is_ended(
    board: Board, built: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = built(engine="torchscript")
    monkeypatch.setenv(board_python.MEMORY, "8")
    assert found.manifest is not None
    why = board.half.unmet(found.manifest.requirements)
    assert "MiB of memory, the limit is 8" in why
    wait_for(lambda: helpers() == [], 10)


def test_an_allocation_that_fails_is_an_error_with_words(board: Board, tmp_path: Path) -> None:
    half, helper = board.half, None
    try:
        helper, _ = half._start("eager")
        with pytest.raises(BoardError, match="not enough memory") as refused:
            helper.load(
                {
                    "program": _program(tmp_path / "program.json"),
                    "weights": [],
                    "inputs": [{"shape": [1 << 45], "dtype": "float32"}],
                    "outputs": [{"shape": [1], "dtype": "float32"}],
                    "open_inputs": [False],
                    "settings": {
                        "engine": "eager",
                        "precision": "fp32",
                        "dynamic": False,
                        "workspace_mb": 0,
                        "tf32": False,
                        "timing_cache": "",
                    },
                    "folder": "",
                    "threads": 1,
                },
                lambda _: None,
            )
        assert refused.value.code == "no-memory" and "batch" in refused.value.hint
        # It refused; it did not end.
        assert helper.hello("eager")["device"] == "cpu"
    finally:
        if helper is not None:
            helper.end()


def _program(path: Path) -> str:
    path.write_text('{"format":1,"inputs":["x"],"weights":[],"nodes":[],"outputs":["x"]}')
    return str(path)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_settings_that_are_no_numbers_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_python.BUILD_SECONDS, text)
    with pytest.raises(BoardError, match="is no positive number"):
        board_python.load_deadline()


def test_a_helper_ends_with_its_agent(tmp_path: Path) -> None:
    """Killed, as a worker that hangs is: nobody is there to end what it started."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom targets.jetson.board_python import BoardPython\n"
        f"helper = BoardPython(sys.executable, Path({str(tmp_path)!r}))\nhelper.hello('eager')\n"
        "print(helper.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        os.kill(agent.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10)


# --- Builds -------------------------------------------------------------------------------------


def test_weights_travel_as_files_of_their_own(built: Callable[..., Built]) -> None:
    manifest = built(engine="eager").manifest
    assert manifest is not None
    tensors = {file.tensor.name for file in manifest.files if file.role == "weight" and file.tensor}
    assert manifest.entry == "program.json" and len(tensors) == len(manifest.parameters) == 7
    # The same for every engine: what differs is what a board makes of it.
    other = built(engine="inductor").manifest
    assert other is not None and {file.sha256 for file in other.files} == {file.sha256 for file in manifest.files}


def test_a_detector_in_halves_is_refused(home: Home) -> None:
    model = sources.resolve("shapes-ssd@boxes", home=home)
    for options, words in (
        ({"engine": "eager", "precision": "fp16"}, "halves cannot tell apart"),
        ({"engine": "torchscript"}, "TorchScript cannot trace"),
    ):
        (found,) = build([BuildRequest(model, "jetson", options)], home=home)
        assert isinstance(found.error, FleetError) and words in found.error.message


def test_a_detector_runs_with_its_operators(board: Board, home: Home) -> None:
    from agent.golden import compare

    model = sources.resolve("shapes-ssd@boxes", home=home)
    (found,) = build([BuildRequest(model, "jetson", {"engine": "eager"})], home=home)
    assert found.error is None and found.manifest is not None
    runner = board.load(found)
    manifest, bundle = found.manifest, Loaded(found.blobs, found.manifest)
    for given, expected in zip(manifest.golden.inputs, manifest.golden.outputs, strict=True):
        _, mismatch = compare(
            runner.infer([bundle.array(name) for name in given]),
            [bundle.array(name) for name in expected],
            manifest.outputs,
            rtol=manifest.golden.rtol,
            atol=manifest.golden.atol,
            postprocess=manifest.model.postprocess,
        )
        assert mismatch == ""


def test_the_command_is_the_boards_python_and_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's packages are none of the helper's: only the modules that it may have are found."""
    helper = BoardPython(sys.executable, tmp_path)
    try:
        command = psutil.Process(helper.pid).cmdline()
        assert command == [sys.executable, str(board_python.HELPER)]
        assert "FLEET_AGENT_CACHE" not in psutil.Process(helper.pid).environ()
    finally:
        helper.end()
