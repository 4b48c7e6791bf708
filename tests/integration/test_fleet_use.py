"""Measuring, running pictures, watching and diagnosing real agents."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from agent_client import wait_for
from build_fixtures import convnet
from fleet_fixtures import HeldLease, Yard, run, until, yard

from agent import protocol as p
from controller import doctor
from controller.events import DeviceChanged, Event, Message, Reading, SampleBatch
from controller.home import Home
from controller.inventory import Device
from controller.options import BenchOptions, RunOptions
from controller.prepare import jobs_for
from controller.reports import RunReport
from controller.results import Results
from targets.base import FleetError

__all__ = ["yard"]

QUICK = p.BenchSpec(min_duration=0.2, warmup_max=1.0, max_other_load=1.0)


def deployed(yard: Yard, count: int = 1, **program: object) -> list[Device]:
    yard.up(count)
    archive, _ = yard.made(sleep=0.001, **program)
    selection = yard.everything
    assert {r.status for r in run(yard.fleet().deploy(archive, selection))} == {"active"}
    yard.events.clear()
    return selection


# --- Bench --------------------------------------------------------------------------------------


def test_bench_measures_the_release_and_stores_before_it_acknowledges(yard: Yard) -> None:
    selection = deployed(yard, 2)
    runs = run(yard.fleet().bench(None, selection, BenchOptions(spec=QUICK)))
    assert [type(one) for one in runs] == [p.RunResult, p.RunResult]
    stored = Results(yard.home.results_url)
    for device, one in zip(selection, runs, strict=True):
        assert isinstance(one, p.RunResult)
        assert (one.device, one.model, one.bundle) == (device.name, "product", yard.active(device))
        assert len(one.samples) >= 64 and 1.0 <= one.latency_ms.p50 < 50.0
        kept = stored.get(one.run)
        assert (kept.device, kept.samples, kept.origin) == (device.name, len(one.samples), "test:product")
        assert kept.versions.get("numpy")
        assert yard.status(device).unacknowledged == 0
    stored.close()
    batches = [event for event in yard.events if isinstance(event, SampleBatch)]
    assert {event.device for event in batches} == {"sim-1", "sim-2"}
    # One after the other: they share this machine.
    order = [event.device for event in batches]
    assert order == sorted(order)


def test_kept_results_are_collected_later(yard: Yard) -> None:
    (device,) = deployed(yard)
    (first,) = run(yard.fleet().bench(None, [device], BenchOptions(spec=QUICK, keep=True)))
    assert isinstance(first, p.RunResult)
    assert yard.status(device).unacknowledged == 1
    # As if the controller had been lost before it could store anything.
    Path(yard.home.data / "results.db").unlink()
    (second,) = run(yard.fleet().bench(None, [device], BenchOptions(spec=QUICK)))
    assert isinstance(second, p.RunResult)
    assert yard.status(device).unacknowledged == 0
    stored = Results(yard.home.results_url)
    assert {row.id for row in stored.list()} == {first.run, second.run}
    stored.close()
    assert any("collected 1" in event.text for event in yard.events if isinstance(event, Message))


def test_a_bench_cut_in_the_middle_gives_a_reason_or_its_result(yard: Yard) -> None:
    (device,) = deployed(yard)
    killed = threading.Event()

    def listener(event: Event) -> None:
        if isinstance(event, SampleBatch) and not killed.is_set():
            killed.set()
            yard.kill("sim-1")
            threading.Thread(target=yard.up).start()

    spec = p.BenchSpec(min_duration=3.0, warmup_max=0.5, max_other_load=1.0)
    (one,) = run(yard.fleet(listener).bench(None, [device], BenchOptions(spec=spec)))
    assert isinstance(one, RunReport) and one.failed and "gone" in one.reason
    wait_for(lambda: yard.state("sim-1") == "running", "the board is back")
    assert yard.active(device)
    (again,) = run(yard.fleet().bench(None, [device], BenchOptions(spec=QUICK)))
    assert isinstance(again, p.RunResult)


def test_two_bundles_interleaved(yard: Yard) -> None:
    (device,) = deployed(yard)
    active = yard.active(device)
    archive, other = yard.made("second", seed=3, sleep=0.001)
    runs = run(yard.fleet().bench(None, [device], BenchOptions(spec=QUICK, ab=(active[:10], archive))))
    one, two = runs
    assert isinstance(one, p.RunResult) and isinstance(two, p.RunResult)
    assert [one.bundle, two.bundle] == [active, other.id]
    assert two.interleaved_with == one.run
    # Measured, but not made the release.
    assert yard.active(device) == active


def test_what_cannot_be_measured_says_why_and_stops_no_other(yard: Yard) -> None:
    yard.up(2)
    first, second = yard.everything
    archive, _ = yard.made(sleep=0.001)
    run(yard.fleet().deploy(archive, [second]))
    bad, good = run(yard.fleet().bench(None, [first, second], BenchOptions(spec=QUICK)))
    assert isinstance(bad, RunReport) and bad.failed and bad.id == "" and "no release" in bad.reason
    assert isinstance(good, p.RunResult)
    (unknown,) = run(yard.fleet().bench(None, [second], BenchOptions(spec=QUICK, ab=("abcdef01", archive))))
    assert isinstance(unknown, RunReport) and "'abcdef01'" in unknown.reason
    with HeldLease(yard, second):
        (held,) = run(yard.fleet().bench(None, [second], BenchOptions(spec=QUICK, lease_wait=0.0)))
    assert isinstance(held, RunReport) and "somebody@else:1" in held.reason
    with pytest.raises(FleetError) as caught:
        run(yard.fleet().bench(None, [second], BenchOptions(spec=QUICK, batches=(1, 2))))
    assert caught.value.code == "usage"


def test_results_that_cannot_be_stored_are_noticed_first(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    (device,) = deployed(yard)
    monkeypatch.setenv("FLEET_RESULTS", "sqlite:////dev/null/results.db")
    with pytest.raises(FleetError):
        run(yard.fleet().bench(None, [device], BenchOptions(spec=QUICK)))
    assert not [event for event in yard.events if isinstance(event, SampleBatch)]


def test_an_interrupt_stops_the_measurement(yard: Yard) -> None:
    """A real Ctrl-C to a real process."""
    (device,) = deployed(yard)
    code = (
        "import asyncio\n"
        "from controller.fleet import Fleet\n"
        "from controller.options import BenchOptions\n"
        "from agent.protocol import BenchSpec\n"
        "fleet = Fleet(listener=lambda event: print(type(event).__name__, flush=True))\n"
        "spec = BenchSpec(min_duration=60.0, max_other_load=1.0)\n"
        "asyncio.run(fleet.bench(None, fleet.select(everything=True), BenchOptions(spec=spec)))\n"
    )
    environment = {**os.environ, "FLEET_HOME": str(yard.root)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            for line in process.stdout:
                if line.strip() == "SampleBatch":
                    break
            assert yard.status(device).state == "benching"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) != 0
            assert "KeyboardInterrupt" in process.stderr.read()
        finally:
            process.kill()
    status = yard.status(device)
    assert (status.state, status.lease) == ("idle", None)


# --- A real network -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convnet(tmp_path_factory.mktemp("model") / "net.onnx")


def test_a_network_from_file_to_answers(yard: Yard, model: Path) -> None:
    """ONNX through TVM to a simulated x86 board: assigned by the inventory, proved, measured, run on a picture."""
    from PIL import Image

    yard.up(1, target="x86")
    labels = [f"class-{n}" for n in range(10)]
    head = convnet(model.with_name("retrained.onnx"), head_seed=9)
    inventory = yard.root / "fleet.yaml"

    def write(file: Path) -> None:
        inventory.write_text(
            "models:\n"
            f"  pictures:\n    file: {json.dumps(str(file))}\n    labels: {json.dumps(labels)}\n"
            "    preprocess: {size: [16, 16]}\n"
            "assign:\n  - {model: pictures, target: x86}\n"
        )

    write(model)
    fleet = yard.fleet(inventory=inventory)
    selection = fleet.select(targets=["x86"])
    (report,) = run(fleet.deploy(None, selection))
    assert (report.status, report.model, report.origin) == ("active", "pictures", "file:net.onnx"), report.reason
    size = report.bytes_sent

    picture = yard.root / "picture.png"
    Image.new("RGB", (40, 30), (200, 30, 60)).save(picture)
    other = yard.root / "other.png"
    Image.new("L", (16, 16), 80).save(other)
    answers = run(fleet.run("pictures", [picture, other], selection, RunOptions(top=3)))
    assert [(a.device, a.image, a.error) for a in answers] == [("sim-1", str(picture), ""), ("sim-1", str(other), "")]
    for answer in answers:
        assert answer.top is not None and len(answer.top) == 3
        assert answer.top[0].label == f"class-{answer.top[0].index}"
        assert answer.top[0].score >= answer.top[1].score and answer.seconds > 0
    with pytest.raises(FleetError) as caught:
        run(fleet.run("pictures", [inventory], selection))
    assert caught.value.code == "bad-picture"
    (answer,) = run(fleet.run("resnet18", [picture], selection))
    assert "does not have 'resnet18'" in answer.error and "pictures" in answer.error
    (answer,) = run(fleet.run(None, [picture], selection, RunOptions(output=str(yard.root / "o.png"))))
    assert "no boxes" in answer.error

    one, two = run(fleet.bench(None, selection, BenchOptions(spec=QUICK, batches=(1, 2))))
    assert isinstance(one, p.RunResult) and isinstance(two, p.RunResult)
    assert (one.engine, one.batch, two.batch) == ("time_evaluator", 1, 2)

    # What is said of the device holds for what is built for it, and the model's own come before that.
    device = msgspec.structs.replace(selection[0], options={"cores": 1, "batch": 4})
    assert dict(jobs_for(fleet, "pictures", device, options={})[0].want.options) == {"cores": 1, "batch": 4}
    assert dict(jobs_for(fleet, None, device, options={"batch": 2})[0].want.options) == {"cores": 1, "batch": 2}

    # A retrained last layer costs its own weights, and a new golden set.
    write(head)
    fleet = yard.fleet(inventory=inventory)
    (report,) = run(fleet.deploy(None, selection))
    assert report.status == "active" and 0 < report.bytes_sent < size
    library = next(f for f in yard_manifest(yard, selection[0]).files if f.role == "library")
    assert report.bytes_skipped >= library.size


def yard_manifest(yard: Yard, device: Device):  # type: ignore[no-untyped-def]
    from targets.bundle import parse_manifest

    async def work() -> bytes:
        async with yard.fleet().session(device) as session:
            _, data = await session.connection.exchange(p.GetManifest(), p.Done)
            return data

    data = run(work())
    assert hashlib.sha256(data).hexdigest() == yard.active(device)
    return parse_manifest(data)


def test_a_model_that_is_none_is_one_error(yard: Yard) -> None:
    yard.up(1)
    bad = yard.root / "bad.onnx"
    bad.write_bytes(b"this is no network")
    with pytest.raises(FleetError):
        run(yard.fleet().deploy(str(bad), yard.everything))
    with pytest.raises(FleetError) as caught:
        run(yard.fleet().deploy("no-such-model", yard.everything))
    assert caught.value.code == "unknown-model"
    with pytest.raises(FleetError):
        yard.fleet().build("x.fleet", ["numpy"])


# --- Watching -----------------------------------------------------------------------------------


def test_watching_tells_changes_and_survives_a_restart(yard: Yard) -> None:
    (device,) = deployed(yard)
    release = yard.active(device)

    async def watch() -> None:
        watching = asyncio.ensure_future(yard.fleet().watch([device]))
        try:
            await until(lambda: DeviceChanged("sim-1", "idle", release, "product") in yard.events, "its release")
            await until(lambda: any(isinstance(e, Reading) for e in yard.events), "a reading")
            reading = next(e for e in yard.events if isinstance(e, Reading))
            assert reading.values["memory_bytes"] > 0
            assert reading.values["abacus_beads"] == 91.0
            await asyncio.to_thread(yard.kill, "sim-1")
            await until(lambda: any("gone" in e.text for e in yard.events if isinstance(e, Message)), "that it is gone")
            await asyncio.to_thread(yard.up)
            await until(lambda: any(e.text == "connected" for e in yard.events if isinstance(e, Message)), "it is back")
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    run(watch())


def test_logs_of_all_and_of_none(yard: Yard) -> None:
    (device,) = deployed(yard)
    gone = Device(name="gone", target="numpy", rpc="127.0.0.1:1")

    async def collect(selection: list[Device], follow: bool = False, most: int = 100) -> list[tuple[str, str]]:
        lines = []
        source = yard.fleet().logs(selection, follow=follow)
        async for line in source:
            lines.append(line)
            if len(lines) == most:
                break
        await source.aclose()  # type: ignore[attr-defined]
        return lines

    lines = run(collect([device, gone]))
    assert {name for name, _ in lines} == {"sim-1"}
    assert any("activated product" in text for _, text in lines)
    assert any(event.device == "gone" for event in yard.events if isinstance(event, Message))
    assert run(collect([device], follow=True, most=2)) == lines[-100:][:2]
    with pytest.raises(FleetError) as caught:
        run(collect([gone]))
    assert caught.value.code == "unreachable"


# --- Diagnosis ----------------------------------------------------------------------------------


def test_doctor(yard: Yard) -> None:
    (device,) = deployed(yard)
    found = {check.name: check for check in run(doctor.machine(yard.home))}
    assert {name: check.verdict for name, check in found.items() if check.verdict != "ok"} == {}
    assert {"python", "disk", "keys", "inventory", "target x86", "target numpy", "zig", "tvm", "results"} <= set(found)
    assert "1 simulated boards" in found["inventory"].detail

    mistaken = Device(name="mistaken", target="x86", address=device.address, key=device.key)
    gone = Device(name="gone", target="numpy", rpc="127.0.0.1:1")
    by_device: dict[str, dict[str, doctor.Check]] = {}
    for check in run(doctor.devices(yard.fleet(), [device, mistaken, gone])):
        by_device.setdefault(check.device, {})[check.name] = check
    assert {name: check.verdict for name, check in by_device["sim-1"].items()} == {
        "reachable": "ok",
        "protocol": "ok",
        "target": "ok",
        "clock": "ok",
        "disk": "ok",
    }
    assert by_device["mistaken"]["target"].verdict == "error" and by_device["mistaken"]["target"].hint
    assert by_device["gone"]["reachable"].verdict == "error" and by_device["gone"]["reachable"].hint


def test_doctor_finds_fault_with_the_inventory(tmp_path: Path) -> None:
    inventory, home = tmp_path / "fleet.yaml", Home.find(tmp_path / "home")
    inventory.write_text("devices: 3\n")
    check = doctor.check_inventory(home, inventory)
    assert check.verdict == "error" and f"{inventory}:1" in check.detail
    inventory.write_text("devices: []\n")
    check = doctor.check_inventory(home, inventory)
    assert check.verdict == "warning" and "fleet sim up" in check.hint


def test_devices_need_nothing_heavy(yard: Yard) -> None:
    """The list of devices must come quickly: what it imports is bounded, not what it takes."""
    yard.up(2)
    code = (
        "import asyncio, sys\n"
        "from controller.fleet import Fleet\n"
        "fleet = Fleet()\n"
        "reports = asyncio.run(fleet.devices(fleet.select(everything=True)))\n"
        "assert [r.state for r in reports] == ['idle', 'idle'], reports\n"
        "heavy = {'numpy', 'tvm', 'torch', 'sqlalchemy', 'scipy', 'PIL', 'onnx', 'ruamel'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "FLEET_HOME": str(yard.root)}, check=True)
