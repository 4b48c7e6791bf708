"""`fleet eval` on simulated boards: accuracies of the two small networks, and what cuts it off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FLEET, Cli, boards, environment
from PIL import Image

from controller.events import Event, Message, Progress
from controller.fleet import EvalOptions, Fleet
from controller.reports import EvalReport


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Two x86 boards with both networks, and drawn data sets beside their home."""
    root = tmp_path_factory.mktemp("eval")
    for called in boards(root / "home", 2, "--target", "x86"):
        called.good("dataset", "shapes", "scenes", "--count", "12", "--seed", "2")
        called.good("dataset", "shapes", "many", "--count", "120", "--seed", "3")
        called.good("dataset", "shapes", "pictures", "--count", "24", "--seed", "2", "--kind", "classification")
        called.good("deploy", "shapes-ssd", "--all")
        called.good("deploy", "shapes-classifier", "--device", "sim-1", "--slot", "names")
        yield called


def one(document: dict[str, Any]) -> dict[str, Any]:
    (result,) = document["results"]
    assert isinstance(result, dict)
    return result


def journals(cli: Cli) -> list[Path]:
    return list((cli.home / "evaluations").glob("*.jsonl"))


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def answered(cli: Cli) -> int:
    """Pictures in the journals."""
    return sum(max(file.read_bytes().count(b"\n") - 1, 0) for file in journals(cli))


def test_detector_and_classifier(cli: Cli) -> None:
    found = one(cli.good("eval", "shapes-ssd", "scenes", "--device", "sim-1", "-o", "confusion.png"))
    assert {"device", "model", "metric", "value", "baseline", "images", "simulated"} <= set(found)
    assert (found["device"], found["model"], found["metric"]) == ("sim-1", "shapes-ssd", "mAP")
    assert (found["images"], found["simulated"], found["baseline"], found["resumed"]) == (12, True, None, 0)
    assert found["value"] == found["metrics"]["mAP"] > 0.85
    assert sum(each["truth"] for each in found["classes"]) == len(
        json.loads((cli.cwd / "scenes/annotations/instances_shapes.json").read_text())["annotations"]
    )
    with Image.open(cli.cwd / "confusion.png") as picture:
        assert picture.size[0] > 400
    # No device is named: it finds one that has the model.
    named = one(cli.good("eval", "shapes-classifier", "pictures"))
    assert (named["device"], named["metric"], named["images"]) == ("sim-1", "top1", 24)
    assert named["value"] > 0.9 and named["metrics"]["top5"] >= named["value"]
    assert journals(cli) == []

    listed = cli.good("results", "list", "--device", "sim-1")["evaluations"]
    assert {found["id"], named["id"]} <= {each["id"] for each in listed}
    (shown,) = cli.good("results", "show", found["id"][:10])["evaluations"]
    assert shown["metrics"] == found["metrics"] and shown["classes"] == found["classes"]
    plain = cli("results")
    assert plain.code == 0 and found["id"][:12] in plain.out
    plain = cli("results", "show", named["id"])
    assert "top1" in plain.out and "hexagon" in plain.out


def test_baselines(cli: Cli) -> None:
    base = one(cli.good("eval", "shapes-ssd", "scenes", "--device", "sim-1"))
    other = one(cli.good("eval", "shapes-ssd", "scenes", "--device", "sim-2", "--baseline", "sim-1", "--max-drop", "0"))
    assert other["baseline_id"] and other["baseline"] == base["value"] == other["value"]
    assert other["classes"][0]["baseline"] == other["classes"][0]["metrics"]
    both = cli.good("eval", "shapes-ssd", "scenes", "--all", "--baseline", "sim-1", "--max-drop", "0")["results"]
    assert [each["baseline_id"] for each in both if each["device"] == "sim-2"] == [
        each["id"] for each in both if each["device"] == "sim-1"
    ]

    # A map that gives most classes no category, then one that gives them wrong ones.
    names = ["circle", "square", "triangle", "pentagon", "hexagon", "star", "cross", "arrow", "diamond", "heart"]
    names += ["crescent", "ring"]
    swapped = cli.cwd / "swapped.txt"
    swapped.write_text("\n".join([*names[6:], *names[:6]]))
    arguments = ["eval", "shapes-ssd", "scenes", "--device", "sim-2", "--classes", swapped, "--baseline", base["id"]]
    worse = one(cli.good(*arguments))
    assert worse["value"] < 0.1 and worse["baseline"] == base["value"]
    assert cli(*arguments, "--max-drop", "0.5", "--json").code == 1
    text = cli(*arguments).out
    assert "difference" in text and "-0.9" in text

    assert cli("eval", "shapes-ssd", "scenes", "--device", "sim-2", "--max-drop", "0").code == 2
    called = cli("eval", "shapes-ssd", "many", "--device", "sim-2", "--baseline", base["id"], "--json")
    assert (called.code, called.error["code"]) == (2, "bad-baseline")
    called = cli("eval", "shapes-ssd", "many", "--device", "sim-2", "--baseline", "sim-1", "--json")
    assert (called.code, called.error["code"]) == (2, "bad-baseline")


def test_bad_input(cli: Cli) -> None:
    device = ["--device", "sim-1"]
    truncated = cli.cwd / "instances_half.json"
    whole = (cli.cwd / "scenes/annotations/instances_shapes.json").read_text()
    truncated.write_text(whole[: len(whole) // 2])
    called = cli("eval", "shapes-ssd", truncated, *device, "--json")
    assert (called.code, called.error["code"]) == (2, "bad-dataset")
    assert "not a whole JSON file" in called.error["message"]

    missing = cli.cwd / "missing" / "annotations" / "instances_x.json"
    missing.parent.mkdir(parents=True)
    missing.write_text(whole)
    called = cli("eval", "shapes-ssd", missing, *device, "--json")
    assert "12 of 12 pictures are missing: 00000.png" in called.error["message"]
    kept = missing.parent.parent / "images"
    kept.mkdir()
    source = cli.cwd / "scenes" / "images"
    for index in range(5):
        (kept / f"0000{index}.png").write_bytes((source / f"0000{index}.png").read_bytes())
    called = cli("eval", "shapes-ssd", missing, *device, "--json")
    assert "7 of 12 pictures are missing: 00005.png, 00006.png, 00007.png and 4 more" in called.error["message"]

    # A damaged picture and one of another size are found when they are read.
    (kept / "00003.png").write_bytes((source / "00003.png").read_bytes()[:300])
    Image.new("RGB", (40, 30)).save(kept / "00004.png")
    called = cli("eval", "shapes-ssd", missing, *device, "--images", source, "--limit", "3", "--json")
    assert called.code == 0 and one(called.document)["images"] == 3
    skipping = ["eval", "shapes-ssd", missing, *device, "--skip-bad"]
    found = one(cli.good(*skipping))
    assert (found["images"], found["skipped"]) == (3, 9)
    for index in range(5, 12):
        (kept / f"{index:05}.png").write_bytes((source / f"{index:05}.png").read_bytes())
    called = cli("eval", "shapes-ssd", missing, *device, "--json")
    failed = one(called.document)
    assert called.code == 1 and "00003.png: the picture is damaged" in failed["error"] and not failed["id"]
    assert "3 of 12 pictures are done" in failed["error"] and "goes on there" in failed["error"]

    short = cli.cwd / "short.txt"
    short.write_text("circle\nsquare\n")
    called = cli("eval", "shapes-ssd", "scenes", *device, "--classes", short, "--json")
    assert called.code == 1 and "has 2 names, the model 12 classes" in one(called.document)["error"]
    called = cli("eval", "shapes-ssd", "pictures", *device, "--json")
    assert called.code == 1 and "gives boxes, the data set has a folder" in one(called.document)["error"]
    called = cli("eval", "no-such-model", "scenes", *device, "--json")
    assert called.code == 1 and "does not have 'no-such-model'" in one(called.document)["error"]
    assert cli("eval", "shapes-ssd", "nowhere", *device, "--json").error["code"] == "bad-dataset"
    assert cli("eval", "shapes-ssd", "scenes", *device, "--metric", "top1").code == 2
    assert cli("eval", "shapes-ssd", "scenes", *device, "--metric", "segm_mAP", "--json").code == 1


def test_it_goes_on_after_the_command_was_killed(cli: Cli) -> None:
    arguments = ["eval", "shapes-ssd", "many", "--device", "sim-1", "--json"]
    before = answered(cli)
    process = subprocess.Popen(
        [FLEET, *arguments], cwd=cli.cwd, env=environment(cli.home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: answered(cli) >= before + 10, "ten answers")
    finally:
        process.kill()
        process.communicate()
    kept = answered(cli) - before
    assert 10 <= kept < 120
    # The lease of the one that was killed has to run out first, which is said.
    called = cli(*arguments)
    assert called.code == 0 and "waiting: " in called.err
    found = one(called.document)
    assert found["resumed"] == kept and found["images"] == 120
    assert answered(cli) == before
    # What was put together is what one go gives.
    whole = one(cli.good(*arguments, "--fresh"))
    assert whole["resumed"] == 0 and whole["metrics"] == found["metrics"]


def agent(cli: Cli, name: str) -> int:
    pid = next(board["pid"] for board in cli.good("sim", "status")["boards"] if board["name"] == name)
    assert isinstance(pid, int)
    return pid


def test_a_board_that_drops_out(cli: Cli) -> None:
    events: list[Event] = []
    killed: list[int] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and 0.03 < event.share < 1 and not killed:
            killed.append(agent(cli, "sim-2"))
            os.kill(killed[0], signal.SIGKILL)

    def evaluated(patience: float) -> EvalReport:
        fleet = Fleet(home=cli.home, listener=listen)
        options = EvalOptions(limit=100, patience=patience)
        (report,) = asyncio.run(fleet.eval("shapes-ssd", cli.cwd / "many", fleet.select(["sim-2"]), options))
        return report

    # Nobody brings it back: what was done is kept, and that is said.
    report = evaluated(patience=1.0)
    assert killed and "of 100 pictures are done" in report.error and "the same command goes on there" in report.error
    done = answered(cli)
    assert done >= 3

    # It comes back while the next evaluation is under way.
    def bring_back() -> None:
        until(lambda: killed, "the end of the agent")
        cli.good("sim", "up", "--count", "2", "--target", "x86")

    cli.good("sim", "up", "--count", "2", "--target", "x86")
    killed.clear()
    events.clear()
    bringer = threading.Thread(target=bring_back)
    bringer.start()
    report = evaluated(patience=60.0)
    bringer.join()
    assert report.error == "" and report.images == 100 and report.resumed >= 3
    assert [event for event in events if isinstance(event, Message) and event.text == "connected again"]
    assert killed
