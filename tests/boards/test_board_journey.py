"""From a bare board to the last day of its agent: provisioned, deployed to, benched, started anew, updated, removed.

Once for each architecture, in the order of this file: a board's life is too slow here to begin it again for each test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from agent_client import REPOSITORY, wait_for
from board_fixtures import Boards, boards, own_runtime
from board_fleet import BoardFleet, only
from board_hosts import Board, said
from board_memory import resident
from board_roots import ARCHITECTURES
from fleet_fixtures import run

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1800)]
__all__ = ["boards"]

NET, ZOO = "shapes-classifier", "mobilenet_v2"
MEGABYTE = 1e6


@dataclass
class Place:
    """A board, the inventory that has it, and how it is provisioned and built for there."""

    board: Board
    fleet: BoardFleet
    target: str
    #: Where its TVM comes from.
    runtime: str
    #: What is built for.
    option: str

    def __post_init__(self) -> None:
        self.name = self.board.name
        self.fleet.add(self.board, self.target)
        # The same board by the other carrier.
        self.over_rpc = self.fleet.root / "rpc.yaml"
        self.over_rpc.write_text(self.fleet.inventory.read_text().replace("link: ssh", "link: rpc+ssh"))

    def provision(self, *more: str) -> list[str]:
        return ["provision", self.name, "--runtime", self.runtime, *more]

    def agent(self) -> str:
        """The name of the agent that is to be started."""
        return self.board.inside("readlink", "/opt/fleet/agent").strip().rpartition("/")[2]


@pytest.fixture(scope="class")
def place(request: pytest.FixtureRequest, boards: Boards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A board that was bare, and is provisioned."""
    kind: type[Journey] = request.cls
    fleet = BoardFleet(tmp_path_factory.mktemp("fleet"))
    if kind.runtime == "own":
        own_runtime(fleet, ARCHITECTURES[kind.architecture].uname)
    made = Place(boards(kind.architecture, f"{kind.target}-1"), fleet, kind.target, kind.runtime, kind.option)
    done = fleet.one(*made.provision())
    assert done["status"] == "provisioned", done
    yield made
    made.board.stop()


def agents(place: Place) -> list[psutil.Process]:
    """The processes of the agent: itself, then its workers."""
    found = []
    for one in place.board.processes():
        # Of those that end meanwhile, or have ended and nobody has noticed, there is nothing to ask.
        with contextlib.suppress(psutil.Error):
            found += [one] if any("/opt/fleet/agent" in word for word in one.cmdline()[1:2]) else []
    pids = {one.pid for one in found}
    return sorted(found, key=lambda one: one.ppid() in pids)


def idle(place: Place) -> bool:
    return "idle" in place.fleet("devices", "check", "--device", place.name).out


def releases(place: Place) -> list[tuple[str, str]]:
    device = only(place.fleet.good("status", "--device", place.name)["devices"])
    return [(one["slot"], one["bundle"]) for one in device["releases"]]


class Journey:
    """In the order of a board's life. One class for each architecture, all of it run by one worker."""

    #: Debian's name, the target, where TVM comes from, what is built for.
    architecture: str
    target: str
    runtime: str
    option: str
    #: Whether a processor is emulated, and the agent's service is the script for systems without systemd.
    emulated = True
    runs_by_script = True
    #: Seconds in which its agent is up, however slow the processor.
    deadline = 60

    def test_a_second_provision_changes_nothing(self, place: Place) -> None:
        done = place.fleet.one(*place.provision())
        assert (done["status"], done["changes"]) == ("unchanged", [])
        checked = place.fleet.one(*place.provision("--check"))
        assert (checked["status"], checked["changes"]) == ("good", [])
        assert place.agent() == done["agent"]

    def test_the_agent_has_no_rights_and_is_started_again(self, place: Place) -> None:
        agent = agents(place)[0]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines())
        assert (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("1", 0, 0)
        # Filtered by systemd; without it there is no filter.
        systemd = not self.runs_by_script
        assert status["Seccomp"] == ("2" if systemd else "0")
        command = ["systemctl", "is-active", "fleet-agent"] if systemd else ["/opt/fleet/run-agent", "status"]
        assert place.board.inside(*command).startswith("active" if systemd else "running")
        agent.kill()
        wait_for(lambda: agents(place)[:1] not in ([], [agent]) and idle(place), "another agent", 120)

    def test_a_network_over_ssh(self, place: Place) -> None:
        """The board computes what the source framework computed, or the release would not be active."""
        done = place.fleet.one("deploy", NET, "--device", place.name, "--option", place.option)
        assert (done["status"], done["carrier"]) == ("active", "ssh")
        again = place.fleet.one("deploy", NET, "--device", place.name, "--option", place.option)
        assert (again["status"], again["bytes_sent"]) == ("unchanged", 0)

    def test_a_picture(self, place: Place) -> None:
        path = place.fleet.root / "star.png"
        command = [sys.executable, "-m", "controller.zoo.draw", "picture", "--shape", "star", "--seed", "7", "-o", path]
        subprocess.run(command, check=True, cwd=REPOSITORY, timeout=60)
        found = place.fleet.one("run", NET, path, "--device", place.name)
        assert found["top"][0]["label"] == "star" and found["top"][0]["score"] > 0.5

    @pytest.mark.parametrize("carrier", ["ssh", "rpc+ssh"])
    def test_a_bench_over_each_carrier(self, place: Place, carrier: str) -> None:
        where = ["--inventory", place.over_rpc] if carrier == "rpc+ssh" else []
        short = ["--min-duration", "0.2", "--percentile", "50", "--max-other-load", "1"]
        result = only(place.fleet.good("bench", "--device", place.name, *short, *where)["runs"])
        assert (result["model"], result["verdict"]) == (NET, "VALID")
        assert result["samples"] >= 20 and 0 < result["latency_ms"]["p50"] < 60_000
        # What an emulator measured is no board's figure, and says so.
        assert result["simulated"] == self.emulated
        assert result["conditions"].get("emulated") == (f"on {os.uname().machine}" if self.emulated else None)
        assert result["conditions"]["apache-tvm"].startswith("0.27.0")

    def test_a_network_of_the_zoo_over_tvm_rpc(self, place: Place) -> None:
        """Pushed by TVM RPC through the tunnel; then the release before is brought back."""
        where = ["--inventory", place.over_rpc, "--device", place.name]
        done = place.fleet.one("deploy", ZOO, "--weights", "random:0", "--option", place.option, *where)
        assert (done["status"], done["carrier"]) == ("active", "rpc+ssh")
        assert done["bytes_sent"] > 10 * MEGABYTE
        back = place.fleet.one("rollback", "--device", place.name)
        assert (back["status"], back["model"]) == ("active", NET)

    def test_the_agent_is_small(self, place: Place) -> None:
        """Asked for on armv7: below 60 MB each, installed with NumPy, and in memory at rest."""
        kilobytes = said(run(place.board.run("du", "-sk", "/opt/fleet/agents/" + place.agent())))[0].split()[0]
        installed = int(kilobytes) * 1024
        names = [one for one in ("numpy", "zmq", "psutil", "zstandard", "cryptography") if place.target == "armv7"]
        if names:
            format = "-f=${Installed-Size}\\n"
            sizes = said(run(place.board.run("dpkg-query", "-W", format, *(f"python3-{name}" for name in names))))
            installed += sum(int(size) * 1024 for size in sizes)
        agent = agents(place)[0]
        memory = resident(agent.pid) if self.emulated else agent.memory_info().rss
        print(f"{place.target}: installed {installed / MEGABYTE:.1f} MB, at rest {memory / MEGABYTE:.1f} MB")
        if place.target == "armv7":
            assert installed < 60 * MEGABYTE and memory < 60 * MEGABYTE
        assert memory < 100 * MEGABYTE

    def test_a_reboot_keeps_the_releases(self, place: Place) -> None:
        before = releases(place)
        place.board.reboot()
        wait_for(lambda: idle(place), "the agent", 180)
        assert releases(place) == before != []
        found = place.fleet.one("run", NET, place.fleet.root / "star.png", "--device", place.name)
        assert found["top"][0]["label"] == "star"

    def test_an_agent_that_does_not_come_up_is_taken_back(self, place: Place, tmp_path: Path) -> None:
        before = place.agent()
        broken = place.fleet.changed(
            tmp_path / "broken",
            "agent/main.py",
            "    config = _config(options)\n",
            '    raise RuntimeError("not today")\n',
        )
        done = broken.failed(*place.provision("--update", "--deadline", str(self.deadline)))
        assert done["status"] == "rolled-back" and "not today" in done["reason"], done
        assert place.agent() == before and releases(place)

    def test_an_update_keeps_the_releases_and_the_agent_before(self, place: Place, tmp_path: Path) -> None:
        before, kept = place.agent(), releases(place)
        newer = place.fleet.changed(
            tmp_path / "newer", "agent/main.py", "the daemon on a device", "the daemon of a device"
        )
        done = newer.one(*place.provision("--update"))
        assert done["status"] == "updated", done
        assert place.agent() == done["agent"] != before
        assert releases(place) == kept
        assert before in place.board.inside("ls", "/opt/fleet/agents").split()
        # And back, which sends nothing: it still lies there.
        back = place.fleet.one(*place.provision("--update"))
        assert (back["status"], back["agent"], place.agent()) == ("updated", before, before)

    def test_what_is_removed_is_gone(self, place: Place) -> None:
        done = place.fleet.one("provision", place.name, "--remove")
        assert done["status"] == "removed", done
        left = place.board.inside(
            "sh", "-c", "ls -d /opt/fleet /etc/fleet /etc/sudoers.d/fleet-agent 2>/dev/null; true"
        )
        assert left == "" and not agents(place)
        # Its data stay until that is asked for, too.
        assert place.board.inside("ls", "/var/lib/fleet/agent/store")
        place.fleet.one("provision", place.name, "--remove", "--data")
        assert place.board.inside("sh", "-c", "ls -d /var/lib/fleet; getent passwd fleet; true") == ""


class TestArm64(Journey):
    architecture, target, runtime, option = "arm64", "arm64", "pypi", "board=rpi4"


class TestArmv7(Journey):
    architecture, target, runtime, option = "armhf", "armv7", "own", "board=pynq"


class TestSystemd(Journey):
    """With systemd as its first process, and all that the service's unit takes from the agent: on this processor."""

    architecture, target, runtime, option = "amd64", "x86", "pypi", "cores=2"
    emulated = runs_by_script = False
    deadline = 10
