"""The command `vta` as a person uses it: real processes, a model built, simulated, exported, and run from a folder."""

import hashlib
import json
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fixtures import Called, environment

VTA = Path(sys.executable).with_name("vta")
CONFORMANCE = Path(__file__).parents[1] / "data" / "vta_conformance"
COUNTERS = {
    *("inp_load_nbytes", "wgt_load_nbytes", "acc_load_nbytes", "uop_load_nbytes", "out_store_nbytes"),
    *("gemm_counter", "alu_counter"),
}


class Vta:
    """The program `vta` with a home and a working directory of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, *arguments: str | Path) -> Called:
        done = subprocess.run(
            [VTA, *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=self.place,
            env=environment(self.place / "home"),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Called(done.returncode, done.stdout, done.stderr)

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        called = self(*arguments, "--json")
        assert called.code == 0, called.out + called.err
        return called.document

    def refused(self, *arguments: str | Path, code: str, status: int) -> dict[str, str]:
        called = self(*arguments, "--json")
        assert (called.error["code"], called.code) == (code, status), called.out
        return called.error


@pytest.fixture(scope="module")
def vta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vta]:
    """With `shapes-classifier` built, and its program in net.vta and exported to net."""
    place = tmp_path_factory.mktemp("vta")
    command = Vta(place)
    built = command.good("build", "shapes-classifier", "-o", "net.vta")
    assert built["written"] == ["net.vta"]
    command.good("export", "net.vta", "net")
    yield command


def test_a_build_says_what_it_made(vta: Vta) -> None:
    found = vta.good("build", "shapes-classifier")
    assert found["cached"]
    assert found["origin"] == "zoo:shapes-classifier weights=committed"
    (program,) = found["programs"]
    assert set(program["counters"]) == COUNTERS
    assert program["counters"]["gemm_counter"] > 0
    assert len(program["layers"]) > 1
    # The first convolution and the dense layer are the processor's.
    assert any("conv2d" in note for note in found["notes"])
    called = vta("build", "shapes-classifier")
    assert called.code == 0
    assert "1x16_i8w8a32_15_15_18_17@0.0.2" in called.out


def test_a_model_gives_what_its_build_computed(vta: Vta) -> None:
    found = vta.good("sim", "shapes-classifier", "--timeline", "model.svg")
    assert found["as_expected"] is True
    assert found["simulated"] is True
    assert set(found["counters"]) == COUNTERS
    assert found["bytes_moved"] == sum(v for name, v in found["counters"].items() if name.endswith("_nbytes"))
    for name in COUNTERS:
        assert sum(layer["counters"][name] for layer in found["layers"]) == found["counters"][name]
    gemm = found["counters"]["gemm_counter"]
    assert found["cycles"] > gemm
    # Of a PYNQ, at 100 MHz.
    assert found["predicted_ms"] == pytest.approx(found["cycles"] / 1e5)
    assert found["gemm_per_second"] == pytest.approx(gemm / found["seconds"])
    scores = [top["score"] for top in found["top"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1.0001
    assert found["published"] == {}
    assert ET.parse(vta.place / "model.svg").getroot().tag.endswith("svg")


def test_a_model_looks_at_a_picture(vta: Vta) -> None:
    from controller import zoo

    (picture,) = zoo.samples("shapes-classifier", 1, 7)
    picture.save(vta.place / "shape.png")
    found = vta.good("sim", "shapes-classifier", "--image", "shape.png")
    assert found["input"] == "shape.png"
    assert found["as_expected"] is None
    assert len(found["top"]) == 5
    called = vta("sim", "shapes-classifier", "--image", "shape.png")
    assert called.code == 0
    assert found["top"][0]["label"] in called.out
    assert "gemm_counter" in called.out and "simulated" in called.out


def test_pictures_that_are_none(vta: Vta) -> None:
    (vta.place / "text.png").write_text("no picture")
    vta.refused("sim", "shapes-classifier", "--image", "text.png", code="bad-picture", status=2)
    vta.refused("sim", "shapes-classifier", "--image", "none.png", code="bad-picture", status=2)


def test_every_order_and_both_semantics_give_the_same(vta: Vta) -> None:
    first = vta.good("sim", "net.vta")
    assert first["top"] == []
    assert all(len(output["sha256"]) == 64 for output in first["outputs"])
    variants = [["--semantics", "fsim"], *(["--order", "random", "--seed", str(seed)] for seed in range(3))]
    for variant in (*variants, ["--semantics", "fsim", "--order", "random"]):
        found = vta.good("sim", "net.vta", *variant)
        assert found["outputs"] == first["outputs"]
        assert found["counters"] == first["counters"]
    # Another board takes another time for the same work.
    faster = vta.good("sim", "net.vta", "--board", "ultra96")
    assert faster["counters"] == first["counters"]
    assert faster["predicted_ms"] < first["predicted_ms"]


def test_a_folder_runs_to_the_memory_that_it_expects(vta: Vta) -> None:
    found = vta.good("sim", "net", "--dram-out", "after.bin", "--timeline", "trace.json")
    assert found["as_expected"] is True
    assert found["counters"] == vta.good("sim", "net.vta")["counters"]
    assert (vta.place / "after.bin").read_bytes() == (vta.place / "net" / "dram_expected.bin").read_bytes()
    trace = json.loads((vta.place / "trace.json").read_text())
    assert trace["traceEvents"] if isinstance(trace, dict) else trace


def copied(vta: Vta, name: str, *files: str) -> Path:
    folder = vta.place / name
    folder.mkdir()
    for file in files or ("insn.bin", "dram.bin", "dram_expected.bin", "layout.json"):
        (folder / file).write_bytes((vta.place / "net" / file).read_bytes())
    return folder


def test_two_files_are_enough(vta: Vta) -> None:
    copied(vta, "two", "insn.bin", "dram.bin")
    found = vta.good("sim", "two", "--dram-out", "two.bin")
    assert (found["program"], found["as_expected"], found["layers"]) == ("two", None, [])
    assert (vta.place / "two.bin").read_bytes() == (vta.place / "net" / "dram_expected.bin").read_bytes()


def test_unexpected_memory_is_a_failure_that_names_the_place(vta: Vta) -> None:
    folder = copied(vta, "unexpected")
    layout = json.loads((folder / "layout.json").read_text())
    place = next(buffer for buffer in layout["buffers"] if buffer["role"] == "output")
    data = bytearray((folder / "dram_expected.bin").read_bytes())
    data[place["address"] + 5] ^= 1
    (folder / "dram_expected.bin").write_bytes(data)
    called = vta("sim", "unexpected", "--json")
    assert called.code == 1
    assert called.document["as_expected"] is False
    assert f"{place['address'] + 5:#x} in buffer '{place['name']}'" in called.document["difference"]


def test_a_program_that_no_module_can_finish_names_the_instruction(vta: Vta) -> None:
    folder = copied(vta, "stuck")
    words = np.fromfile(folder / "insn.bin", "<u8")
    pushing = np.flatnonzero((words[::2] & 7 == 0) & (words[::2] >> np.uint64(6) & np.uint64(1) == 1))
    words[2 * pushing[0]] &= ~np.uint64(1 << 6)
    words.tofile(folder / "insn.bin")
    for order in ("program", "random"):
        error = vta.refused("sim", "stuck", "--order", order, code="vta-simulation", status=1)
        assert error["message"].startswith("instruction ")
        assert "token" in error["message"]
    called = vta("check", "stuck", "--json")
    assert called.code == 1
    assert "deadlock" in {finding["rule"] for finding in called.document["findings"]}


@pytest.mark.parametrize("number", [0, 17, 39])
def test_programs_of_others(vta: Vta, number: int) -> None:
    folder = vta.place / f"conformance-{number}"
    folder.mkdir()
    with np.load(CONFORMANCE / f"program_{number:03}.npz") as program:
        arrays = {name: program[name] for name in program.files}
    (folder / "insn.bin").write_bytes(arrays["insn"].tobytes())
    (folder / "dram.bin").write_bytes(arrays["dram_in"].tobytes())
    found = vta.good("sim", folder, "--dram-out", folder / "after.bin")
    assert found["counters"] == json.loads(arrays["stats"].tobytes())
    after = np.fromfile(folder / "after.bin", np.uint8)
    base, out = int(arrays["out_base"]), arrays["out"]
    wanted = np.zeros(max(base + len(out), len(arrays["dram_in"])), np.uint8)
    wanted[: len(arrays["dram_in"])] = arrays["dram_in"]
    wanted[base : base + len(out)] = out
    assert np.array_equal(after[: len(wanted)], wanted[: len(after)])
    assert not after[len(wanted) :].any() and not wanted[len(after) :].any()


def test_an_export_of_a_model_holds_what_the_network_gave_the_accelerator(vta: Vta) -> None:
    (found,) = vta.good("export", "shapes-classifier", "seen")["exports"]
    assert found["input"] == "golden input 0 of the build"
    assert vta.good("sim", "seen")["as_expected"] is True
    random = (vta.place / "net" / "dram.bin").read_bytes()
    assert (vta.place / "seen" / "dram.bin").read_bytes() != random
    assert (vta.place / "seen" / "insn.bin").read_bytes() == (vta.place / "net" / "insn.bin").read_bytes()


def test_a_model_for_another_configuration(vta: Vta) -> None:
    found = vta.good("sim", "shapes-classifier", "--config", "pynq-4x8")
    assert found["config"] == "4x8_i8w8a32_15_16_16_18@0.0.1"
    assert found["as_expected"] is True


def test_a_batch_of_pictures(vta: Vta) -> None:
    found = vta.good("sim", "shapes-classifier", "--config", "pynq-4x8", "--option", "batch=4")
    assert found["as_expected"] is True
    assert len(found["top"]) == 5
    single = vta.good("sim", "shapes-classifier", "--config", "pynq-4x8")
    # Four pictures share a block, so they take no more block operations than one.
    assert found["counters"]["gemm_counter"] <= single["counters"]["gemm_counter"]


def test_bitstreams_come_from_their_address(vta: Vta) -> None:
    data = b"an .rbf has no header" * 1000
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            known = {"board": "de10nano", "device": "5CSEBA6U23I7", "configuration": "lab", "hw_ver": "0.0.2"}
            known |= {"format": "rbf", "url": f"http://127.0.0.1:{server.server_port}/lab.rbf"}
            digests = {"good": hashlib.sha256(data).hexdigest(), "bad": "0" * 64}
            for name, digest in digests.items():
                (vta.place / f"{name}.json").write_text(json.dumps([{**known, "sha256": digest}]))
            for _ in range(2):
                (found,) = vta.good("bitstream", "fetch", "lab", "--manifest", "good.json")["bitstreams"]
            vta.refused("bitstream", "fetch", "lab", "--manifest", "bad.json", code="wrong-digest", status=2)
        finally:
            server.shutdown()
            thread.join()
    assert requests == ["/lab.rbf", "/lab.rbf"]
    path = Path(found["path"])
    assert path.read_bytes() == data
    assert path.is_relative_to(vta.place / "home")
    checked = vta.good("bitstream", "check", path, "--board", "de10nano", "--manifest", "good.json")["bitstream"]
    assert checked["identity"] == "lab@0.0.2"
    vta.refused("bitstream", "fetch", "lab", "-o", "other", "--manifest", "good.json", code="download-failed", status=1)
    (listed,) = vta.good("bitstream", "list", "--board", "de10nano", "--manifest", "good.json")["bitstreams"][:1]
    assert listed["path"] == str(path)


def test_resnet18_beside_what_tvm_published(vta: Vta) -> None:
    built = vta.good("build", "resnet18_v1", "--weights", "random:0", "-o", "resnet.vta")
    (program,) = built["programs"]
    assert len(program["layers"]) == 19
    found = vta.good("sim", "resnet18_v1", "--weights", "random:0")
    assert found["bundle"] == built["bundle"]
    assert found["as_expected"] is True
    assert found["counters"] == program["counters"]
    assert found["published"]["gemm_counter"] == 6_623_232
    called = vta("sim", "resnet18_v1", "--weights", "random:0")
    assert "TVM's" in called.out and "26,820,944" in called.out
    vta.good("export", "resnet.vta", "resnet")
    for variant in ([], ["--semantics", "fsim", "--order", "random", "--seed", "1"]):
        ran = vta.good("sim", "resnet", *variant)
        assert ran["as_expected"] is True
        assert ran["counters"] == program["counters"]
