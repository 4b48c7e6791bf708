"""What the simulated atc accepts, says and writes: one file per command line."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from ascend_sim_networks import NETWORKS, weights, write
from hypothesis import given
from hypothesis import strategies as st

from targets.ascend.sim import aipp, atc, atc_flags, atc_shapes, om
from targets.ascend.sim.atc_messages import AtcError
from targets.base import FleetError

CASES = sorted((Path(__file__).parent / "ascend/atc").glob("*.json"))
_STAMP = re.compile(r"\[PID: \d+\] \d{4}-\d\d-\d\d-\d\d:\d\d:\d\d\.\d{3}\.\d{3} ")


def run(folder: Path, board: object, arguments: list[str]) -> int:
    """Run atc in ``folder``, which is also its board's."""
    (folder / "board.json").write_text(json.dumps(board))
    return atc.main(folder, arguments)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path / "log"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_says_what_the_real_one_says(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = json.loads(path.read_text())
    write(tmp_path, case["network"])
    for name, text in case["files"].items():
        (tmp_path / name).write_text(text)
    status = run(tmp_path, case["board"], case["arguments"])
    said = capfd.readouterr()
    assert _STAMP.sub("[PID: 1] TIME ", said.out).split("\n") == [*case["stdout"], ""]
    assert said.err == case["stderr"]
    assert status == case["status"]
    made = sorted(tmp_path.rglob("*.om"))
    if case["om"] is None:
        assert not made
        return
    (model,) = made
    assert stat.S_IMODE(model.stat().st_mode) == 0o600
    header, network = om.read(model)
    described = {
        "kind": header.kind,
        "inputs": [[tensor.name, list(tensor.shape), tensor.dtype] for tensor in header.inputs],
        "outputs": [[tensor.name, list(tensor.shape), tensor.dtype] for tensor in header.outputs],
        "fp16": header.fp16,
        "gears": [list(profile.gear) for profile in header.profiles],
    }
    assert described == case["om"]
    assert header.simulated
    onnx.load_model_from_string(network)
    assert (tmp_path / "kernel_meta").is_dir()
    assert json.loads((tmp_path / "fusion_result.json").read_text())


def test_help_names_every_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, {}, ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ATC start working now")
    assert all(f"--{name}" in text for name in atc_flags.FLAGS)


def test_weights_are_rounded_as_the_precision_mode_says(tmp_path: Path) -> None:
    write(tmp_path, "fixed")
    common = ["--framework=5", "--model=fixed.onnx", "--soc_version=Ascend310"]
    assert run(tmp_path, {}, [*common, "--output=half"]) == 0
    assert run(tmp_path, {}, [*common, "--output=single", "--precision_mode=force_fp32"]) == 0
    assert run(tmp_path, {"fp16": False}, [*common, "--output=off"]) == 0
    stored = {
        name: onnx.numpy_helper.to_array(
            onnx.load_model_from_string(om.read(tmp_path / f"{name}.om")[1]).graph.initializer[0]
        )
        for name in ("half", "single", "off")
    }
    np.testing.assert_array_equal(stored["half"], weights().astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(stored["single"], weights())
    np.testing.assert_array_equal(stored["off"], weights())


def test_the_log_goes_where_the_environment_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "garbage")
    assert (
        run(
            tmp_path,
            {},
            ["--framework=5", "--model=garbage.onnx", "--output=x", "--soc_version=Ascend310", "--log=error"],
        )
        == 255
    )
    (log,) = (tmp_path / "log").rglob("plog-*.log")
    assert re.fullmatch(r"\[ERROR\] GE\(\d+,atc\.bin\):.*E10041: garbage\.onnx\n", log.read_text())
    assert json.loads((tmp_path / "check_result.json").read_text())["code"] == "E10041"


def test_a_full_disk_leaves_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "fixed")
    arguments = ["--framework=5", "--model=fixed.onnx", "--output=x", "--soc_version=Ascend310"]
    assert run(tmp_path, {"faults": {"atc": {"kind": "no-space"}}}, arguments) == 255
    assert "No space left on device" in capsys.readouterr().out
    with pytest.raises(FleetError, match=r"cut short|header|not an offline model"):
        om.read(tmp_path / "x.om")


def made(folder: Path) -> Path:
    write(folder, "fixed")
    assert run(folder, {}, ["--framework=5", "--model=fixed.onnx", "--output=net", "--soc_version=Ascend310"]) == 0
    return folder / "net.om"


def test_a_simulated_model_is_refused_by_name(tmp_path: Path) -> None:
    model = made(tmp_path)
    assert om.is_simulated(model)
    with pytest.raises(FleetError, match=r"net\.om was made by the simulated atc") as error:
        om.refuse_simulated(model, "8.0.RC1")
    assert error.value.code == "simulated-om"
    real = tmp_path / "real.om"
    real.write_bytes(om.REAL_MAGIC + bytes(1000))
    om.refuse_simulated(real, "8.0.RC1")
    om.refuse_simulated(model, "8.0.RC1+simulated")
    with pytest.raises(FleetError, match="a real offline model"):
        om.read(real)


@pytest.mark.parametrize("kept", [0, 3, 15, 18, 40, -1])
def test_a_model_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    model = made(tmp_path)
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(FleetError) as error:
        om.read(model)
    assert error.value.code == "bad-om"


@given(place=st.integers(0, 500), value=st.integers(0, 255))
def test_a_damaged_model_is_refused_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    header = om.Header(
        soc_version="Ascend310", cann="8.0.RC1", precision_mode="force_fp16", fp16=True,
        inputs=(om.Tensor("x", (1, 2), "float32"),), outputs=(om.Tensor("y", (1, 2), "float32"),),
        network_inputs=(om.Tensor("x", (1, 2), "float32"),), kind="static", profiles=(), aipp=(), size=3,
        sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    )  # fmt: skip
    path = folder / "x.om"
    om.write(path, header, b"abc")
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        _, network = om.read(path)
    except FleetError as error:
        assert error.code == "bad-om"
    else:
        assert network == b"abc"


@given(text=st.text("image:-1,32;~x ", max_size=30), batches=st.sampled_from(["", "1,2", "1", "0,1", "a"]))
def test_any_shape_is_read_or_refused_with_a_code(text: str, batches: str) -> None:
    flags = {name: default for name, (default, _) in atc_flags.FLAGS.items()}
    flags |= {"input_shape": text, "dynamic_batch_size": batches}
    try:
        shapes = atc_shapes.read(flags)
    except AtcError as error:
        assert re.fullmatch(r"E100\d\d", error.code)
    else:
        assert all(axis == -1 or axis > 0 for shape in shapes.shapes.values() for axis in shape)


@given(text=st.text('aipp_op {}:"#\nmean_chn_0: 1.5e3 crop true', max_size=80))
def test_any_aipp_is_read_or_refused(text: str) -> None:
    try:
        assert aipp.parse(text)
    except AtcError as error:
        assert error.code == "E10052"


def test_every_network_is_used() -> None:
    used = {json.loads(path.read_text())["network"] for path in CASES}
    assert set(NETWORKS) == used
