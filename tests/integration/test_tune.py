"""`fleet tune` on a real simulated board through a real tracker: interrupted, resumed, and used by builds."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from build_fixtures import convnet
from cli_fixtures import Cli
from rpc_fixtures import KEY, board, link

from targets.base import FleetError, find
from targets.tuning import Endpoint, Finding

pytestmark = pytest.mark.slow

NET = "shapes-classifier"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """`fleet` with one board that is registered with a tracker."""
    cli = Cli(tmp_path_factory.mktemp("tune") / "home")
    cli.home.mkdir()
    try:
        port = cli.good("tracker", "start", "--port", "0")["tracker"]["port"]
        cli.good("sim", "up", "--count", "1", "--tracker", f"127.0.0.1:{port}")
        registered(cli, 1)
        yield cli
    finally:
        assert cli("sim", "down").code == 0
        assert cli("tracker", "stop").code == 0


def registered(cli: Cli, count: int) -> None:
    cli.until(lambda found: len(found["tracker"]["devices"]) == count, "tracker", "status")


def races(cli: Cli) -> list[dict[str, Any]]:
    """What was measured so far."""
    (path,) = (cli.home / "tuned" / "sessions").glob("*.jsonl")
    return [json.loads(line)["measured"] for line in path.read_text().splitlines()]


def choices(cli: Cli, *options: str) -> list[str]:
    """How the network's convolutions are computed, as the bundle says."""
    archive = cli.home / "net.fleet"
    cli.good("build", NET, "--target", "x86", "-o", archive, *options)
    with zipfile.ZipFile(archive) as opened:
        manifest = json.loads(opened.read("manifest.json"))
        (sha256,) = (file["sha256"] for file in manifest["files"] if file["path"] == "layers.json")
        (name,) = (name for name in opened.namelist() if name.endswith(sha256))
        table = json.loads(opened.read(name))
    assert "tuned" not in manifest["options"], "a bundle says what was in a file, not where it lay"
    return [row["choice"] for row in table["layers"] if "nn.conv2d" in row["operators"]]


def test_a_dry_run_lists_what_there_is_and_touches_nothing(cli: Cli) -> None:
    report = cli.good("tune", NET, "--device", "sim-1", "--dry-run")["tuning"]
    assert report["trials"] == 0 and not (cli.home / "tuned").exists()
    assert sum(layer["count"] for layer in report["layers"]) == 12
    assert sum(layer["share"] for layer in report["layers"]) == pytest.approx(1.0)
    shares = [layer["share"] for layer in report["layers"]]
    assert shares == sorted(shares, reverse=True)
    for layer in report["layers"]:
        assert layer["state"] == "untried" and layer["candidates"][0] == layer["default"]
        assert 1 < len(layer["candidates"]) <= 24
    # What builds do without any tuning is what races begin with.
    assert sorted(set(choices(cli, "--option", "tuned=off"))) == sorted({x["default"] for x in report["layers"]})
    shown = cli("tune", NET, "--device", "sim-1", "--dry-run")
    assert shown.code == 0 and "candidates" in shown.out and "  default: " in shown.out


def test_an_interrupted_tuning_goes_on_and_builds_use_what_won(cli: Cli) -> None:
    stopped = cli.interrupted("tune", NET, "--device", "sim-1", "--budget", "10m", "--json", at="trial 2 of")
    assert stopped.code == 130 and stopped.error["code"] == "interrupted"
    assert "races through the tracker at 127.0.0.1:" in stopped.err
    before = races(cli)
    assert before, "what was measured is kept"
    cli.until(lambda found: all(d["state"] == "idle" and not d["lease"] for d in found["devices"]), "devices")
    assert not list((cli.home / "cache" / "work").glob("*"))

    report = cli.good("tune", NET, "--device", "sim-1", "--trials", "4")["tuning"]
    after = races(cli)
    assert after[: len(before)] == before and len(after) == len(before) + 4 == len(before) + report["trials"]
    ran = [(one["signature"], one["choice"], one["confirming"]) for one in after]
    assert len(set(ran)) == len(ran), "nothing is measured twice"
    assert all(one["error"] == "" and one["ms"] > 0 and one["default_ms"] > 0 for one in after)
    # In the order of what they cost; how far it came before it stopped is the machine's business.
    measured = {layer["signature"]: layer["measured"] for layer in report["layers"] if layer["measured"]}
    assert list(measured) == [layer["signature"] for layer in report["layers"]][: len(measured)]
    assert sum(measured.values()) == sum(not one["confirming"] for one in after) >= 3
    assert {one["signature"] for one in after} == set(measured)

    # Whether anything wins is for the machine to say: a build takes exactly that.
    won = {one["signature"] for one in after if one["confirming"] and one["faster"]}
    assert {layer["signature"] for layer in report["layers"] if layer["state"] == "tuned"} == won
    assert sum(choice.endswith(", tuned") for choice in choices(cli)) == len(won)


def test_a_build_takes_the_entry_and_still_computes_the_same(cli: Cli) -> None:
    """The entry is a candidate that was measured here, written as a tuning writes it, whether or not it won."""
    options = {"mcpu": "host"}
    host = find("x86").host()
    plain = choices(cli, "--option", "tuned=off")
    one = races(cli)[0]
    finding = Finding(
        signature=one["signature"],
        choice=one["choice"],
        default_choice=one["default"],
        ms=1.0,
        default_ms=2.0,
        device="sim-1",
        date="2026-01-31",
    )
    file = cli.home / "tuned" / host.tuning_file(options)
    file.unlink(missing_ok=True)
    host.keep(options, file, [finding])
    taken = choices(cli)
    changed = [index for index, pair in enumerate(zip(plain, taken, strict=True)) if pair[0] != pair[1]]
    assert len(changed) == 1 and taken[changed[0]].endswith(", tuned")
    assert choices(cli, "--option", "tuned=off") == plain
    # The golden check on the board passes: it is the same network.
    (deployed,) = cli.good("deploy", NET, "--device", "sim-1")["results"]
    assert deployed["status"] == "active"

    # Another version's tile is left out with a warning, and a damaged file is refused.
    broken = json.loads(file.read_text())
    broken["entries"][0]["choice"] = {"kernel": "direct", "blocks": 7, "rows": 1, "columns": 1, "depth": 0, "strip": 1}
    file.write_text(json.dumps(broken))
    called = cli("build", NET, "--target", "x86")
    assert called.code == 0 and "does not fit this compiler" in called.err
    file.write_text("{}")
    called = cli("build", NET, "--target", "x86", "--json")
    assert called.code == 1 and called.error["code"] == "bad-tuning"
    file.unlink()


def test_another_file_leaves_builds_alone(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    report = cli.good("tune", NET, "--device", "sim-1", "--trials", "1", "-o", file)["tuning"]
    assert report["file"] == str(file)
    assert not any(choice.endswith(", tuned") for choice in choices(cli))


def test_boards_of_one_key_are_told_apart(cli: Cli) -> None:
    """A tracker would hand out either of them: the one that is leased is gone to directly."""
    (board,) = cli.good("sim", "status")["boards"]
    cli.good("sim", "up", "--count", "2", "--tracker", board["tracker"])
    try:
        registered(cli, 2)
        called = cli("tune", NET, "--device", "sim-2", "--trials", "1", "--fresh")
        assert called.code == 0 and "2 devices are registered as 'x86'" in called.err
        assert f"races through 127.0.0.1:{cli.good('sim', 'status')['boards'][1]['rpc_port']}" in called.err
    finally:
        cli.good("sim", "down", "sim-2")


def test_wrong_uses_are_said(cli: Cli, tmp_path: Path) -> None:
    for arguments, code in (
        (["--all", "--target", "arm64"], "nothing-matched"),
        (["--device", "sim-1", "--budget", "soon"], "usage"),
        (["--device", "sim-1", "--option", "precision=int8"], "bad-option"),
        (["--device", "sim-1", "--option", "cores=77", "--trials", "1"], "threads"),
    ):
        called = cli("tune", NET, *arguments, "--json")
        assert called.code != 0 and called.error["code"] == code, called.out
    net = convnet(tmp_path / "net.onnx")
    inventory = tmp_path / "fleet.yaml"
    devices = [f"  - {{name: {name}, target: {name}, rpc: '127.0.0.1:1'}}\n" for name in ("vta-sim", "x86")]
    inventory.write_text("devices:\n" + "".join(devices))
    for device, code in (("vta-sim", "no-tuning"), ("x86", "unreachable")):
        called = cli("tune", net, "--inventory", inventory, "--device", device, "--json")
        assert called.code != 0 and called.error["code"] == code, called.out


# --- The runner ---------------------------------------------------------------------------------


def library(folder: Path, name: str, factor: float) -> str:
    """``main(x, y)`` sets y to x times a factor."""
    import tvm
    from tvm import te

    x = te.placeholder((256,), name="x")
    function = te.create_prim_func([x, te.compute((256,), lambda i: x[i] * factor, name="y")])
    path = folder / f"{name}.so"
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.compile(module, target="llvm").export_library(str(path), fcompile=link)
    return str(path)


def crashing(folder: Path, on_call: int) -> str:
    """A kernel that does nothing until its call of that number, and then takes the session's process with it."""
    source, path = folder / f"crash{on_call}.c", folder / f"crash{on_call}.so"
    source.write_text(
        "#include <signal.h>\n#include <unistd.h>\n"
        "int __tvm_ffi_main(void *self, void *args, int count, void *result) {\n"
        f"  static int calls; if (++calls == {on_call}) kill(getpid(), SIGKILL);\n  return 0;\n}}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True
    )
    return str(path)


def results(
    at: Endpoint, paths: Sequence[str], *, threads: int = 0, rounds: int = 3, compare: bool = True
) -> list[tuple[int, str]]:
    """Rounds and error of each."""
    from targets.cores import usable
    from targets.cpu.race import race

    def alike(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> bool:
        return not compare or bool(np.allclose(expected, found))

    arguments = {path: [np.ones(256, np.float32), np.zeros(256, np.float32)] for path in paths}
    threads = threads or usable().default
    found = race(at, arguments, rounds=rounds, threads=threads, flush=True, alike=alike)
    return [(len(one.run_secs), str(one.error_msg or "")) for one in found]


def test_kernels_race_in_one_session_and_the_wrong_ones_are_out(tmp_path: Path) -> None:
    double, again, treble = (library(tmp_path, name, f) for name, f in (("a", 2.0), ("b", 2.0), ("c", 3.0)))
    with board(tmp_path / "board") as made:
        at = Endpoint("127.0.0.1", made.port, KEY)
        assert results(at, [double, again], rounds=5) == [(5, ""), (5, "")]
        assert len(made.granted) == 1, "one session"
        ((rounds, error), (_, wrong)) = results(at, [double, treble])
        assert (rounds, error) == (0, "") and "something else than the default" in wrong
        # A kernel that ends the process is to blame, and not the other; at its first call or while it is timed.
        for call in (1, 9):
            (_, error), (_, crashed) = results(at, [double, crashing(tmp_path, call)], compare=False)
            assert error == "" and "ended its process" in crashed
        (_, crashed), (rounds, error) = results(at, [crashing(tmp_path, 1), double])
        assert "ended its process" in crashed and (rounds, error) == (0, "")
        # The board is as good as before.
        assert results(at, [double, again]) == [(3, ""), (3, "")]


def test_what_is_no_kernels_fault_is_an_error(tmp_path: Path) -> None:
    path = library(tmp_path, "a", 2.0)
    with board(tmp_path / "board") as made:
        with pytest.raises(FleetError, match="is for 99") as raised:
            results(Endpoint("127.0.0.1", made.port, KEY), [path, path], threads=99)
        assert raised.value.code == "threads" and "--option cores=" in raised.value.hint
        with pytest.raises(FleetError) as raised:
            results(Endpoint("127.0.0.1", made.port, "another-key"), [path, path])
        assert raised.value.code == "unreachable"
        port = made.port
    for tracker in (False, True):
        with pytest.raises(FleetError) as raised:
            results(Endpoint("127.0.0.1", port, KEY, tracker), [path, path])
        assert raised.value.code == "unreachable"
