"""Boards that are provisioned for real: Ansible, OpenSSH, a board's own file system, the agent that comes of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from agent_client import wait_for
from provision_fixtures import Board, bare_board, needs_board
from ssh_fixtures import network

from controller.provision.board import PLAYBOOKS

__all__ = ["bare_board", "network"]

BIN = Path(sys.executable).parent
# A whole agent, with packages of the index, in a home that all tests of a session share: it is made once.
# Run with `make test-boards`: each makes a bare host of this machine's files and provisions it, which takes minutes.
pytestmark = [pytest.mark.boards, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controller")


#: What an agent does that ends a second after it has told that it is up.
ENDS_SOON = """
import os, pathlib, sys, threading, time
def _end():
    told = pathlib.Path("/var/lib/fleet/agent/agent.json")
    while not (told.exists() and str(os.getpid()) in told.read_text()):
        time.sleep(0.05)
    time.sleep(1)
    os._exit(7)
if "run" in sys.argv:
    threading.Thread(target=_end, daemon=True).start()
"""


class Controller:
    """`fleet` with one board in its inventory."""

    def __init__(self, board: Board, folder: Path, home: Path) -> None:
        self.board, self.folder, self.home = board, folder, home
        self.inventory = board.inventory(folder / "fleet.yaml")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "FLEET_HOME": str(self.home), "NO_COLOR": "1", "FLEET_INVENTORY": str(self.inventory)}

    def run(self, *arguments: str) -> tuple[int, Any]:
        """Exit code and JSON document of a command of `fleet`."""
        command = [BIN / "fleet", *arguments, "--inventory", self.inventory, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment(), timeout=500)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def provision(self, *options: str) -> tuple[int, dict[str, Any]]:
        """Exit code and the board's report. Without TVM's runtime, which takes minutes to make."""
        status, document = self.run("provision", "board-1", "--runtime", "none", *options)
        assert "results" in document, document
        return status, document["results"][0]

    def state(self) -> str:
        _, document = self.run("devices", "check")
        return str(document["devices"][0]["state"])


@pytest.fixture
def controller(bare_board: Board, tmp_path: Path, shared_home: Path) -> Controller:
    return Controller(bare_board, tmp_path, shared_home)


def with_package(controller: Controller, name: str, broken: str = "") -> str:
    """Make another agent of the one there is, which fails when it is started if ``broken`` is what it does; its id."""
    folder = controller.home / "cache" / "agents"
    about = json.loads(next(folder.glob("*.json")).read_text())
    tree = io.BytesIO()
    with tarfile.open(about["path"]) as old, tarfile.open(fileobj=tree, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            if member.name.startswith("agent/__pycache__/server."):
                continue
            data = content.read()
            if member.name == "agent/server.py":
                data = data + f"\n{broken}\n".encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    path = controller.folder / f"{name}.tar.gz"
    path.write_bytes(gzip.compress(tree.getvalue(), 1))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    package = {**about, "id": name, "path": str(path), "sha256": sha256}
    (controller.folder / f"{name}.json").write_text(json.dumps({"fleet_package": package}))
    return name


def play(controller: Controller, playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Plain ansible-playbook, as a person runs it."""
    environment = controller.environment() | {"FLEET": str(BIN / "fleet"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    command = [BIN / "ansible-playbook", f"{playbook}.yml", "-e", f"fleet_command={BIN / 'fleet'}", *options]
    return subprocess.run(
        [*command, "-e", "fleet_runtime=none"],
        cwd=PLAYBOOKS, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@needs_board
def test_a_bare_board_becomes_a_device(controller: Controller) -> None:
    board = controller.board
    # Nothing is there, and looking changes nothing.
    status, report = controller.provision("--check")
    assert (status, report["status"]) == (1, "would-change"), report
    assert any("agent" in change for change in report["changes"])
    assert not (board.files / "opt/fleet").exists()
    status, report = controller.provision()
    assert (status, report["status"]) == (0, "provisioned"), report
    assert controller.state() == "idle"
    # The agent is no root, and its home is its own and its group's.
    assert board.run("ps", "-o", "user=", "-p", pid(board)).strip() == "fleet"
    assert board.run("stat", "-c", "%U:%G %a", "/var/lib/fleet/agent").strip() == "fleet:fleet 2770"
    assert board.run("stat", "-c", "%U %a", "/opt/fleet/agents").strip() == "root 755"

    # Again: nothing is changed, and the agent goes on.
    before = pid(board)
    began = time.monotonic()
    status, report = controller.provision()
    assert (status, report["status"], report["changes"]) == (0, "unchanged", []), report
    assert time.monotonic() - began < 60
    status, report = controller.provision("--check")
    assert (status, report["status"]) == (0, "good"), report
    assert pid(board) == before

    # What somebody changed is found, and put right.
    board.run("sh", "-c", "echo FLEET_AGENT_HOME=/tmp >/etc/fleet/agent.env; chmod 777 /opt/fleet/agents")
    status, report = controller.provision("--check")
    assert status == 1
    assert {"Make directories: /opt/fleet/agents", "Write what differs: /etc/fleet/agent.env"} <= set(report["changes"])
    status, report = controller.provision()
    assert (status, report["status"]) == (0, "provisioned"), report
    assert controller.state() == "idle"

    # The board is switched off and on.
    board.run("/opt/fleet/run-agent", "stop")
    assert controller.state() != "idle"
    board.run("/opt/fleet/run-agent", "start")
    wait_for(lambda: controller.state() == "idle", "the agent after a start", 30)


@needs_board
def test_an_agent_that_does_not_come_up_gives_way_to_the_one_before(controller: Controller) -> None:
    board = controller.board
    first = controller.provision()[1]["agent"]
    # Another agent takes its place; releases and keys are what they were.
    mark = board.files / "var/lib/fleet/agent/store/mark"
    mark.write_text("kept")
    key = (board.files / "var/lib/fleet/agent/keys/curve.pub").read_bytes()
    second = with_package(controller, "0.1.1-second")
    done = play(controller, "update", "-e", f"@{controller.folder / second}.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert board.run("readlink", "/opt/fleet/agent").strip() == f"agents/{second}"
    assert controller.state() == "idle"
    assert mark.read_text() == "kept"
    assert (board.files / "var/lib/fleet/agent/keys/curve.pub").read_bytes() == key
    assert sorted(one.name for one in (board.files / "opt/fleet/agents").iterdir()) == sorted([first, second])

    # One that cannot be imported is never started; of one that does not come up, and one that ends soon after it did,
    # the one before is started again.
    back = f"the one before, {second}, runs again"
    for name, broken, words in (
        ("0.1.2-torn", "raise ImportError('torn')", "cannot be imported on this board"),
        ("0.1.3-broken", "import sys\nif 'run' in sys.argv: raise SystemExit('this agent is broken')", back),
        (
            "0.1.4-short",
            ENDS_SOON,
            back,
        ),
    ):
        third = with_package(controller, name, broken)
        options = ("-e", f"@{controller.folder / third}.json", "-e", "fleet_agent_deadline=12")
        done = play(controller, "update", *options)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stdout + done.stderr, done.stdout + done.stderr
        assert board.run("readlink", "/opt/fleet/agent").strip() == f"agents/{second}"
        wait_for(lambda: controller.state() == "idle", "the agent before", 30)


@needs_board
def test_an_agent_is_taken_off_and_put_back(controller: Controller) -> None:
    board = controller.board
    assert controller.provision()[0] == 0
    mark = board.files / "var/lib/fleet/agent/store/mark"
    mark.write_text("kept")
    key = (board.files / "var/lib/fleet/agent/keys/curve.pub").read_bytes()
    # Taken off, with its data left, and put back on with them.
    status, report = controller.provision("--remove", "--dry-run")
    assert (status, report["status"]) == (0, "would-change"), report
    assert controller.state() == "idle"
    status, report = controller.provision("--remove")
    assert (status, report["status"]) == (0, "removed"), report
    assert not (board.files / "opt/fleet").exists()
    assert not (board.files / "etc/fleet").exists()
    assert mark.read_text() == "kept"
    assert "fleet-agent" not in board.run("ps", "ax")
    status, report = controller.provision("--remove")
    assert (status, report["status"]) == (0, "unchanged"), report
    status, report = controller.provision()
    assert (status, report["status"]) == (0, "provisioned"), report
    assert (board.files / "var/lib/fleet/agent/keys/curve.pub").read_bytes() == key
    assert mark.read_text() == "kept"
    status, report = controller.provision("--remove", "--data")
    assert (status, report["status"]) == (0, "removed"), report
    assert not (board.files / "var/lib/fleet").exists()
    assert not board.run("getent", "passwd", "fleet", check=False)


def pid(board: Board) -> str:
    return str(json.loads((board.files / "var/lib/fleet/agent/agent.json").read_text())["pid"])


@needs_board
def test_plain_ansible_does_the_same_and_an_interrupt_leaves_what_a_second_run_completes(
    controller: Controller,
) -> None:
    board = controller.board
    command = [BIN / "fleet", "provision", "--all", "--runtime", "none", "--inventory", controller.inventory]
    process = subprocess.Popen(command, env=controller.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # In the midst of it: the agent is being installed.
    wait_for(lambda: any((board.files / "opt/fleet/agents").glob("*")), "something below /opt/fleet/agents", 120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Traceback" not in said

    done = play(controller, "provision")
    assert done.returncode == 0, done.stdout + done.stderr
    assert controller.state() == "idle"
    done = play(controller, "provision")
    assert "changed=0 " in done.stdout, done.stdout
    done = play(controller, "check")
    assert "changed=0 " in done.stdout, done.stdout


@needs_board
def test_what_cannot_be_provisioned_says_why(controller: Controller, bare_board: Board) -> None:
    board = bare_board
    # Another architecture than the inventory's.
    board.inventory(controller.inventory, target="arm64")
    status, report = controller.provision()
    assert (status, report["status"], report["code"]) == (1, "failed", "wrong-architecture"), report
    assert "x86_64" in report["reason"] and "x86" in report["hint"]
    # The playbooks alone say the same.
    done = play(controller, "provision")
    assert done.returncode == 2
    assert "the board is a x86_64, and target arm64 is for aarch64" in done.stdout
    board.inventory(controller.inventory)

    # Python too old: what the board calls python3 is what is asked.
    old = "#!/bin/sh\necho '/usr/local/bin/python3 3.8 64 glibc-2.31 0'\n"
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14"):
        path = board.files / "usr/local/bin" / name
        path.write_text(old)
        path.chmod(0o755)
    status, report = controller.provision()
    assert (status, report["code"]) == (1, "old-python"), report
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14"):
        (board.files / "usr/local/bin" / name).unlink()

    # No space: /opt is a file system of its own, and small.
    board.run("mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", "/opt")
    status, report = controller.provision()
    assert (status, report["code"]) == (1, "no-space"), report
    assert "19 MiB" in report["reason"] or "20 MiB" in report["reason"]
    board.run("umount", "/opt")

    # A login that is not root, and nobody to become it.
    board.run("useradd", "--create-home", "--shell", "/bin/sh", "--password", "*", "pi")
    inventory = controller.inventory.read_text()
    controller.inventory.write_text(inventory.replace("to: root@", "to: pi@"))
    status, report = controller.provision()
    if board.run("sh", "-c", "command -v sudo", check=False):
        assert (status, report["code"]) == (1, "sudo-password"), report
        assert "password" in report["reason"] and "NOPASSWD" in report["hint"]
    else:
        assert (status, report["code"]) == (1, "no-root"), report
        assert "no sudo" in report["reason"]
    controller.inventory.write_text(inventory)

    # No route: the cable is pulled.
    board.host.link("down")
    status, report = controller.provision()
    assert (status, report["status"], report["code"]) == (1, "unreachable", "unreachable"), report
    board.host.link("up")

    # What was half done, by hand even, is completed.
    board.run(
        "sh",
        "-c",
        "mkdir -p /opt/fleet/agents/0.0.0-half /etc/fleet; echo half >/opt/fleet/activate; "
        "ln -s agents/none /opt/fleet/agent",
    )
    status, report = controller.provision()
    assert (status, report["status"]) == (0, "provisioned"), report
    assert controller.state() == "idle"
    assert not (board.files / "opt/fleet/agents/0.0.0-half").exists()


def the_package(controller: Controller) -> Path:
    """Variables with the agent that was made for this board, for a play that is told another target."""
    about = json.loads(next((controller.home / "cache" / "agents").glob("*.json")).read_text())
    path = controller.folder / "package.json"
    path.write_text(json.dumps({"fleet_package": about}))
    return path


@needs_board
def test_roles_of_accelerators_tell_what_they_find(controller: Controller) -> None:
    """On a board that has files of a Jetson, an Atlas and a PYNQ, and none of the hardware."""
    board = controller.board
    assert controller.provision()[0] == 0
    package = f"@{the_package(controller)}"
    # What L4T's own file says of JetPack 6.2.
    (board.files / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n"
    )
    toolkit = board.files / "usr/local/Ascend/ascend-toolkit"
    toolkit.mkdir(parents=True)
    (toolkit / "set_env.sh").write_text("export ASCEND_HOME_PATH=/usr/local/Ascend/ascend-toolkit/latest\n")
    roles = json.dumps({"fleet_roles": ["arm", "jetson", "ascend"]})
    done = play(controller, "check", "-e", roles, "-e", package)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "L4T 36.4.3",
        "warning: no TensorRT",
        "warning: no tegrastats",
        "toolkit /usr/local/Ascend/ascend-toolkit/set_env.sh",
        "warning: no /dev/davinci",
        "warning: no group HwHiAiUser",
    ):
        assert words in done.stdout, done.stdout
    board.run("chmod", "o+w", "/usr/local/Ascend/ascend-toolkit/set_env.sh")
    done = play(controller, "check", "-e", roles, "-e", package)
    assert done.returncode == 2
    assert "can be written by everybody" in done.stdout

    # The accelerator in an FPGA: the helper is root's, the bitstream lies where the agent looks for it by its digest.
    bitstream = controller.folder / "vta.bit"
    bitstream.write_bytes(b"a bitstream")
    sha256 = hashlib.sha256(b"a bitstream").hexdigest()
    known = [{"path": str(bitstream), "sha256": sha256}]
    (board.files / "usr/local/share/pynq-venv/bin").mkdir(parents=True)
    (board.files / "usr/local/share/pynq-venv/bin/python3").symlink_to("/usr/bin/python3")
    more = json.dumps({"fleet_roles": ["pynq"], "fleet_target": "pynq", "fleet_bitstreams": known})
    for changed in (True, False):
        done = play(controller, "provision", "-e", more, "-e", package)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("changed=0 " not in done.stdout) == changed, done.stdout
    assert "warning: no device tree" in done.stdout
    assert board.run("stat", "-c", "%U %a", "/opt/fleet/helper.py").strip() == "root 644"
    assert "FLEET_PYNQ_HELPER=" in (board.files / "etc/fleet/agent.env").read_text()
    place = board.files / "var/lib/fleet/agent/store/incoming" / sha256
    assert place.read_bytes() == b"a bitstream"


@needs_board
def test_one_board_that_fails_is_no_matter_of_the_others(controller: Controller, tmp_path: Path) -> None:
    more = "  - {name: socket-1, target: x86, address: 'tcp://192.0.2.1:7700', key: '" + "a" * 40 + "'}\n"
    controller.inventory.write_text(controller.inventory.read_text() + more)
    status, document = controller.run("provision", "--all", "--runtime", "none")
    board, socket = document["results"]
    assert status == 1
    assert board["status"] == "provisioned", board
    assert (socket["status"], socket["code"]) == ("failed", "not-provisionable")


def test_the_playbooks_are_clean(tmp_path: Path) -> None:
    """ansible-lint at its strictest profile."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }
    command = [BIN / "ansible-lint", "--offline", "--nocolor", "--profile", "production", "--strict"]
    done = subprocess.run(
        command, cwd=PLAYBOOKS.resolve(), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
