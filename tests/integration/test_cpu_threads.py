"""Threads of a release, and instructions that it may use: on a board at work, by the kernel's own account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from agent_client import Bundle
from build_fixtures import convnet, home_with_tools
from fleet_fixtures import Yard, run, yard
from test_build import good, zig

from agent.protocol import BenchSpec, RunResult
from controller import sim, sources
from controller.build import BuildRequest, build
from controller.options import BenchOptions, DeployOptions
from targets.bundle import bundle_id, canonical, parse_manifest
from targets.cores import cpu_list, usable
from targets.cpu.machine import MACHINES, cpu_features, machine

__all__ = ["yard", "zig"]

HERE = Path(__file__).parent
ALLOWED = sorted(os.sched_getaffinity(0))
TARGET = {"x86_64": "x86", "aarch64": "arm64", "armv7l": "armv7"}[machine()]


def pool(threads: int, processors: list[int], **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "run_pool.py"), str(threads), *map(str, processors)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("processors", [ALLOWED, ALLOWED[:1], ALLOWED[-1:]], ids=["all", "first", "last"])
def test_each_thread_has_a_core_of_its_own(processors: list[int]) -> None:
    """The trap: alone, TVM would start half as many threads, and bind them to cores that it may not use."""
    found = pool(0, processors, TVM_NUM_THREADS="1", OMP_NUM_THREADS="1")
    expected = usable(allowed=processors)
    assert found["threads"] == expected.default == 1 + len(found["started"])
    own = [found["caller"], *found["started"]]
    if expected.quota is None:
        assert all(len(cpus) == 1 for cpus in own)
        assert len({cpus[0] for cpus in own}) == len(own) and {cpus[0] for cpus in own} <= set(processors)
    else:
        assert all(cpus == processors for cpus in own)
    # Threads that were there before and have nothing to do with the pool may still run anywhere.
    assert all(cpus == processors for cpus in found["others"]) and found["same"]


def test_fewer_threads_than_cores_and_more() -> None:
    found = pool(1, ALLOWED)
    assert found["threads"] == 1 and found["started"] == [] and len(found["caller"]) in (1, len(ALLOWED))
    found = pool(usable().most + 1, ALLOWED)
    assert found["code"] == "too-many-threads" and f"{usable().most + 1} threads are asked for" in found["refused"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, zig: Path) -> Bundle:
    """The small network, built for what this machine's processor has."""
    folder = tmp_path_factory.mktemp("threads")
    home = home_with_tools(folder / "home", zig)
    source = sources.resolve(str(convnet(folder / "net.onnx")), home=home)
    (built,) = build([BuildRequest(source, TARGET, {"mcpu": "host"})], home=home)
    manifest = good(built).manifest
    assert manifest is not None
    blobs = {file.sha256: built.blobs.path(file.sha256).read_bytes() for file in manifest.files}
    return Bundle(canonical(manifest), bundle_id(canonical(manifest)), blobs, np.zeros(0))


def worker_of(board: sim.SimBoard) -> psutil.Process:
    (worker,) = [child for child in psutil.Process(board.pid).children() if "agent.worker" in child.cmdline()]
    return worker


def pinned_threads(process: psutil.Process) -> list[int]:
    """The cores of those threads that may run on one core only."""
    found = []
    for thread in process.threads():
        status = Path(f"/proc/{process.pid}/task/{thread.id}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("Cpus_allowed_list")]
        cpus = cpu_list(line.partition(":")[2])
        found += cpus if len(cpus) == 1 else []
    return sorted(found)


def test_a_release_runs_on_as_many_threads_as_asked(yard: Yard, made: Bundle) -> None:
    (board,) = yard.up(1, target=TARGET)
    (device,) = yard.everything
    archive = yard.archive(made)
    cores = usable()
    most = cores.default
    (report,) = run(yard.fleet().deploy(archive, [device], DeployOptions(threads=most)))
    assert report.status == "active", report.reason
    if len(ALLOWED) > 1:
        # Under a quota nothing is pinned, and `pinned` is empty.
        assert pinned_threads(worker_of(board)) == sorted(cores.pinned(most))

    for threads, count in ((1, "1"), (0, str(most))):
        spec = BenchSpec(min_duration=0.05, percentile=50.0, warmup_max=0.5)
        (result,) = run(yard.fleet().bench(None, [device], BenchOptions(spec=spec, threads=threads)))
        assert isinstance(result, RunResult), result
        assert result.conditions["threads"] == count
        if cores.quota is None:
            assert result.conditions["pinned"] == ",".join(map(str, cores.pinned(int(count))))

    # More than there are is refused before anything runs, in words, and the release stays.
    many = cores.most + 1
    (report,) = run(yard.fleet().deploy(archive, [device], DeployOptions(threads=many, slot="other")))
    assert report.status == "failed" and f"{many} threads are asked for" in report.reason
    (failed,) = run(yard.fleet().bench(None, [device], BenchOptions(threads=many)))
    assert not isinstance(failed, RunResult) and f"{many} threads are asked for" in str(failed)
    assert yard.active(device) == made.id


def test_a_processor_refuses_instructions_that_it_lacks(yard: Yard, made: Bundle) -> None:
    """The bundle says which instructions it may use: those of this host, and all of them are here."""
    manifest = msgspec.json.decode(made.manifest)
    host = MACHINES[machine()].processor("host")
    asked = manifest["requirements"]["cpu_features"]
    assert asked == list(host.features) and cpu_features().issuperset(asked)
    assert manifest["toolchain"]["mcpu"] == host.name and manifest["toolchain"]["cores"] == str(host.cores)

    yard.up(1, target=TARGET)
    (device,) = yard.everything
    (report,) = run(yard.fleet().deploy(yard.archive(made), [device]))
    assert report.status == "active", report.reason
    # The same bundle, signed by the same key, for a processor that nobody has built.
    parsed = parse_manifest(made.manifest)
    more = msgspec.structs.replace(
        parsed,
        requirements=msgspec.structs.replace(parsed.requirements, cpu_features=(*asked, "avx8192", "telepathy")),
    )
    foreign = Bundle(canonical(more), bundle_id(canonical(more)), made.blobs, made.weight)
    (report,) = run(yard.fleet().deploy(yard.archive(foreign), [device]))
    assert report.status == "failed"
    assert "requirements: this processor lacks avx8192, telepathy" in report.reason
    assert yard.active(device) == made.id
